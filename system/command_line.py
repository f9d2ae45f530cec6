"""argparse for all scripts: help with defaults, boolean flags, one-line errors."""

import argparse
import difflib
import platform
import re
import shutil
import sys

from system.errors import STATUS_BAD_INPUT, one_line

VERSION = "0.1.0"  # as in CHANGELOG.md

_FLAG = re.compile(r"--?[A-Za-z][\w-]*")
_HOME = re.compile(r"~[\w.-]*(/|$)")
SMALLEST_FLOAT32 = 2.0**-126  # of the normal ones


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        import importlib.metadata  # takes 0.06 seconds, and only --version needs it

        try:
            engine = f"OneFlow {importlib.metadata.version('oneflow')}"
        except importlib.metadata.PackageNotFoundError:
            engine = "no OneFlow"
        print(f"{parser.prog} {VERSION} ({engine}, Python {platform.python_version()})")
        parser.exit()


class _HelpFormatter(argparse.HelpFormatter):
    """Shows every default; wraps at the width of the terminal, at most 100 columns."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns or 80, 100) - 2)

    def _get_help_string(self, action):
        has_default = action.option_strings and not action.required
        if not has_default or action.default in (None, argparse.SUPPRESS) or "(default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser without abbreviations, whose usage errors are one line and exit with status 2."""

    def __init__(self, **arguments):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **arguments)
        # argparse takes -1e-3 and -1,-2 for flags.
        self._negative_number_matcher = re.compile(r"-[\d.]")
        self.add_argument("--version", action=_Version, help="show the version and exit")

    def parse_known_args(self, args=None, namespace=None):
        """Parses like argparse, but an empty value, `--flag=--`, a leading `~` and an unknown flag are errors.

        An unset shell variable gives an empty value, which as a path is the current folder. argparse turns `--flag=--`
        into an empty list. The shell does not expand `~` after `=`. For a misspelt required flag argparse would only
        report that the flag is missing.
        """
        args = sys.argv[1:] if args is None else list(args)
        for before, argument in zip(["", *args], args, strict=False):
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
            if (equals and value in ("", "--")) or argument == "":
                self.error(f"argument {flag}: '{value}' is not a value")
            if (equals or flag is before) and any(map(_HOME.match, value.split(","))):
                self.error(f"argument {flag}: '{value}': the shell does not expand ~ here; write $HOME instead")
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
        """Exits like argparse, but fails if the help text cannot be written."""
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, text):
        """Prints one line about the usage error and exits with status 2."""
        print(one_line(f"{self.prog}: error: {text}; see {self.prog} --help"), file=sys.stderr)
        sys.exit(STATUS_BAD_INPUT)


def add_bool(group, name, default=False, help=""):
    """Adds a boolean flag that may be given as `--name`, `--name True` or `--name=False`."""
    group.add_argument(name, type=parse_bool, nargs="?", const=True, default=default, metavar="BOOL", help=help)


def parse_bool(text):
    """Parses a boolean flag: true, t, yes, y, 1 or false, f, no, n, 0, in any case."""
    if text.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def positive_int(text):
    """Parses a whole number from 1 to 2^31 - 1, OneFlow's limit."""
    return _number(text, int, lambda value: 1 <= value < 2**31, "a whole number of at least 1 and below 2^31")


def batch_count(text):
    """Parses a whole number from 0 to 2^31 - 1, OneFlow's limit."""
    return _number(text, int, lambda value: 0 <= value < 2**31, "a whole number of at least 0 and below 2^31")


def port_number(text):
    """Parses an unprivileged TCP port whose successor is a port too."""
    return _number(text, int, lambda value: 1024 <= value < 65535, "a port from 1024 to 65534")


def non_negative_int(text):
    """Parses a whole number of at least 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def non_negative_float(text):
    """Parses a finite number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def positive_float(text):
    """argparse's type for a finite number above 0 that stays so in float32."""
    return _number(text, float, lambda value: SMALLEST_FLOAT32 <= value < float("inf"), "a number above 0")


def finite_float(text):
    """Parses a finite number."""
    return _number(text, float, lambda value: abs(value) < float("inf"), "a finite number")


def probability(text):
    """Parses a number in [0, 1)."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def fraction(text):
    """Parses a number in [0, 1]."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(text, kind, is_valid, description):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {description}")
    return value


# What stands for a value in the help; for all others N.
_METAVARS = {
    probability: "P",
    fraction: "P",
    **dict.fromkeys((finite_float, non_negative_float, positive_float), "X"),
}


def add_number(group, name, kind, default, help, metavar=None):
    """Adds a flag with a number. `kind` parses it: one of the functions above, or int."""
    group.add_argument(name, type=kind, default=default, metavar=metavar or _METAVARS.get(kind, "N"), help=help)
