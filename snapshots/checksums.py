"""Checksums of a snapshot's variables, to detect damage.

    <snapshot>/<variable>/sha256   SHA-256 of the variable's `out`, in the format of sha256sum; may be missing
    <snapshot>/snapshot_done       the checksums of all variables; empty in snapshots without checksums

`cp -R` of a variable copies its checksum too. Copying a snapshot without checksums over another one leaves the old
`sha256` files, but brings an empty `snapshot_done`, which says to ignore them.

The train step has no checksum, because users edit it.
"""

import hashlib
import os
import re
from pathlib import Path

from system.errors import UserError
from system.input_files import open_input, reading

CHECKSUM_FILE = "sha256"

_WITHOUT_CHECKSUM = "System-Train-"
_LINE = re.compile(r"([0-9a-f]{64})  (.*)")
_LARGEST_FILE = 1024  # bytes; it holds one line
_LARGEST_LIST = 1 << 26  # characters
_BLOCK = 1 << 20  # bytes


def has_checksum(name):
    """Whether the variable `name` gets a checksum."""
    return not name.startswith(_WITHOUT_CHECKSUM)


def line(digest, path):
    """Returns a line in the format of `sha256sum`; `digest` is in hexadecimal."""
    return f"{digest}  {path}\n"


def recorded(folder, names, list_file, data_file):
    """Returns name -> set of the digests that the snapshot `folder` records for that variable's `data_file`.

    The values must match one of them: after copying over another snapshot, a variable's own checksum and the one in
    `list_file` may differ. Omits variables without a checksum. Returns {} if `list_file` lists none, because the
    checksums beside the variables may then belong to overwritten values. Raises UserError, naming the variable, if a
    checksum is damaged.
    """
    folder = Path(folder)
    path = folder / list_file
    damaged = UserError(f"{path}: its list of checksums is damaged; empty the file to skip them")
    with reading(path), open_input(path) as file:
        try:
            listed = [_LINE.fullmatch(text) for text in file.read(_LARGEST_LIST).splitlines()]
        except UnicodeDecodeError:
            raise damaged from None
    of_path = {match[2]: match[1] for match in listed if match}
    if not of_path:
        return {}
    if not all(listed):
        raise damaged
    digests = {}
    for name in filter(has_checksum, names):
        found = {_read_own(folder / name, data_file), of_path.get(f"{name}/{data_file}")} - {None}
        if found:
            digests[name] = found
    return digests


def _read_own(variable, data_file):
    """Returns the digest in the checksum file of the folder `variable`, or None if it has none."""
    path = variable / CHECKSUM_FILE
    if not os.path.lexists(path):
        return None
    with reading(path), open_input(path, "rb") as file:
        text = file.read(_LARGEST_FILE)
    match = _LINE.fullmatch(text.decode("utf-8", "replace").rstrip("\n"))
    if match is None or match[2] != data_file:
        raise UserError(f"{variable}: its checksum, the file {CHECKSUM_FILE}, is damaged; --skip_checksums loads it")
    return match[1]


def check(digest, digests, variable):
    """Raises UserError unless `digest`, computed from the values in the folder `variable`, is one of `digests`."""
    if digest not in digests:
        raise UserError(
            f"{variable}: the values are not those that were saved: they do not have the checksum in {CHECKSUM_FILE}; "
            "copy the snapshot again or use an older one, or give --skip_checksums to load it anyway"
        )


def of_file(path):
    """Returns the SHA-256 of the file `path` in hexadecimal."""
    digest = hashlib.sha256()
    with reading(path), open_input(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
