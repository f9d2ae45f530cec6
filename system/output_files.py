"""Files and folders that appear whole or not at all, and what they may replace."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from system.errors import FULL_DISK, UserError

# For renameat2.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_TEMPORARY = re.compile(r"\.(.+)\.[^.]+\.tmp", re.DOTALL)  # the name of a temporary neighbour, with that of its target


@contextlib.contextmanager
def atomic_file(path, mode="wb", **open_arguments):
    """Opens a temporary neighbour of `path` for writing and renames it to `path` when the block ends well.

    `mode` is "wb" or "w"; `open_arguments` go to open().
    Whatever stood at `path` stays as it is until then, also when the process is killed. A link stays one. Raises
    UserError for what is no file: the rename would do away with a device such as /dev/null.
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
    """Raises UserError, worded alike everywhere, where a file or folder cannot be written within the block.

    `name` is its path or `--flag=path`, `kind` says whether it should be a "file" or a "folder".
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
    """Raises UserError naming the flag if atomic_file cannot write `path`; leaves nothing behind."""
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
    """Gives a temporary neighbour of the folder `path` to fill; it takes the place of `path` when the block ends well.

    A folder that stood at `path` is exchanged in one step and removed afterwards: at every moment `path` is
    either the old folder or the new one, whole. All that is in it is on the disk before: it survives a power failure.
    """
    path = _with_name(Path(path))
    with temporary_folder(path) as temporary:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                sync(os.path.join(folder, name))
            sync(folder)
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def temporary_folder(path):
    """Gives a temporary neighbour of `path`, with the permissions that the umask gives; it is gone when the block ends.

    What killed processes have left of theirs is removed as well.
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
            # It stood at `path`, and has changed places with the folder; what it names stays.
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _temporary_neighbour(path):
    """The path of a hidden neighbour of `path` that is not there yet.

    Its name is known before it is made, as it is not by the functions of tempfile: a signal may come at any moment, and
    what has been made by then has to be removed.
    """
    return path.with_name(f".{path.name}.{secrets.token_urlsafe(6)}.tmp")


def _with_name(path):
    """The same path, by the name that it has in its parent: `.` and `..` are none."""
    return path if path.name not in ("", "..") else Path(os.path.realpath(path))


@contextlib.contextmanager
def _full_disk_at(path):
    """Adds `path` to the error of a full disk: the system does not say which file had no room."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK and error.filename is None:
            error.filename = str(path)
        raise


def remove_abandoned(folder, is_meant):
    """Removes the temporary folders that killed processes have left in `folder`, if it is there.

    `is_meant(name)` tells whether those are meant that were to become `name`.
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
                # A living process holds the lock of the folder that it is filling.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temporary)
            finally:
                os.close(lock)


def check_replaceable(folder, overwrite, marker):
    """Raises UserError if something stands at `folder` that is not to be replaced.

    With `overwrite` a folder may be replaced that holds the file `marker`, by which it is known to be such an output.
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
            raise UserError(f"{output}: would replace what it is made of; give another file")


def sync(path):
    """Makes what a file holds, or which names a folder has in it, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    try:
        os.rename(first, second)
    except BaseException:
        os.rename(aside, second)
        raise
    os.rename(aside, first)
