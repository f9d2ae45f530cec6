"""Loading OneFlow: what is missing is named in one line, the user's settings win, noise stays off the terminal."""

import os
import signal
import subprocess
import sys

import pytest

import engine
from conftest import ROOT, assert_fails_with_one_line
from util import UserError


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
    code = f"import engine; print(engine.load({str(log)!r}).__version__)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "ONEFLOW"))}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120
    )
    assert (result.stdout, result.stderr) == ("0.9.0\n", "")
    assert "libibverbs not available" in log.read_text()


def test_the_users_settings_win():
    code = "import engine, os; engine.load(); print(os.environ['ONEFLOW_ENABLE_ONEDNN_OPTS'])"
    assert python(code, ONEFLOW_ENABLE_ONEDNN_OPTS="1").stdout == "1\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEFLOW")}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.stdout == "0\n"


def test_a_missing_library_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="pip install nvidia-cudnn-cu11==8.5.0.96"):
        engine._load_library("nvidia-cudnn-cu11==8.5.0.96", "nvidia/cudnn/lib/libcudnn_no_such_thing.so.8")


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 6), (2, 7)])
def test_a_wrong_python_is_named(version):
    with pytest.raises(UserError, match=rf"{version[0]}\.{version[1]}.*3\.10"):
        engine.check_python(version)


def test_python_without_assertions_is_refused():
    result = python("import engine, util; util.run_script(engine.load)", PYTHONOPTIMIZE="1")
    assert_fails_with_one_line(result, "leave out python -O")


def test_a_signal_during_the_import_is_told_as_one():
    """It comes from within OneFlow's library, which makes an ImportError of it."""
    code = """
import sys, engine, util
class Import:
    def find_spec(self, name, path, target=None):
        if name == "oneflow":
            raise ImportError("Signalled: ended by SIGINT\\n\\nAt:\\n  stopping.py(28): raise_signalled")
sys.meta_path.insert(0, Import())
util.run_script(engine.load)
"""
    assert_fails_with_one_line(python(code), "ended by SIGINT", status=128 + signal.SIGINT)


def test_what_is_not_noise_reaches_the_terminal():
    code = "import engine, os\nwith engine._noise_to(None): os.write(2, b'libibverbs not available\\na real error\\n')"
    assert python(code).stderr == "a real error\n"
