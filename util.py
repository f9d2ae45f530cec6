"""What every script of the suite shares: one-line errors, exit statuses and files that appear whole."""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

STATUS_FAILURE = 1
STATUS_BAD_INPUT = 2


class UserError(Exception):
    """Bad usage or bad input. Its text is the one line the user sees; the exit status is 2."""


class RunError(Exception):
    """A run that could not be completed although its input was good (disk full, say). Exit status 1."""


def run_script(main):
    """Runs `main()` and exits: 0, 1 or 2 as CONTRIBUTING says, with one line on stderr if it failed.

    `main` returns None or an exit status.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        status = _report(error, STATUS_BAD_INPUT)
    except RunError as error:
        status = _report(error, STATUS_FAILURE)
    except KeyboardInterrupt:
        status = _report("interrupted", 128 + 2)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). Nothing can be written any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = STATUS_FAILURE
    except OSError as error:
        status = _report(describe_os_error(error), STATUS_FAILURE)
    sys.exit(status)


def _report(error, status):
    sys.stdout.flush()
    line = " ".join(str(error).split())
    print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr, flush=True)
    return status


def describe_os_error(error):
    """`No space left on device: path/of/file` for an OSError."""
    text = error.strerror or str(error)
    return f"{text}: {error.filename}" if error.filename else text


@contextlib.contextmanager
def atomic_file(path, mode="wb", **open_arguments):
    """Opens a temporary neighbour of `path` for writing and renames it to `path` when the block ends well.

    Whatever stood at `path` stays as it is until then, also when the process is killed.
    """
    path = Path(path)
    # O_EXCL keeps two processes apart; 0o666 leaves the permissions to the user's umask.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with open(descriptor, mode, **open_arguments) as file:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
