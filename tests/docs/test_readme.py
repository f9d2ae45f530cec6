"""The README tells the truth about files, flags and commands."""

import re
import shlex

import config
from readme_blocks import README, blocks_of, commands
from running import ROOT


def blocks(language):
    """The texts of the README's blocks in `language`."""
    return [block.text for block in blocks_of(README) if block.language == language]


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
    lines = [shlex.split(line)[1:] for block in blocks("sh") for line in commands(block)]
    assert ["./run_pretraining.py", *shlex.split(recipe)] in lines


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"<!--|TODO|TBD|XXX", README)


def test_model_code_is_that_of_squad():
    (code,) = blocks("python")
    assert code in (ROOT / "squad.py").read_text()
