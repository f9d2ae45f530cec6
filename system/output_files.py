"""Writes files and folders atomically, and checks what they would replace."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from system.errors import FULL_DISK, UserError

# For renameat2.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_SYNCING_THREADS = 16

_TEMPORARY = re.compile(r"\.(.+)\.[^.]+\.tmp", re.DOTALL)  # a temporary name; the group is the target's name


@contextlib.contextmanager
def atomic_file(path, mode="wb", **open_arguments):
    """Opens a temporary file beside `path` for writing; renames it to `path` if the block succeeds.

    `mode` is "wb" or "w"; `open_arguments` go to open(). Until the rename `path` is untouched, even if the process is
    killed. A symbolic link is kept, and its target replaced. Raises UserError if `path` is not a file: the rename would
    replace a device such as /dev/null.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: exists and is not a file; give another one")
    target = Path(os.path.realpath(path))
    temporary = _temporary_neighbour(target)
    try:
        with _full_disk_at(path), open(temporary, mode.replace("w", "x"), **open_arguments) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(target.parent)


@contextlib.contextmanager
def writing(name, kind="file"):
    """Turns an OSError of writing a file or folder within the block into a UserError.

    `name` is its path or `--flag=path`, `kind` the expected kind: "file" or "folder".
    """
    try:
        yield
    except OSError as error:
        if kind == "file" and isinstance(error, IsADirectoryError):
            raise UserError(f"{name}: is a folder; give a file") from None
        if kind == "folder" and isinstance(error, FileExistsError):
            raise UserError(f"{name}: is a file; give a folder") from None
        raise UserError(f"{name}: cannot be written: {error.strerror}; give another {kind}") from None


def check_can_write(flag, path):
    """Raises UserError, naming the flag, if atomic_file cannot write `path`. Leaves no file behind."""
    temporary = _temporary_neighbour(Path(os.path.realpath(path)))
    try:
        with writing(f"{flag}={path}"):
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            open(temporary, "xb").close()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a temporary folder beside `path` to fill; it replaces `path` if the block succeeds.

    An existing folder is exchanged in one step and then removed: at every moment `path` is either the complete old
    folder or the complete new one. The files are synced before the exchange, so that they survive a power failure.
    """
    path = _with_name(Path(path))
    with temporary_folder(path) as temporary:
        yield temporary
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(temporary) for name in ("", *names)]
        # A file system commits together what is synced at the same time, so threads take a fraction of the time.
        with ThreadPoolExecutor(_SYNCING_THREADS) as threads:
            list(threads.map(sync, paths))
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def temporary_folder(path):
    """Yields a temporary folder beside `path`, with the permissions of the umask; removes it when the block ends.

    Also removes the temporary folders of killed processes.
    """
    path = _with_name(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name.__eq__)
    temporary = _temporary_neighbour(path)
    lock = None
    try:
        temporary.mkdir()
        lock = os.open(temporary, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _full_disk_at(path):
            yield temporary
    finally:
        if temporary.is_symlink():
            # A link that was exchanged with the folder; its target stays.
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _temporary_neighbour(path):
    """Returns a new hidden path beside `path`.

    tempfile chooses the name while it creates the file. Here the name is known before, so that a signal at any moment
    leaves no file that nobody removes.
    """
    return path.with_name(f".{path.name}.{secrets.token_urlsafe(6)}.tmp")


def _with_name(path):
    """Returns the path with a real last component, instead of `.` or `..`."""
    return path if path.name not in ("", "..") else Path(os.path.realpath(path))


@contextlib.contextmanager
def _full_disk_at(path):
    """Adds `path` to the error of a full disk, which comes without a file name."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK and error.filename is None:
            error.filename = str(path)
        raise


def remove_abandoned(folder, is_meant):
    """Removes the temporary folders of killed processes from `folder`, if it exists.

    `is_meant(name)` says whether to remove those that were to become `name`.
    """
    entries = []
    with contextlib.suppress(OSError):
        entries = os.listdir(folder)
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry)
        if match is None or not is_meant(match[1]):
            continue
        temporary = os.path.join(folder, entry)
        with contextlib.suppress(OSError):
            lock = os.open(temporary, os.O_RDONLY)
            try:
                # A running process holds the lock of its temporary folder.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temporary)
            finally:
                os.close(lock)


def check_replaceable(folder, overwrite, marker):
    """Raises UserError if `folder` exists, unless `overwrite` is set and the folder holds the file `marker`.

    The marker shows that the folder is an earlier output of the same tool.
    """
    if folder and not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder}: exists already; give another folder, or --overwrite to replace it")
    if not os.path.isfile(os.path.join(folder, marker)):
        raise UserError(f"{folder}: has no file {marker}, so --overwrite does not replace it; give another folder")


def check_is_no_input(output, inputs):
    """Raises UserError if writing the file `output` would replace one of the paths `inputs`."""
    for path in inputs:
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise UserError(f"{output}: would replace its own input; give another file")


def sync(path):
    """Writes a file's data, or a folder's entries, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first, second):
    """Swaps two paths in one step (renameat2), or by three renames where the file system lacks that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(second))
    aside = first.with_name(first.name + ".old")
    os.rename(second, aside)
    try:
        os.rename(first, second)
    except BaseException:
        os.rename(aside, second)
        raise
    os.rename(aside, first)
