"""What all scripts have in common: how they end, and what they start from."""

import subprocess
import sys

import pytest

import import_errors
from conftest import ROOT

# Opens a file, which must not get the number of a standard stream, and talks to all three.
PROGRAM = """
import os, sys, util
def main():
    with open(sys.argv[1], "wb") as file:
        print(file.fileno() > 2)
        sys.stdin.read()
        for number in (1, 2):
            os.write(number, b"noise\\n")
        os.system("echo child; echo child >&2")
        file.write(b"data")
    print("said", file=sys.stderr)
util.run_script(main)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_runs_without_standard_streams(tmp_path, closed):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    result = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True
    )
    assert (tmp_path / "file").read_bytes() == b"data"
    assert sorted(result.stdout.splitlines()) == ([] if " >&-" in f" {closed}" else ["True", "child", "noise"])
    assert result.stderr == ("" if "2>&-" in closed else "noise\nchild\nsaid\n")


SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")])
    if "__main__" in path.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_without_the_packages_is_told_in_one_line(script, tmp_path):
    # -S: without its site-packages the interpreter has only what comes with it.
    result = subprocess.run(
        [sys.executable, "-S", str(ROOT / script), "--no_such_flag"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    # Some need no package to get as far as their flags, or as OneFlow.
    told = "is missing in" in line and "make setup" in line
    assert told or script not in ("run_pretraining.py", "npy2json.py", "tools/convert_hf.py")


def test_an_old_python_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        import_errors.check_version((3, 9, 18))
    assert end.value.code == 2
    assert "Python 3.9, which is too old" in capsys.readouterr().err


def test_interrupted_while_importing(tmp_path):
    program = "import import_errors\nraise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "-c: error: interrupted\n")
