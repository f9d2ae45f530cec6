"""scripts/setup.sh in a folder of its own, with a PATH on which only the needed tools stand; nothing is downloaded."""

import contextlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parent.parent.parent
TOOLS = "cat cp dirname flock getconf mkdir mv rm sed sh sha256sum sleep tail tr uname".split()
WAITING = "setup: waiting for another set-up of this folder\n"
REAL_PYTHON = os.path.join(sys.base_exec_prefix, "bin", "python3.10")


class Sandbox:
    """A copy of the script in a project folder, the PATH it sees and an empty home."""

    def __init__(self, folder):
        self.project = folder / "project"
        self.bin = folder / "bin"
        self.home = folder / "home"
        for path in (self.project / "scripts", self.bin, self.home):
            path.mkdir(parents=True)
        shutil.copy(PROJECT / "scripts" / "setup.sh", self.project / "scripts")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.require()
        self.environment = {"PATH": str(self.bin), "HOME": str(self.home), "NO_PROXY": "*"}

    def require(self, *requirements):
        (self.project / "requirements-dev.txt").write_text("".join(f"{line}\n" for line in requirements))

    def add_program(self, path, *lines):
        """An executable shell script at `path`, relative to the sandbox's bin folder."""
        path = self.bin / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)

    def add_python(self, path="python3.10"):
        self.add_program(path, f'exec {REAL_PYTHON} "$@"')

    def add_fast_python(self, template):
        """Like add_python, but it copies a virtual environment instead of making one."""
        self.add_program(
            "python3.10",
            f'case "$1" in -m) exec cp -a {template}/. .venv ;; esac',
            # As its own base interpreter, so that the set-up comes back to this script.
            f'{REAL_PYTHON} "$@" >/dev/null && echo {self.bin}/python3.10',
        )

    def start(self):
        """Starts the set-up in a process group of its own."""
        return subprocess.Popen(
            ["scripts/setup.sh"],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self):
        """(exit status, stdout, stderr) of the set-up."""
        process = self.start()
        stdout, stderr = process.communicate(timeout=120)
        return process.returncode, stdout, stderr

    def fails_with(self, status, text):
        returned, stdout, stderr = self.run()
        assert returned == status
        assert stderr.startswith("setup: error: ") and stderr.count("\n") == 1 and text in stderr
        assert not (self.project / ".venv").exists()

    def succeeds(self):
        status, stdout, stderr = self.run()
        assert (status, stderr) == (0, "")
        assert stdout.endswith("setup: .venv is ready\n")
        return stdout

    def imports(self, module):
        command = [self.project / ".venv/bin/python", "-c", f"import {module}"]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A virtual environment."""
    folder = tmp_path_factory.mktemp("template") / "venv"
    subprocess.run([REAL_PYTHON, "-m", "venv", folder], check=True)
    return folder


def write_wheel(folder, name):
    """A wheel with one empty module; returns its path."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


@contextlib.contextmanager
def wheel_server(wheel):
    """(address, event `asked`, event `answer`): serves the wheel, but not before `answer` is set."""
    asked, answer = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            answer.wait()
            with contextlib.suppress(ConnectionError):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(wheel.read_bytes())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{wheel.name}", asked, answer
        finally:
            answer.set()
            server.shutdown()


def kill(process):
    """Kills the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_installs_once_and_again_when_requirements_change(sandbox, tmp_path):
    sandbox.add_python()
    sandbox.require("-r requirements.txt")
    included = sandbox.project / "requirements.txt"
    included.write_text(f"{write_wheel(tmp_path, 'first_module')}\n")
    assert f"making .venv with {REAL_PYTHON}" in sandbox.succeeds()
    packages = sandbox.project / ".venv/lib/python3.10/site-packages"
    assert not list(packages.glob("__pycache__/first_module.*.pyc")), "left to Python"
    assert sandbox.imports("first_module")

    assert sandbox.succeeds() == "setup: .venv is ready\n"

    included.write_text(f"{write_wheel(tmp_path, 'second_module')}\n")
    # Which a Python that keeps no bytecode cannot do once for all.
    sandbox.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    stdout = sandbox.succeeds()
    assert "installing" in stdout and "making" not in stdout
    assert list(packages.glob("__pycache__/second_module.*.pyc"))
    assert sandbox.imports("second_module")


def test_killed_while_it_installs(sandbox, template, tmp_path):
    """Only the script is killed, so that its pip lives on: the next call must wait for that, too."""
    sandbox.add_fast_python(template)
    with wheel_server(write_wheel(tmp_path, "some_module")) as (address, asked, answer):
        sandbox.require(f"some_module @ {address}")
        killed = sandbox.start()
        assert asked.wait(60)
        killed.kill()
        next_one = sandbox.start()
        assert next_one.stdout.readline() == WAITING
        answer.set()
        stdout, _ = next_one.communicate(timeout=300)
        kill(killed)
    assert next_one.returncode == 0
    assert "making .venv anew" in stdout
    assert sandbox.imports("some_module")


def test_killed_while_it_makes_the_venv(sandbox, template):
    """The first part of a virtual environment stands, and the process hangs."""
    sandbox.add_program(
        "python3.10",
        'if [ "$1" = -m ]; then mkdir .venv/bin; echo > .venv/bin/python; exec sleep 600; fi',
        # As its own base interpreter, so that the set-up comes back to this script.
        f'if [ "$1" = -I ]; then {REAL_PYTHON} "$@" >/dev/null && echo {sandbox.bin}/python3.10; fi',
    )
    process = sandbox.start()
    deadline = time.monotonic() + 60
    while not (sandbox.project / ".venv/bin/python").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    kill(process)
    sandbox.add_fast_python(template)
    assert "making .venv anew" in sandbox.succeeds()


def test_two_at_once(sandbox, template, tmp_path):
    sandbox.add_fast_python(template)
    with wheel_server(write_wheel(tmp_path, "some_module")) as (address, asked, answer):
        sandbox.require(f"some_module @ {address}")
        first = sandbox.start()
        assert asked.wait(60)
        second = sandbox.start()
        assert second.stdout.readline() == WAITING
        answer.set()
        for process in (first, second):
            stdout, stderr = process.communicate(timeout=60)
            assert (process.returncode, stderr) == (0, "")
            assert stdout.endswith("setup: .venv is ready\n")
    assert "making" not in stdout, "the second one found the first one's work"


def test_moved_folder_and_activated_venv(sandbox, template, tmp_path):
    """The Python of the moved .venv comes first on PATH: what is made anew must not rest on it."""
    sandbox.add_fast_python(template)
    sandbox.succeeds()
    sandbox.add_python()
    sandbox.project = sandbox.project.rename(tmp_path / "elsewhere")
    sandbox.environment["PATH"] = f"{sandbox.project}/.venv/bin:{sandbox.bin}"
    stdout = sandbox.succeeds()
    assert "making .venv anew" in stdout and f"with {REAL_PYTHON}\n" in stdout
    assert str(sandbox.project) in (sandbox.project / ".venv/bin/pip").read_text()


def test_venv_of_another_python(sandbox, template):
    sandbox.add_fast_python(template)
    sandbox.add_program("../project/.venv/bin/python", "exit 1")
    assert "making .venv anew" in sandbox.succeeds()


def test_pip_failure(sandbox, template, tmp_path):
    sandbox.add_fast_python(template)
    sandbox.require(tmp_path / "missing-1.0-py3-none-any.whl")
    status, stdout, stderr = sandbox.run()
    assert status == 1
    assert "missing-1.0" in stderr, "pip's own message"
    assert stderr.splitlines()[-1].startswith("setup: error: pip could not install requirements-dev.txt")
    sandbox.require()
    sandbox.succeeds()


# Where Python 3.10 comes from. These stop at the requirements, which are not there to be installed.


def python_found(sandbox):
    """The path that the set-up says it makes .venv with; stops it there."""
    process = sandbox.start()
    line = process.stdout.readline()
    kill(process)
    assert line.startswith("setup: making .venv with ")
    return line.split()[-1]


def test_broken_shim_before_a_python_that_runs(sandbox, tmp_path):
    sandbox.add_program("shims/python3.10", "echo 'pyenv: python3.10: command not found' >&2", "exit 127")
    sandbox.add_python()
    sandbox.environment["PATH"] = f"{sandbox.bin}/shims:{sandbox.bin}"
    assert python_found(sandbox) == REAL_PYTHON


def test_python3_10_that_is_another_version(sandbox):
    sandbox.add_program("python3.10", "exit 1")
    sandbox.fails_with(2, "found no Python 3.10")


@pytest.mark.parametrize("root", [None, "root", "command"])
def test_pyenv(sandbox, tmp_path, root):
    folder = sandbox.home / ".pyenv" if root is None else tmp_path / "my pyenv"
    sandbox.add_python(folder / "versions/3.10.13/bin/python3.10")
    if root == "root":
        sandbox.environment["PYENV_ROOT"] = str(folder)
    if root == "command":
        sandbox.add_program("pyenv", f'[ "$*" = root ] && echo "{folder}"')
    assert python_found(sandbox) == REAL_PYTHON


def test_uv_has_python(sandbox, tmp_path):
    sandbox.add_python(tmp_path / "managed/bin/python3.10")
    sandbox.add_program("uv", f'[ "$*" = "python find 3.10" ] && echo {tmp_path}/managed/bin/python3.10')
    assert python_found(sandbox) == REAL_PYTHON


def test_uv_fetches_python(sandbox, tmp_path):
    sandbox.add_program(
        "uv",
        'case "$*" in',
        f'"python find 3.10") [ -e {tmp_path}/fetched ] && echo {tmp_path}/python3.10;;',
        f'"python install 3.10") echo > {tmp_path}/fetched;;',
        "*) exit 2;; esac",
    )
    sandbox.add_python(tmp_path / "python3.10")
    assert python_found(sandbox) == REAL_PYTHON


def test_uv_cannot_fetch_python(sandbox):
    sandbox.add_program("uv", "echo 'error: no network' >&2", "exit 2")
    status, stdout, stderr = sandbox.run()
    assert status == 2
    assert stderr.splitlines()[0] == "error: no network"
    assert stderr.splitlines()[1:] == [
        "setup: error: uv could not provide Python 3.10 (its message is above): install Python 3.10"
    ]


def test_no_python(sandbox):
    sandbox.fails_with(2, "pyenv install 3.10")


def test_no_python_leaves_the_old_venv(sandbox):
    sandbox.add_program("../project/.venv/bin/python", "exit 1")
    status, _, _ = sandbox.run()
    assert status == 2
    assert (sandbox.project / ".venv/bin/python").exists()


def test_python_without_venv(sandbox):
    sandbox.add_program("python3.10", 'case "$3" in *ensurepip*) exit 1;; esac', f'exec {REAL_PYTHON} "$@"')
    sandbox.fails_with(2, "apt install python3.10-venv")


@pytest.mark.parametrize("system, machine", [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_other_platform(sandbox, system, machine):
    sandbox.add_python()
    sandbox.add_program("uname", f'[ "$1" = -s ] && echo {system} || echo {machine}')
    sandbox.fails_with(2, f"this is {system} on {machine}")


def test_no_glibc(sandbox):
    sandbox.add_python()
    sandbox.add_program("getconf", "exit 1")
    sandbox.fails_with(2, "Linux on x86_64 without glibc")


def test_make_help_names_the_targets():
    stdout = subprocess.run(["make"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for target in ("setup", "pretrain", "test"):
        assert f"\n  {target} " in stdout
