"""Finds and opens input files. Reading a pipe that nobody writes to is an error, not an endless wait."""

import contextlib
import errno
import glob
import json
import os
import select
import stat

from system.errors import UserError

# A pipe without data for this long counts as a pipe without a writer.
PIPE_SECONDS = 30


def open_input(path, mode="r", **arguments):
    """Opens a file, or a pipe that has a writer, for reading, like `open`. Raises OSError for anything else.

    A pipe without a writer would block forever, and a device such as /dev/zero would fill the memory. Text is UTF-8
    unless `encoding` is given; a byte order mark is skipped.
    """
    if "b" not in mode:
        arguments.setdefault("encoding", "utf-8-sig")
    return open(path, mode, opener=_open, **arguments)


@contextlib.contextmanager
def reading(name, kind="file"):
    """Turns an error of reading a file or folder within the block into a UserError.

    `name` is its path or `--flag=path`, `kind` the expected kind: "file" or "folder".
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{name}: {_describe(error, kind)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None


def _describe(error, kind):
    if kind == "folder" and isinstance(error, NotADirectoryError):
        return "is a file; give a folder"
    if kind == "file" and isinstance(error, IsADirectoryError):
        return "is a folder; give a file"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"there is no such {kind}"
    return f"cannot be read: {error.strerror or error}"


def _open(path, flags):
    # Without O_NONBLOCK, opening a pipe without a writer blocks.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(kind):
            if not select.select([descriptor], [], [], PIPE_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing has come through this pipe for {PIPE_SECONDS} seconds", path)
            os.set_blocking(descriptor, True)
        # open() reports a folder itself.
        elif not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def find_files(flag, patterns):
    """Returns the files that match `patterns`, in the order given, the matches of a pattern sorted, without duplicates.

    Each item of `patterns` is a comma-separated list of paths or globs. Raises UserError, naming the flag, if a pattern
    matches no file, a file is not readable, or there is no pattern.
    """
    paths = []
    for pattern in filter(None, ",".join(patterns).split(",")):
        found = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))
        if not found:
            is_folder = os.path.isdir(pattern)
            advice = "is a folder; give files: names or patterns" if is_folder else "there is no such file"
            raise UserError(f"{flag}={pattern}: {advice}")
        paths += found
        for path in found:
            if not os.access(path, os.R_OK):
                raise UserError(f"{flag}={path}: cannot be read: {os.strerror(errno.EACCES)}")
    if not paths:
        raise UserError(f"{flag} names no file; give names or patterns, separated by commas")
    return list(dict.fromkeys(paths))


def read_json(path, **load_arguments):
    """Returns the content of a JSON file; `load_arguments` go to json.load. Raises UserError for any fault."""
    try:
        with reading(path), open_input(path) as file:
            return json.load(file, **load_arguments)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
