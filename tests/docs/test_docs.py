"""docs/ and the other pages tell the truth about the code: its layers, and the files that they point to."""

import ast
import re

import pytest

from conftest import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def modules_used_by(path):
    """The modules that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_layers_are_those_of_the_imports():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [\w ]+ \| (`.*) \|$", page, re.MULTILINE)
    layer_of = {}
    for layer, cell in enumerate(rows):
        for name in re.findall(r"`([^`]+)`", cell):
            for path in sorted((ROOT / name).glob("*.py")) if name.endswith("/") else [ROOT / name]:
                layer_of[path] = layer
    assert set(layer_of) == {*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")}
    layer_of_module = {path.stem: layer for path, layer in layer_of.items()}
    upward = [
        f"{path.name} uses {module}"
        for path, layer in layer_of.items()
        for module in modules_used_by(path)
        if layer_of_module.get(module, layer) < layer
    ]
    assert upward == []


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


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")], ids=lambda path: path.name)
def test_public_functions_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert list(undocumented(tree.body, "")) == []


def errors_raised_by(function):
    """The names of the suite's own errors that a function raises itself."""
    raised = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise))
    names = {call.func.id for call in raised if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return names & {"UserError", "RunError"}


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")], ids=lambda path: path.name)
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
    for name in re.findall(r"`((?:tests|tools|kernels|benchmarks|scripts|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists() or name.startswith("kernels/build/"), name
