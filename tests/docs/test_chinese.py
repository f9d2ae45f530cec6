"""README.zh-CN.md is the README in Chinese: the same headings, blocks, tables, names and figures."""

import re

import pytest

from pages import README, blocks_of
from running import ROOT

CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
# What is written otherwise in Chinese: 3.3 billion is 33 times a hundred million.
SAME_FIGURE = {"33": "3.3"}


def sections(text):
    """(level of the heading, text below it up to the next heading, without fenced blocks)."""
    text = re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^(#+) .*$", text, flags=re.MULTILINE)
    return list(zip(map(len, parts[1::2]), parts[2::2], strict=True))


PAIRS = list(zip(sections(README), sections(CHINESE), strict=False))


def test_headings_are_as_many():
    assert [level for level, _ in sections(CHINESE)] == [level for level, _ in sections(README)]


def test_blocks_are_the_same():
    """All that is typed or printed; of the tree of files, the names."""

    def content(block):
        is_tree = block.text.startswith("run_*.py")
        return block.language, re.sub(r" {2,}.*", "", block.text) if is_tree else block.text

    assert list(map(content, blocks_of("README.zh-CN.md"))) == list(map(content, blocks_of("README.md")))


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=[str(index) for index in range(len(PAIRS))])
def test_names_and_figures_are_the_same(english, chinese):
    """In every section: code, targets of links, numbers, and the rows of tables."""
    assert set(re.findall(r"`[^`]+`", chinese[1])) == set(re.findall(r"`[^`]+`", english[1]))
    for pattern in (r"\]\((?!README)([^)#]+)\)", r"^\| (`[^`]+`) \|"):
        assert re.findall(pattern, chinese[1], re.MULTILINE) == re.findall(pattern, english[1], re.MULTILINE)
    assert chinese[1].count("\n|") == english[1].count("\n|")
    assert figures(chinese[1]) == figures(english[1])


def figures(text):
    """The numbers of a text outside of code, sorted."""
    found = re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", re.sub(r"`[^`]+`|\]\([^)]*\)", "", text))
    return sorted(SAME_FIGURE.get(figure, figure) for figure in found)
