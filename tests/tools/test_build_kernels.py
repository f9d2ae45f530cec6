"""Building the native library: whole or not at all, once at a time, and in one line where it cannot be."""

import os
import signal
import subprocess
import sys
import time

import pytest

import build_kernels
from engine import kernel_files
from running import ROOT, assert_fails_with_one_line

# Writes what it is called for into $LOG, and makes "libraries" that hold the build id. It stays at the output $STAY_AT.
COMPILER = """#!{python} -SE
import os, sys, time
output = sys.argv[sys.argv.index("-o") + 1]
with open(os.environ["LOG"], "a") as log:
    log.write(os.path.basename(output) + "\\n")
if os.path.basename(output) == os.environ.get("STAY_AT"):
    time.sleep(600)
with open(output, "w") as file:
    file.write("bert build id {build_id} " + " ".join(sys.argv))
"""


@pytest.fixture
def environment(tmp_path):
    """That of a build in tmp_path / "build" with a compiler that takes no time."""
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER.format(python=sys.executable, build_id=kernel_files.build_id()))
    compiler.chmod(0o755)
    return {
        **os.environ,
        "CXX": str(compiler),
        "LOG": str(tmp_path / "log"),
        "BERT_KERNELS_FOLDER": str(tmp_path / "build"),
    }


def started(environment, *arguments):
    command = [sys.executable, str(ROOT / "tools" / "build_kernels.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


def ended(process):
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def libraries(tmp_path):
    """The names of what has been built, all of them good."""
    folder = tmp_path / "build"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in found if not name.endswith(".sha256")]
    assert found == sorted([*names, *(f"{name}.sha256" for name in names)])
    assert [kernel_files.problem_of(folder / name) for name in names] == [None] * len(names)
    return names


def test_sets_are_added_to_what_is_there(tmp_path, environment):
    for _ in range(2):
        result = ended(started(environment, "avx2"))
        assert (result.returncode, result.stderr) == (0, "")
        assert libraries(tmp_path) == ["avx2/libbert_kernels.so", "plugin.so", "preload.so"]
    # The second time there was nothing to do.
    assert result.stdout == ""
    assert ended(started(environment, "baseline", "avx2")).returncode == 0
    assert libraries(tmp_path) == ["avx2/libbert_kernels.so", "baseline/libbert_kernels.so", "plugin.so", "preload.so"]
    assert (tmp_path / "log").read_text().split().count("plugin.so") == 1
    # One of other sources is made anew.
    damaged = tmp_path / "build" / "plugin.so"
    damaged.write_bytes(damaged.read_bytes().replace(b"build id", b"build no"))
    assert ended(started(environment, "avx2")).returncode == 0
    assert (tmp_path / "log").read_text().split().count("plugin.so") == 2


def test_two_builds_at_once(tmp_path, environment):
    results = [ended(process) for process in [started(environment, "avx2") for _ in range(2)]]
    assert [result.returncode for result in results] == [0, 0]
    assert libraries(tmp_path) == ["avx2/libbert_kernels.so", "plugin.so", "preload.so"]
    assert (tmp_path / "log").read_text().split().count("plugin.so") == 1


def test_a_build_that_is_killed(tmp_path, environment):
    """What was there stays, whole, also while the next build is under way."""
    assert ended(started(environment, "avx2")).returncode == 0
    process = started({**environment, "STAY_AT": "adam.o"}, "avx2", "baseline")
    log = tmp_path / "log"
    while log.read_text().split().count("adam.o") < 2:
        assert process.poll() is None
        time.sleep(0.05)
    before = ["avx2/libbert_kernels.so", "plugin.so", "preload.so"]
    assert libraries(tmp_path) == before
    process.send_signal(signal.SIGKILL)
    # Its compiler lives on, and holds its pipes.
    process.wait()
    assert libraries(tmp_path) == before
    assert ended(started(environment, "avx2", "baseline")).returncode == 0
    os.killpg(process.pid, signal.SIGKILL)
    assert len(libraries(tmp_path)) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    "compiler, reason",
    [
        ("false", "false failed: status 1"),
        ("no-such-g++ -m64", "there is no C++ compiler no-such-g++; install g++"),
        ("sh -c 'echo as: /tmp/x.s: No space left on device; exit 1' >&2", "sh failed: status 1"),
        ("sh -c 'echo x.h:1: note: y >&2; echo x.cpp:2:3: fatal error: omp.h: no >&2; exit 1'", "fatal error: omp.h"),
    ],
)
def test_a_compiler_that_fails(tmp_path, environment, compiler, reason):
    result = ended(started({**environment, "CXX": compiler}, "--if_possible"))
    *_, notice = result.stdout.splitlines()
    assert notice.startswith("Notice: the native kernels are not built (") and reason in notice
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "build").exists()
    result = ended(started({**environment, "CXX": compiler}))
    assert_fails_with_one_line(result, reason, status=2 if "install" in reason else 1)


def test_no_room_to_build_in(environment):
    result = ended(started({**environment, "BERT_KERNELS_FOLDER": "/dev/null/build"}, "--if_possible"))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(
        "Notice: the native kernels are not built (/dev/null/build: cannot be written; name "
    )


def test_below_a_checkout_that_is_read_only(tmp_path, monkeypatch):
    """The build goes into the user's cache, where it is found."""
    monkeypatch.delenv("BERT_KERNELS_FOLDER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    in_checkout, in_cache = kernel_files.folders()
    assert in_checkout == ROOT / "kernels" / "build" and in_cache.is_relative_to(tmp_path / "cache" / "bert-oneflow")
    may_write = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != in_checkout.parent and may_write(path, mode))
    assert build_kernels._writable_folder() == in_cache
    (in_cache / "avx2").mkdir(parents=True)
    (in_cache / "avx2" / "libbert_kernels.so").touch()
    monkeypatch.setattr(kernel_files, "SOURCES", tmp_path / "kernels")
    assert kernel_files.folders()[1] != in_cache  # another checkout's
