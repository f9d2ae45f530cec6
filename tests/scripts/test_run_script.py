"""What all scripts have in common: how they end, and what they start from."""

import ast
import os
import subprocess
import sys

import pytest

import config
from running import ROOT
from system import command_line, errors, import_errors

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


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_first_looks_at_its_python(script):
    nodes = [n for n in ast.parse((ROOT / script).read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert nodes[0].names[0].name in ("import_errors", "suite")


def test_an_old_python_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        import_errors.check_version((3, 9, 18))
    assert end.value.code == 2
    assert "Python 3.9, which is too old" in capsys.readouterr().err


def test_interrupted_while_importing(tmp_path):
    program = "from system import import_errors\nraise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "-c: error: ended by SIGINT\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_prints_what_the_terminal_has_no_characters_for(encoding):
    """Half a surrogate pair of a JSON file, a file name that is not UTF-8, any text in an old locale."""
    program = "import util; util.run_script(lambda: print('\\ud800 \\udcff \\u4e2d end'))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith(b"\\ud800 \\udcff ") and result.stdout.endswith(b" end\n")


def test_two_dashes_are_no_value():
    command = [sys.executable, "run_pretraining.py", "--data_dir=x", "--seq_length=--"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "argument --seq_length: '--' is not a value" in result.stderr


def test_messages_are_one_printable_line_of_bounded_length():
    assert errors.one_line("a\r\nb\t c\u2028d") == "a b c d"
    assert errors.one_line("\x1b[2J\x00\u202e\ud800\xa0é中") == "\\x1b[2J\\x00\\u202e\\ud800 é中"
    assert len(errors.one_line("x" * 10**6)) == 2003
    result = subprocess.run(
        [sys.executable, "run_pretraining.py", "--data_dir=x", "--seed=1\r\x1b[2J\n2"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 2 and result.stderr.count(b"\n") == 1
    assert b"'1 \\x1b[2J 2' is not a whole number" in result.stderr and b"\x1b" not in result.stderr


@pytest.mark.parametrize("script", ["launch_cluster.sh", "launch_slurm.sh", "setup.sh", "squad.sh"])
def test_help_of_a_shell_script(script):
    """It is the comment at the script's head."""
    result = subprocess.run([ROOT / "scripts" / script, "--help"], capture_output=True, text=True, cwd="/")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"scripts/{script} " in result.stdout
    assert all(line in (ROOT / "scripts" / script).read_text() for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--datadir=x"], "there is no flag --datadir; did you mean --data_dir?"),
        (["--data-dir=x"], "there is no flag --data-dir; did you mean --data_dir?"),
        (["-data_dir", "x"], "there is no flag -data_dir; did you mean --data_dir?"),
        (["--data_dir=x", "--batch_size=8"], "there is no flag --batch_size; did you mean --batch_size_per_device?"),
        (["--data_dir=x", "--xyzzy"], "there is no flag --xyzzy; see"),
        (["--data_dir=~/data"], "argument --data_dir: '~/data': the shell does not expand ~ here"),
        (["--data_dir", "a,~"], "argument --data_dir: 'a,~': the shell does not expand ~ here"),
        (["--", "--data_dir=x"], "--data_dir"),
    ],
)
def test_flags_that_do_not_exist_and_homes_that_no_shell_has_found(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        config.parse_pretraining_args(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_negative_values_need_no_equals_sign():
    parser = command_line.ArgumentParser()
    parser.add_argument("--layers")
    parser.add_argument("--threshold", type=float)
    given = parser.parse_args(["--threshold", "-1e-3", "--layers", "-1,-2"])
    assert (given.threshold, given.layers) == (-0.001, "-1,-2")


def test_names_with_a_tilde_of_their_own_are_taken():
    assert config.parse_pretraining_args(["--data_dir=./~", "--log_dir=a~"]).data_dir == "./~"


def test_help_has_no_default_that_is_none(capsys):
    with pytest.raises(SystemExit):
        config.parse_squad_args(["--help"])
    text = capsys.readouterr().out
    assert "(default: None)" not in text and "(default: False)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        config.parse_pretraining_args(["--version"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"run_pretraining.py {command_line.VERSION} (OneFlow 0.9.0, Python 3.10.")
    assert f"## {command_line.VERSION}" in (ROOT / "CHANGELOG.md").read_text(), "the newest version has no entry"


@pytest.mark.parametrize(
    "module, package",
    [("google", "protobuf"), ("google.protobuf", "protobuf"), ("google_crc32c", "google-crc32c"), ("tqdm.std", "tqdm")],
)
def test_a_missing_package_is_named_as_pip_knows_it(capsys, module, package):
    with pytest.raises(SystemExit):
        import_errors._tell(ModuleNotFoundError, ModuleNotFoundError(name=module), None)
    assert f"error: the package {package} is missing in {sys.executable}" in capsys.readouterr().err
