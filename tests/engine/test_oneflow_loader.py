"""Loading OneFlow: what is missing is named in one line, the user's settings win, noise stays off the terminal."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import native, oneflow_loader
from running import ROOT, assert_fails_with_one_line, needs_kernels
from system.errors import UserError


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
@pytest.mark.parametrize("library", ["preload.so", "plugin.so", f"{native.runnable_sets()[0]}/libbert_kernels.so"])
def test_damaged_kernels_are_not_loaded(tmp_path, library):
    """The linker would crash on a library that has been cut short, and the processor on code that has changed."""
    whole = native._BUILD / library
    size = whole.stat().st_size
    for damage in (lambda path: os.truncate(path, size // 2), lambda path: overwrite(path, size // 3, bytes(4096))):
        build = tmp_path / "build"
        shutil.copytree(native._BUILD, build, ignore=shutil.ignore_patterns("*.o"), dirs_exist_ok=True)
        damage(build / library)
        result = python(f"""
import pathlib
from engine import native
native._BUILD = pathlib.Path({str(build)!r})
print(native.preload(), native.describe())
""", BERT_KERNELS="")  # fmt: skip
        expected = f"slow kernels are used: the library is damaged ({build / library}), run make clean-kernels kernels"
        assert (result.returncode, result.stdout, result.stderr) == (0, f"None {expected}\n", "")


@needs_kernels
def test_kernels_in_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_BUILD", tmp_path / "build")
    monkeypatch.setattr(native, "_kernels", None)

    def stat(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    assert native.preload() is None
    assert native.describe().startswith("slow kernels are used: the library does not load ([Errno 13] Permission")


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
