"""The fenced blocks of the README, in order, with the headings that they stand under."""

import re
from typing import NamedTuple

from running import ROOT

README = (ROOT / "README.md").read_text()


class Block(NamedTuple):
    """A fenced block: the line it begins at, the heading above it, its language and its text."""

    line: int
    heading: str
    language: str
    text: str


def blocks_of(text):
    """The Blocks of a Markdown text."""
    heading, begin, language = "", 0, None
    found, lines = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if language is None:
            if match := re.match(r"#+ (.*)", line):
                heading = match[1]
            elif match := re.match(r"```(\w+)$", line):
                language, begin, lines = match[1], number, []
        elif line == "```":
            found.append(Block(begin, heading, language, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    return found


def commands(text):
    """The command lines of shell text, continued lines joined."""
    return text.replace("\\\n", " ").splitlines()
