"""Checksums of a snapshot's variables: what is loaded is what was saved.

    <snapshot>/<variable>/sha256   SHA-256 of the variable's `out`, as sha256sum writes it; may be missing
    <snapshot>/snapshot_done       the same of all variables that have one; empty in snapshots without checksums

`cp -R` of a variable carries its checksum along. The list in `snapshot_done` is for copies over another snapshot: they
leave the old checksum beside a variable that had none of its own, and bring their own `snapshot_done`.

The train step has none, for users edit it.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from system.errors import UserError
from system.input_files import open_input, reading

CHECKSUM_FILE = "sha256"

_WITHOUT_CHECKSUM = "System-Train-"
_LINE = re.compile(r"([0-9a-f]{64})  (.*)")
_LARGEST_FILE = 1024  # bytes; it holds a line
_LARGEST_LIST = 1 << 26  # characters
_BLOCK = 1 << 20  # bytes


def has_checksum(name):
    """Whether the variable `name` gets a checksum when it is saved."""
    return not name.startswith(_WITHOUT_CHECKSUM)


def line(digest, path):
    """A line as `sha256sum` writes it and `sha256sum --check` reads it; `digest` is in hexadecimal digits."""
    return f"{digest}  {path}\n"


def recorded(folder, names, list_file, data_file):
    """name -> the set of digests that the snapshot `folder` records for the values of that variable, its `data_file`.

    The values must have one of them: after a copy over another snapshot, a variable's own checksum and the one in the
    snapshot's `list_file` may differ. Only those of the variables `names` are given that have a checksum, and none if
    `list_file` lists none: then the checksums beside the variables may be those of what they were copied over.
    Raises UserError naming a variable whose checksum is damaged.
    """
    folder = Path(folder)
    with _read_errors(folder / list_file), open_input(folder / list_file) as file:
        listed = [_LINE.fullmatch(text) for text in file.read(_LARGEST_LIST).splitlines()]
    of_path = {match[2]: match[1] for match in listed if match}
    if not of_path:
        return {}
    if not all(listed):
        raise UserError(f"{folder / list_file}: its list of checksums is damaged; empty it to do without")
    digests = {}
    for name in filter(has_checksum, names):
        found = {_read_own(folder / name, data_file), of_path.get(f"{name}/{data_file}")} - {None}
        if found:
            digests[name] = found
    return digests


def _read_own(variable, data_file):
    """The digest in the checksum file of the folder `variable`, None if it has none."""
    path = variable / CHECKSUM_FILE
    with _read_errors(path):
        if not os.path.lexists(path):
            return None
        with open_input(path, "rb") as file:
            text = file.read(_LARGEST_FILE)
    match = _LINE.fullmatch(text.decode("utf-8", "replace").rstrip("\n"))
    if match is None or match[2] != data_file:
        raise UserError(f"{variable}: its checksum, the file {CHECKSUM_FILE}, is damaged; --skip_checksums loads it")
    return match[1]


def check(digest, digests, variable):
    """Raises UserError unless `digest`, that of the values of the folder `variable`, is one of `digests`."""
    if digest not in digests:
        raise UserError(
            f"{variable}: the values are not those that were saved: they do not have the checksum in {CHECKSUM_FILE}; "
            "copy the snapshot anew or go back to an older one, or give --skip_checksums to load it all the same"
        )


def of_file(path):
    """The digest of the content of the file `path`, in hexadecimal digits."""
    digest = hashlib.sha256()
    with _read_errors(path), open_input(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _read_errors(path):
    with reading(path):
        try:
            yield
        except UnicodeDecodeError:
            raise UserError(f"{path}: its list of checksums is damaged; empty it to do without") from None
