"""The README tells the truth about files, flags and commands."""

import re
import shlex
import subprocess

import config
from conftest import ROOT
from readme_blocks import README, blocks_of, commands


def blocks(language):
    """The texts of the README's blocks in `language`."""
    return [block.text for block in blocks_of(README) if block.language == language]


def listed_paths():
    """(files, folders that stand for all they hold) of the tree in the README."""
    tree = next(block for block in blocks("text") if block.startswith("run_pretraining.py "))
    files, folders, folder = set(), set(), ""
    for line in filter(None, tree.splitlines()):
        indentation, name = re.match(r"( *)(\S+)", line).groups()
        if name.endswith("/"):
            folder = name
            folders.add(name)
        else:
            files.add(folder + name if indentation else name)
    return files, {name for name in folders if not any(file.startswith(name) for file in files)}


def test_tree_is_that_of_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files, folders = listed_paths()
    assert sorted(files - set(tracked)) == []
    assert sorted(set(tracked) - files - {path for path in tracked if path.startswith(tuple(folders))}) == []
    assert [name for name in folders if not any(path.startswith(name) for path in tracked)] == []


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
