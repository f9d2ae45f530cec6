"""argparse as every script of the suite uses it: grouped help with defaults, booleans, one-line errors."""

import argparse
import difflib
import importlib.metadata
import platform
import re
import shutil
import sys

from system.errors import STATUS_BAD_INPUT, one_line

VERSION = "0.1.0"  # as in CHANGELOG.md

_FLAG = re.compile(r"--?[A-Za-z][\w-]*")
_HOME = re.compile(r"~[\w.-]*(/|$)")
_SMALLEST_FLOAT32 = 2.0**-126  # of the normal ones


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            engine = f"OneFlow {importlib.metadata.version('oneflow')}"
        except importlib.metadata.PackageNotFoundError:
            engine = "no OneFlow"
        print(f"{parser.prog} {VERSION} ({engine}, Python {platform.python_version()})")
        parser.exit()


class _HelpFormatter(argparse.HelpFormatter):
    """Shows every default, and keeps to the width of the terminal, at most 100 columns."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns or 80, 100) - 2)

    def _get_help_string(self, action):
        has_default = action.option_strings and not action.required
        if not has_default or action.default in (None, argparse.SUPPRESS) or "(default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose usage errors are one line, with exit status 2, and which expands no abbreviations."""

    def __init__(self, **arguments):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **arguments)
        self.add_argument("--version", action=_Version, help="say which version this is, and end")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, but an empty value, `--flag=--`, a `~` and a flag that does not exist are errors.

        An unset variable of a shell gives an empty value, which as a path would be the folder one is in. Of `--flag=--`
        argparse makes an empty list. A shell expands no `~` behind `=`, so that it would be the name of a folder. What
        is missing because its flag is misspelt would be told, but not the misspelling.
        """
        args = sys.argv[1:] if args is None else list(args)
        for before, argument in zip(["", *args], args, strict=False):
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
            if (equals and value in ("", "--")) or argument == "":
                self.error(f"argument {flag}: '{value}' is no value")
            if (equals or flag is before) and any(map(_HOME.match, value.split(","))):
                self.error(f"argument {flag}: '{value}': the shell has left ~ as it is; write $HOME in its place")
        if self._subparsers is None:
            self._refuse_unknown_flags(args[: args.index("--")] if "--" in args else args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown_flags(self, args):
        known = self._option_string_actions
        for argument in args:
            flag = argument.partition("=")[0]
            if not _FLAG.fullmatch(flag) or flag in known:
                continue
            written = f"--{flag.lstrip('-').replace('-', '_')}"
            similar = [written] if written in known else difflib.get_close_matches(written, known, 1)
            advice = f"; did you mean {similar[0]}?" if similar else ""
            self.error(f"there is no flag {flag}{advice}")

    def exit(self, status=0, message=None):
        """As argparse's, but --help that cannot be written is an error, not lost."""
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, text):
        """Says in one line what is wrong with the usage, and exits with status 2."""
        print(one_line(f"{self.prog}: error: {text}; see {self.prog} --help"), file=sys.stderr)
        sys.exit(STATUS_BAD_INPUT)


def add_bool(group, name, default=False, help=""):
    """Adds a boolean flag that may be given as `--name`, `--name True` or `--name=False`."""
    group.add_argument(name, type=parse_bool, nargs="?", const=True, default=default, metavar="BOOL", help=help)


def parse_bool(text):
    """True or False for the spellings people use; argparse's type for boolean flags."""
    if text.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def positive_int(text):
    """argparse's type for a whole number of at least 1 that OneFlow can take."""
    return _number(text, int, lambda value: 1 <= value < 2**31, "a whole number of at least 1 and below 2^31")


def batch_count(text):
    """argparse's type for a whole number of at least 0 that OneFlow can take."""
    return _number(text, int, lambda value: 0 <= value < 2**31, "a whole number of at least 0 and below 2^31")


def port_number(text):
    """argparse's type for a TCP port that any user may listen at, and the one above it."""
    return _number(text, int, lambda value: 1024 <= value < 65535, "a port from 1024 to 65534")


def non_negative_int(text):
    """argparse's type for a whole number of at least 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def non_negative_float(text):
    """argparse's type for a finite number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def positive_float(text):
    """argparse's type for a finite number above 0 that stays so in float32."""
    return _number(text, float, lambda value: _SMALLEST_FLOAT32 <= value < float("inf"), "a number above 0")


def finite_float(text):
    """argparse's type for a finite number of either sign."""
    return _number(text, float, lambda value: abs(value) < float("inf"), "a finite number")


def probability(text):
    """argparse's type for a number in [0, 1)."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def fraction(text):
    """argparse's type for a number in [0, 1]."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(text, kind, is_valid, description):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {description}")
    return value
