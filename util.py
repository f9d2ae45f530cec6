"""What every script of the suite shares: one-line errors, exit statuses and files that appear whole."""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

STATUS_FAILURE = 1
STATUS_BAD_INPUT = 2

_LONGEST_LINE = 2000  # characters
# What OneFlow says, among other things, where it gets no memory.
_ENGINE_OUT_OF_MEMORY = "allocate failed"


class UserError(Exception):
    """Bad usage or bad input. Its text is the one line the user sees; the exit status is 2."""


class RunError(Exception):
    """A run that could not be completed although its input was good (disk full, say). Exit status 1."""


class Signalled(BaseException):
    """A signal ends this run: one that this process was sent or, with a `text` that tells, another. Status 128 + it."""

    def __init__(self, number, text=None):
        super().__init__(text or f"ended by {signal.Signals(number).name}")
        self.number = number
        self.is_own = text is None


def run_script(main):
    """Runs `main()` and exits: 0, 1 or 2 as CONTRIBUTING says, with one line on stderr if it failed.

    `main` returns None or an exit status.
    """
    _open_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files, and text of the data, may hold what the terminal's encoding has no characters for.
        sys.stdout.reconfigure(errors="backslashreplace")
    status, error = outcome_of(main)
    if error is not None:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr, flush=True)
    sys.exit(status)


def _open_closed_streams():
    """Opens the null device where this process was started without a standard input, output or error (`>&-`).

    The next file that is opened would get the number, and what libraries say would be written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number is this one, since those before it are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))


def outcome_of(function):
    """(exit status, None or what went wrong, as one line) of `function()`, which returns None or an exit status."""
    try:
        status = function() or 0
        sys.stdout.flush()
        return status, None
    except UserError as error:
        return STATUS_BAD_INPUT, one_line(error)
    except RunError as error:
        return STATUS_FAILURE, one_line(error)
    except Signalled as signalled:
        return 128 + signalled.number, one_line(signalled)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted"
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). Nothing can be written any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_FAILURE, None
    except MemoryError as error:
        return STATUS_FAILURE, one_line(f"out of memory {error}")
    except OSError as error:
        return STATUS_FAILURE, one_line(describe_os_error(error))
    except RuntimeError as error:
        if _ENGINE_OUT_OF_MEMORY not in str(error):
            raise
        return STATUS_FAILURE, "out of memory: OneFlow cannot allocate what the model and a batch of it take"


def one_line(text):
    """`text` on one line, without characters that a terminal would not print but obey, and not endless."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."


def describe_os_error(error):
    """`path/of/file: No space left on device` for an OSError."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


@contextlib.contextmanager
def atomic_file(path, mode="wb", **open_arguments):
    """Opens a temporary neighbour of `path` for writing and renames it to `path` when the block ends well.

    Whatever stood at `path` stays as it is until then, also when the process is killed.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.fchmod(descriptor, 0o666 & ~_umask())
    try:
        with _full_disk_at(path), open(descriptor, mode, **open_arguments) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path):
    """Gives a temporary neighbour of the folder `path` to fill; it takes the place of `path` when the block ends well.

    A folder that stood at `path` is exchanged in one step and removed afterwards: at every moment `path` is
    either the old folder or the new one, whole.
    """
    path = Path(path)
    with temporary_folder(path) as temporary:
        yield temporary
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def temporary_folder(path):
    """Gives a temporary neighbour of `path`, with the permissions that the umask gives; it is gone when the block ends.

    What killed processes have left of theirs is removed as well.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, glob.escape(path.name))
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.chmod(temporary, 0o777 & ~_umask())
        with _full_disk_at(path):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _full_disk_at(path):
    """Adds `path` to the error of a full disk: the system does not say which file had no room."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(path)
        raise


def remove_abandoned(folder, pattern):
    """Removes the temporary folders that killed processes have left in `folder`, of names that match the pattern."""
    for temporary in Path(folder).glob(f".{pattern}.*.tmp"):
        with contextlib.suppress(OSError):
            lock = os.open(temporary, os.O_RDONLY)
            try:
                # A living process holds the lock of the folder that it is filling.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temporary)
            finally:
                os.close(lock)


def check_replaceable(folder, overwrite, marker):
    """Raises UserError if something stands at `folder` that is not to be replaced.

    With `overwrite` a folder may be replaced that holds the file `marker`, by which it is known to be such an output.
    """
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder}: exists already; give another folder, or --overwrite to replace it")
    if not os.path.isfile(os.path.join(folder, marker)):
        raise UserError(f"{folder}: has no file {marker}, so --overwrite does not replace it; give another folder")


def sync_folder(folder):
    """Makes renames within `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask():
    value = os.umask(0)
    os.umask(value)
    return value


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(first, second):
    """Swaps two paths in one step (renameat2), or in three renames on a file system that cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(second))
    aside = first.with_name(first.name + ".old")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)
