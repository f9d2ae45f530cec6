"""What all scripts have in common: how they end, and what they start from."""

import subprocess
import sys

import pytest

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
