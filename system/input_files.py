"""Finding and opening files that users name, or that lie in folders they name: nobody waits forever for a pipe."""

import contextlib
import errno
import glob
import json
import os
import select
import stat

from system.errors import UserError

# Nothing may come through a pipe for so long at first; then it counts as one that nobody writes into.
PIPE_SECONDS = 30


def open_input(path, mode="r", **arguments):
    """Opens `path` for reading as `open` does; raises OSError for what is neither a file nor a pipe that is written to.

    A pipe without a writer would keep a reader waiting, and a device such as /dev/zero would fill the memory. Text is
    UTF-8 unless `encoding` says otherwise, without the byte order mark that some editors write before it.
    """
    if "b" not in mode:
        arguments.setdefault("encoding", "utf-8-sig")
    return open(path, mode, opener=_open, **arguments)


@contextlib.contextmanager
def reading(name, kind="file"):
    """Raises UserError, worded alike everywhere, where a file or folder cannot be read within the block.

    `name` is its path or `--flag=path`, `kind` says whether it should be a "file" or a "folder".
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
    # Without O_NONBLOCK a pipe that nobody writes into could not even be opened.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(kind):
            if not select.select([descriptor], [], [], PIPE_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing has come through this pipe for {PIPE_SECONDS} seconds", path)
            os.set_blocking(descriptor, True)
        # What open() itself says about a folder is clear.
        elif not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def find_files(flag, patterns):
    """The files that `patterns` stand for, a list of paths: in the order given, those of a pattern sorted, none twice.

    Each of `patterns` may be several, separated by commas. Raises UserError, naming the flag, where one stands for no
    file, a file cannot be read, or there is no pattern.
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
    """The content of a JSON file; `load_arguments` go to json.load. Raises UserError, whatever is wrong with it."""
    try:
        with reading(path), open_input(path) as file:
            return json.load(file, **load_arguments)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
