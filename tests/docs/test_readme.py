"""The README and docs/ tell the truth about commands, flags and code, and keep to their size."""

import re
import shlex

import pytest

from pages import PAGES, README, blocks_of, commands
from running import ROOT

MOST_BYTES_OF_A_README = 20_000
# A message that does not stand in the code.
OF_THE_SYSTEM = "No space left on device"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_is_short(name):
    """A task gets some fifteen lines there, and a page of its own in docs/."""
    assert (ROOT / name).stat().st_size <= MOST_BYTES_OF_A_README


def test_pretraining_command_is_that_of_make_pretrain():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(r"\$\(PYTHON\) \./run_pretraining\.py (.*)", makefile)[1]
    blocks = [block.text for block in blocks_of("README.md") if block.language == "sh"]
    lines = [shlex.split(line)[1:] for block in blocks for line in commands(block)]
    assert ["./run_pretraining.py", *shlex.split(recipe)] in lines


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"<!--|TODO|TBD|XXX|@@", README)


def test_model_code_is_that_of_squad():
    (code,) = (block.text for block in blocks_of("docs/squad.md") if block.language == "python")
    assert code in (ROOT / "squad.py").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_that_are_run(page):
    """test_commands.py runs blocks in sh; nothing that looks like a command is in another or in none."""
    assert {block.language for block in blocks_of(page)} <= {"sh", "text", "python"}
    assert not re.search(r"^(    |\t)", prose_of(page), re.MULTILINE)


def prose_of(page):
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```\w+\n.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def flags_of_the_scripts():
    """All flags, without their dashes, that the scripts, tools and benchmarks have."""
    files = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("*/*.py") if path.parent.name != "tests")]
    text = "\n".join(path.read_text() for path in files)
    shell = "\n".join(path.read_text() for path in ROOT.glob("scripts/*.sh"))
    of_shell_scripts = set(re.findall(r"--([a-z]\w+)(?:=\*|\))", shell))
    return of_shell_scripts.union(
        re.findall(r'"--([a-z][\w-]+)"', text), re.findall(r'_add_shape\([^,]+, "(\w+)"', text)
    )


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_targets_that_are_named_exist(page):
    if page == "CHANGELOG.md":
        pytest.skip("tells of the past")
    makefiles = [ROOT / "Makefile", *ROOT.glob("make/*.mk")]
    targets = set(re.findall(r"^([a-z][\w-]*):", "\n".join(path.read_text() for path in makefiles), re.MULTILINE))
    named = re.findall(r"`([^`]+)`", prose_of(page))
    assert {target for code in named for target in re.findall(r"^make ([a-z][\w-]*)", code)} <= targets
    flags = {flag for code in named for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*\w)", code)}
    assert flags - {"help", "flag"} <= flags_of_the_scripts()


def test_messages_of_the_troubleshooting_page_are_said():
    """Each stands in the code, so that a reader finds it by its words."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("kernels/*.cpp"), *ROOT.glob("scripts/*.sh")]
    source = "\n".join(path.read_text() for path in files)
    source = re.sub(r'"\n\s*f?"', "", source)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`.+?) \| ", page, re.MULTILINE)
    assert len(cells) > 30
    for message in [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]:
        for words in re.split(r"\.\.\.|\d+", message):
            assert words.strip(" :") in (source + OF_THE_SYSTEM), message
