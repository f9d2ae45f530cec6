"""The README tells the truth about flags and commands."""

import re
import shlex

import config
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def commands(script):
    """The command lines of `script` in the README, each as a list of arguments."""
    joined = README.replace("\\\n", " ")
    return [shlex.split(line)[2:] for line in joined.splitlines() if re.match(rf"    python (\./)?{script} ", line)]


def test_flags_table():
    rows = re.findall(r"^\| `--(\w+)` \|(.*?)\|", README, re.MULTILINE)
    args = vars(config.parse_pretraining_args(["--data_dir=x"]))
    assert {name for name, _ in rows} == set(args)
    for name, default in rows:
        default = default.strip()
        value = args[name]
        if name in ("data_dir", "intermediate_size", "model_save_dir", "master_port"):
            continue  # required, or computed
        if default == "":
            assert value is None, name
        elif isinstance(value, bool):
            assert default == str(value), name
        elif isinstance(value, (int, float)):
            assert float(default) == value, name
        else:
            assert default == value, name


def test_pretraining_command_is_that_of_make_pretrain():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(r"\$\(PYTHON\) \./run_pretraining\.py (.*)", makefile)[1]
    assert shlex.split(recipe) in commands(r"run_pretraining\.py")
