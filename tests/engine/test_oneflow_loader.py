"""Loading OneFlow: what is missing is named in one line, the user's settings win, noise stays off the terminal."""

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import kernel_files, libraries, native, oneflow_loader
from running import ROOT, assert_fails_with_one_line, needs_kernels
from system.errors import UserError

pytestmark = pytest.mark.slow


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_loads_without_any_setting_and_without_noise(tmp_path):
    log = tmp_path / "oneflow.log"
    code = f"from engine import oneflow_loader; print(oneflow_loader.load({str(log)!r}).__version__)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "ONEFLOW"))}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120
    )
    assert (result.stdout, result.stderr) == ("0.9.0\n", "")
    assert "libibverbs not available" in log.read_text()


def test_the_users_settings_win():
    code = (
        "import os; from engine import oneflow_loader as o; o.load(); print(os.environ['ONEFLOW_ENABLE_ONEDNN_OPTS'])"
    )
    assert python(code, ONEFLOW_ENABLE_ONEDNN_OPTS="1").stdout == "1\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEFLOW")}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.stdout == "0\n"


def test_a_missing_library_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="pip install nvidia-cudnn-cu11==8.5.0.96"):
        oneflow_loader._load_library("nvidia-cudnn-cu11==8.5.0.96", "nvidia/cudnn/lib/libcudnn_no_such_thing.so.8")


@pytest.mark.parametrize(
    "text",
    [
        '__version__ = "0.9.0"\n__git_commit__ = "7654321"\n',
        '__version__ = "0.9.1.dev20240203+cpu"\n__git_commit__ = "381b12c"\n',
        "",
        None,
    ],
)
def test_another_build_of_oneflow_is_refused(text, tmp_path, monkeypatch):
    oneflow_loader.check_build()
    monkeypatch.setattr(kernel_files, "oneflow_folder", lambda: tmp_path)
    if text is not None:
        (tmp_path / "version.py").write_text(text)
    with pytest.raises(UserError, match="^OneFlow .*pip install -r requirements.txt$"):
        oneflow_loader.check_build()


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 6), (2, 7)])
def test_a_wrong_python_is_named(version):
    with pytest.raises(UserError, match=rf"{version[0]}\.{version[1]}.*3\.10"):
        oneflow_loader.check_python(version)


def test_python_without_assertions_is_refused():
    result = python("import util; from engine import oneflow_loader as o; util.run_script(o.load)", PYTHONOPTIMIZE="1")
    assert_fails_with_one_line(result, "leave out python -O")


def test_a_signal_during_the_import_is_told_as_one():
    """It comes from within OneFlow's library, which makes an ImportError of it."""
    code = """
import sys, util
from engine import oneflow_loader
class Import:
    def find_spec(self, name, path, target=None):
        if name == "oneflow":
            raise ImportError("Signalled: ended by SIGINT\\n\\nAt:\\n  system/signals.py(28): raise_signalled")
sys.meta_path.insert(0, Import())
util.run_script(oneflow_loader.load)
"""
    assert_fails_with_one_line(python(code), "ended by SIGINT", status=128 + signal.SIGINT)


NOISE_TO = "import os\nfrom engine.oneflow_loader import _noise_to\n"


def test_what_is_not_noise_reaches_the_terminal():
    code = f"{NOISE_TO}with _noise_to(None): os.write(2, b'libibverbs not available\\na real error\\n')"
    assert python(code).stderr == "a real error\n"


def test_the_last_words_of_an_engine_that_aborts_while_it_is_loaded_stay(tmp_path):
    code = f"{NOISE_TO}with _noise_to(None):\n    os.write(2, b'why')\n    os.abort()"
    with open(tmp_path / "oneflow.log", "wb") as log:
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=log, timeout=120)
    assert (result.returncode, (tmp_path / "oneflow.log").read_text()) == (-signal.SIGABRT, "why")


@needs_kernels
def test_what_an_actor_has_read_with_stays_when_it_ends():
    """OneFlow's own would look into it, and abort or crash: this one must be the first that the linker finds."""
    code = """
import ctypes
from engine import oneflow_loader
oneflow_loader.load()
print(ctypes.CDLL(None)["_ZN7oneflow7CommNet17DeleteActorReadIdEPv"](None, None) is not None)
"""
    assert python(code).stdout == "True\n"


@needs_kernels
def test_the_scheduler_thread_gives_way():
    """It alone, at nice 19, and not at idle priority: on a busy machine the graph would wait for it."""
    code = """
import os, time
from engine import oneflow_loader
oneflow_loader.load()
own = os.getpriority(os.PRIO_PROCESS, 0)
end = time.monotonic() + 60
while time.monotonic() < end:
    threads = [int(thread) for thread in os.listdir("/proc/self/task")]
    slow = [thread for thread in threads if os.getpriority(os.PRIO_PROCESS, thread) > own]
    if slow:
        break
print([(os.getpriority(os.PRIO_PROCESS, thread), os.sched_getscheduler(thread) == os.SCHED_OTHER) for thread in slow])
"""
    assert python(code).stdout == "[(19, True)]\n"


FASTEST = kernel_files.library_of(kernel_files.runnable_sets()[0])


@pytest.fixture
def build(tmp_path):
    """A copy of the build that is in use."""
    folder = next(folder for folder in kernel_files.folders() if (folder / "plugin.so").is_file())
    return shutil.copytree(folder, tmp_path / "build")


def preloaded(build):
    """What a process that finds the kernels in `build` says about them before it loads OneFlow."""
    code = "from engine import native; print(native.preload(), native.describe())"
    result = python(code, BERT_KERNELS="", BERT_KERNELS_FOLDER=str(build))
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


@needs_kernels
@pytest.mark.parametrize("library", ["preload.so", "plugin.so", FASTEST])
def test_damaged_kernels_are_not_loaded(build, library):
    """The linker would crash on a library that has been cut short, and the processor on code that has changed."""
    whole = (build / library).read_bytes()
    expected = f"None slow kernels are used: the library is damaged ({build / library}), run make clean-kernels kernels"
    os.truncate(build / library, len(whole) // 2)
    assert preloaded(build) == expected
    (build / library).write_bytes(whole)
    overwrite(build / library, len(whole) // 3, bytes(4096))
    assert preloaded(build) == expected


@needs_kernels
@pytest.mark.parametrize("library", ["preload.so", "plugin.so", FASTEST])
def test_kernels_of_something_else_are_not_loaded(build, library):
    """As `git pull` or `pip install` without `make kernels` leaves them, and a copy of one library from elsewhere."""
    assert preloaded(build).startswith("native kernels: ")
    content = (build / library).read_bytes()
    build_id = kernel_files.build_id().encode()
    assert content.count(build_id) == 1
    other = content.replace(build_id, build_id[::-1])
    (build / library).write_bytes(other)
    kernel_files.checksum_of(build / library).write_text(hashlib.sha256(other).hexdigest())
    assert preloaded(build) == (
        "None slow kernels are used: the library was built from other sources or for another OneFlow or oneDNN "
        f"({build / library}), run make kernels"
    )


def test_the_build_id_tells_sources_and_wheels(tmp_path, monkeypatch):
    """The build id changes with any of them, and not with anything else in the folder of the sources."""

    def build_id():
        kernel_files.build_id.cache_clear()
        return kernel_files.build_id()

    shutil.copytree(kernel_files.SOURCES, tmp_path / "kernels", ignore=shutil.ignore_patterns("build*"))
    oneflow = tmp_path / "oneflow"
    oneflow.mkdir()
    (oneflow / "version.py").write_text('__version__ = "0.9.0"\n__git_commit__ = "1234567"\n')
    (tmp_path / "oneflow.libs").mkdir()
    (tmp_path / "oneflow.libs" / "liboneflow-12345678.so").touch()
    monkeypatch.setattr(kernel_files, "SOURCES", tmp_path / "kernels")
    monkeypatch.setattr(kernel_files, "oneflow_folder", lambda: oneflow)
    seen = [build_id()]
    (tmp_path / "kernels" / "build").mkdir()
    assert build_id() == seen[0]
    for path, text in (
        (tmp_path / "kernels" / "gelu.cpp", "// Changed."),
        (tmp_path / "kernels" / "stand_in" / "glog" / "logging.h", "// Changed."),
        (tmp_path / "kernels" / "new.h", ""),
        (oneflow / "version.py", '__version__ = "0.9.0"\n__git_commit__ = "7654321"\n'),
        (tmp_path / "oneflow.libs" / "liboneflow-87654321.so", ""),
    ):
        path.write_text(text)
        seen.append(build_id())
    monkeypatch.setattr(kernel_files, "load_onednn", lambda: libdnnl(patch=9))
    seen.append(build_id())
    kernel_files.build_id.cache_clear()
    assert len({*seen}) == len(seen)


def libdnnl(patch):
    """oneDNN that says it is of another version."""
    version = kernel_files._OneDnnVersion(3, 2, patch, b"0123", 2, 0)
    return SimpleNamespace(dnnl_version=lambda: ctypes.pointer(version))


def test_libraries_are_found_where_pip_puts_them(tmp_path, monkeypatch):
    """Beside modules, and in the prefix of a virtual environment, of --user or of Debian's Python."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nothing"))
    for folder in ("venv/lib/python3.10/site-packages", "usr/local/lib/python3.10/dist-packages"):
        path = [str(tmp_path / "elsewhere"), str(tmp_path / folder)]
        monkeypatch.setattr(sys, "path", path)
        assert libraries.find("lib/libdnnl.so.3") is None
        found = []
        for library in (tmp_path / folder / "../../libdnnl.so.3", tmp_path / folder / "lib/libdnnl.so.3"):
            library.parent.mkdir(parents=True, exist_ok=True)
            library.touch()
            found.append(libraries.find("lib/libdnnl.so.3"))
        assert [path.resolve() for path in found] == [path.resolve() for path in found[:1]] + [library.resolve()]
        assert found[0].resolve() != library.resolve()


@needs_kernels
def test_kernels_in_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_kernels", None)
    monkeypatch.delenv("BERT_KERNELS", raising=False)

    def stat(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    assert native.preload() is None
    assert native.describe().startswith("slow kernels are used: the library does not load ([Errno 13] Permission")


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
