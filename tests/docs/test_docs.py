"""docs/ and the other pages tell the truth about the code: who imports whom, and the files that they point to."""

import ast
import re

import pytest

from running import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


ROOMS = ("system", "text", "snapshots", "engine", "ranks", "records", "training", "inference", "tools")
FILES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in ROOT.glob(f"{room}/*.py"))]


def place_of(path):
    """The row of the table of imports that a file belongs to."""
    folder = path.parent.relative_to(ROOT).as_posix()
    if folder != ".":
        return f"{folder}/"
    if path.name in table():
        return path.name
    return "scripts"


def table():
    """place -> the places that it may import, from the table in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    _, section = page.split("| who | may import |\n| --- | --- |\n")
    rows = [line.strip("|").split("|") for line in section.split("\n\n")[0].splitlines()]
    cells = [[re.findall(r"`([^`]+)`|(scripts)", cell) for cell in row] for row in rows]
    return {place: {a or b for a, b in allowed} for places, allowed in cells for place in [a or b for a, b in places]}


def imported_by(path):
    """The files of the suite that a file imports, at its top, within functions or by LazyModule."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LazyModule":
            names = [node.args[0].value]
        for name in names:
            for folder in (ROOT, path.parent):
                if (file := folder / f"{name.replace('.', '/')}.py").is_file():
                    yield file


def test_imports_are_those_of_the_table():
    allowed = table()
    assert {place_of(path) for path in FILES} == set(allowed)
    wrong = []
    for path in FILES:
        place = place_of(path)
        for imported in imported_by(path):
            other = place_of(imported)
            if other != place and other not in allowed[place] or (place == "scripts" == other and imported != path):
                wrong.append(f"{path.relative_to(ROOT)} imports {imported.relative_to(ROOT)}")
    assert wrong == []


def test_the_root_holds_scripts_and_models_only():
    scripts = {path.name for path in ROOT.glob("*.py") if path.read_text().rstrip().endswith("run_script(main)")}
    others = {path.name for path in ROOT.glob("*.py")} - scripts
    assert others == {"bert_util.py", "pretrain.py", "squad.py", "classifier.py", "config.py", "util.py"}


def undocumented(body, prefix):
    """The public functions, classes and methods of a file that have no docstring; a script's main needs none."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{prefix}{node.name}"
        if ast.get_docstring(node) is None and node.name not in ("main", "parse_arguments"):
            yield name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{name}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_functions_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert list(undocumented(tree.body, "")) == []


def errors_raised_by(function):
    """The names of the suite's own errors that a function raises itself."""
    raised = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise))
    names = {call.func.id for call in raised if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return names & {"UserError", "RunError"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_tell_which_errors_are_raised(path):
    tree = ast.parse(path.read_text())
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)]
    functions = [node for scope in scopes for node in scope.body if isinstance(node, ast.FunctionDef)]
    public = [node for node in functions if not node.name.startswith("_") and ast.get_docstring(node)]
    assert [
        f"{function.name}: {error}"
        for function in public
        for error in errors_raised_by(function)
        if error not in ast.get_docstring(function)
    ] == []


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_whole(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = table.splitlines()
        assert re.fullmatch(r"\|( -+:? \|)+", rows[1]), f"{rows[0]}: the second line separates no columns"
        counts = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in rows}
        assert len(counts) == 1, f"{rows[0]}: rows of {counts} columns"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / name if name else ROOT / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    """In pages about the code as it is; the changelog may tell of files that have gone."""
    if page == "CHANGELOG.md":
        pytest.skip("tells of the past")
    text = (ROOT / page).read_text()
    folders = "|".join([*ROOMS, "make", "tests", "kernels", "benchmarks", "scripts", "docs"])
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists() or name.startswith("kernels/build/"), name
