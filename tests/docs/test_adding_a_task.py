"""docs/adding-a-task.md shows the code of the project as it is."""

from pages import blocks_of
from running import ROOT


def test_the_code_is_that_of_the_project():
    files = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    code = {path: path.read_text() for path in files}
    blocks = [block.text for block in blocks_of("docs/adding-a-task.md") if block.language == "python"]
    assert len(blocks) == 4
    for block in blocks:
        assert [path for path, text in code.items() if block in text] != [], block
