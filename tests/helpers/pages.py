"""Reads the fenced blocks of the README and other pages, with the headings above them."""

import re
from typing import NamedTuple

from running import ROOT

README = (ROOT / "README.md").read_text()
# In the order in which a reader runs them: docs/squad.md uses output of the README's commands.
PAGES = ["README.md", "docs/squad.md"]
PAGES += sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    if path.relative_to(ROOT).as_posix() not in (*PAGES, "README.zh-CN.md")
)


class Block(NamedTuple):
    """A fenced block: its page, the line it begins at, the heading above it, its language and its text."""

    page: str
    line: int
    heading: str
    language: str
    text: str


def blocks_of(page):
    """Returns the Blocks of a page, a Markdown file with a path relative to the root."""
    heading, begin, language = "", 0, None
    found, lines = [], []
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if language is None:
            if match := re.match(r"#+ (.*)", line):
                heading = match[1]
            elif match := re.match(r" *```(\w*)$", line):
                language, begin, lines = match[1], number, []
        elif line == "```":
            found.append(Block(page, begin, heading, language, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    assert language is None, f"{page}: the block at line {begin} does not end"
    return found


def commands(text):
    """Returns the command lines of shell text, with continued lines joined."""
    return text.replace("\\\n", " ").splitlines()
