"""All that the suite can say of a run that is not as it should be, collected from its code.

A text has "…" where the code puts in a value. Of Python it is what is raised, what is given to the functions that print
a warning, a notice or a usage error, and sentences that functions return or collect in lists, which others build in; of
the kernels what their reader gives as a reason; of the shell scripts what they call an error.
"""

import ast
import itertools
import re
from typing import NamedTuple

from conftest import ROOT

ANY = "…"

_EXCEPTIONS = {"UserError", "RunError", "Signalled", "StoppedTogether", "OSError", "_NotAvailableError", "_UnfitError"}
# Those that begin and end what argparse says; command_line.ArgumentParser.error adds the end.
_USAGE = {"ArgumentTypeError", "error"}
_PRINTERS = {"print_warning", "warning_line", "_warn", "_end", "__init__"}


class Message(NamedTuple):
    """A text, the file that says it, and whether it does so as a plain line of its output: no trouble, as a rule."""

    text: str
    file: str
    is_output: bool


def all_messages():
    """The messages of the whole suite."""
    found = []
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")]):
        found += [(text, path.name, is_output) for text, is_output in _of_python(ast.parse(path.read_text()))]
    for path in sorted(ROOT.glob("kernels/*reader.cpp")):
        found += [(text, path.name, False) for text in _of_reader(path.read_text())]
    for path in sorted(ROOT.glob("scripts/*.sh")):
        found += [(text, path.name, False) for text in _of_shell(path.read_text())]
    messages = {Message(re.sub(f"{ANY}+", ANY, text.strip()), file, is_output) for text, file, is_output in found}
    # Without words of its own, or but for the place, a text is another one that is passed on.
    return sorted(it for it in messages if re.search("[A-Za-z]", it.text.removeprefix(f"{ANY}: the record at byte")))


def _of_python(tree):
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for scope in [tree, *functions]:
        assigned = _assigned_texts(scope)
        for node in _within(scope):
            yield from _said_by(node, assigned)


def _within(scope):
    """The nodes of a function or module but for those of the functions in it."""
    pending = list(ast.iter_child_nodes(scope))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            pending += ast.iter_child_nodes(node)


def _assigned_texts(scope):
    """name -> the expressions that a function or module makes it, or appends to it."""
    assigned = {}
    for node in _within(scope):
        if isinstance(node, ast.Assign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    assigned.setdefault(target.id, []).append(node.value)
    return assigned


def _said_by(node, assigned):
    """(text, whether it is plain output) of what a statement or call gives out."""
    if isinstance(node, ast.Call) and node.args:
        name = _name_of(node.func)
        texts = [text for argument in node.args for text in _texts(argument, assigned)]
        if name in _USAGE:
            yield from ((f"{text}; see {ANY} --help", False) for text in texts[:1])
        elif name in _EXCEPTIONS or name in _PRINTERS:
            yield from ((text, False) for text in texts)
        elif name == "append":
            yield from ((text, False) for text in texts if _is_sentence(text))
        elif name in ("print", "print_line"):
            yield from ((text, not text.startswith("Notice:")) for text in texts if _is_sentence(text))
    elif isinstance(node, ast.Return) and node.value is not None:
        yield from ((text, False) for text in _returned(node.value, assigned) if _is_sentence(text))
    elif isinstance(node, ast.Dict):
        named = [value for key, value in zip(node.keys, node.values, strict=True) if _is_reason(key)]
        yield from ((text, False) for value in named for text in _texts(value, assigned))


def _is_reason(key):
    return isinstance(key, ast.Constant) and key.value in ("stop", "reason")


def _returned(node, assigned):
    """The texts of a returned expression, or of what is in a returned tuple, list or dict."""
    if isinstance(node, ast.Tuple | ast.List):
        parts = node.elts
    elif isinstance(node, ast.Dict):
        parts = node.values
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    else:
        return _texts(node, assigned)
    return [text for part in parts for text in _returned(part, assigned)]


def _is_sentence(text):
    return len(re.findall(r"[A-Za-z]{2,}", text)) > 2


def _name_of(function):
    return getattr(function, "id", None) or getattr(function, "attr", None)


def _texts(node, assigned, within=()):
    """All that an expression can be as a text, as far as the function itself shows it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [_texts(part, assigned, within) for part in node.values]
        return ["".join(texts) for texts in itertools.product(*parts)]
    if isinstance(node, ast.Call) and _name_of(node.func) == "one_line":
        return _texts(node.args[0], assigned, within)
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, assigned, within)
    if isinstance(node, ast.IfExp | ast.BoolOp):
        parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
        return [text for part in parts for text in _texts(part, assigned, within)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        pairs = itertools.product(_texts(node.left, assigned, within), _texts(node.right, assigned, within))
        return ["".join(pair) for pair in pairs]
    if isinstance(node, ast.Name) and node.id in assigned and node.id not in within:
        values = [_texts(value, assigned, (*within, node.id)) for value in assigned[node.id]]
        return list(dict.fromkeys(itertools.chain.from_iterable(values)))
    return [ANY]


def _of_reader(code):
    """The texts of fail("a" + value + "b") and of fail_at(position, "..."), before which it puts the place."""
    for name, arguments in re.findall(r'\b(fail|fail_at)\(((?:"[^"]*"|[^";{])*)\);', code):
        if '"' not in arguments:
            continue
        # Of a choice, c ? "a" : "b", both.
        for choice in re.split(r" : ", re.split(r'\? (?=")', arguments)[-1]):
            pieces = [piece.strip(" \n()") for piece in re.split(r'("[^"]*")', choice)]
            text = "".join(piece[1:-1] if piece.startswith('"') else ANY for piece in pieces if piece)
            yield f"{ANY}: the record at byte {ANY}{text}" if name == "fail_at" else text


def _of_shell(code):
    """The texts of fail [STATUS] "..." "..." and echo "...: error: ..."."""
    code = re.sub(r"\$\([^()]*\)|\$\{[^}]*\}|\$\w+|\$\*", ANY, code.replace("\\\n", " "))
    for arguments in re.findall(r'\bfail ((?:\w+ )?(?:"[^"]*" *)+)', code):
        yield " ".join(re.findall(r'"([^"]*)"', arguments))
    yield from re.findall(r'echo "[\w.]+: error: ([^"]*)"', code)
