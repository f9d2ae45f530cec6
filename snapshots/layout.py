"""Snapshots on disk: one folder per variable, in the layout of legacy OneFlow checkpoints.

    <snapshot>/<variable>/out    the values, little-endian, in C order
    <snapshot>/<variable>/meta   shape and data type, as text protobuf (VariableMetaInfo); may be missing
    <snapshot>/<variable>/sha256 the checksum of `out`; may be missing
    <snapshot>/<variable>-m/of   SHA-256 of the variable's `out` that Adam's moments -m and -v belong to; may be missing
    <snapshot>/snapshot_done     the list of all checksums, or empty; written last

Variables have the names of the published BERT's TensorFlow variables, with `/` as `-` and `kernel` as `weight`.
`oneflow.load(<snapshot>)` reads the same folder. This module does not need the engine.
"""

import contextlib
import hashlib
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from snapshots import checksums
from system.errors import UserError, some_of
from system.input_files import open_input, reading
from system.output_files import atomic_folder

DONE_FILE = "snapshot_done"
DATA_FILE = "out"
META_FILE = "meta"
OWNER_FILE = "of"
MOMENT_SUFFIXES = ("-m", "-v")

_LARGEST_META = 1 << 16  # characters
_MOST_DIMENSIONS = 32
_TENSORFLOW = "it is a TensorFlow checkpoint; convert it with convert_tf_ckpt_to_of.py"
_MOST_DIGITS = 12  # of a dimension

_NAME_OF_DTYPE = {
    np.dtype(np.float32): "kFloat",
    np.dtype(np.float64): "kDouble",
    np.dtype(np.float16): "kFloat16",
    np.dtype(np.int32): "kInt32",
    np.dtype(np.int64): "kInt64",
    np.dtype(np.int8): "kInt8",
    np.dtype(np.uint8): "kUInt8",
}
_DTYPE_OF_NAME = {name: dtype for dtype, name in _NAME_OF_DTYPE.items()}


@contextlib.contextmanager
def open_writer(folder):
    """Yields a function `write(name, array, files=None)`. The snapshot `folder` appears, whole, at the block's end.

    `files` (name -> bytes) go into the variable's folder. Write a variable before its moments. An existing snapshot at
    `folder` is replaced in one step at the end.
    """
    digests = {}
    # The thread computes checksums while the values are written.
    with atomic_folder(folder) as temporary, ThreadPoolExecutor(1) as thread:

        def write(name, array, files=None):
            # No Paths here: pathlib interns the parts of each, and resizing Python's table of interned strings
            # fragments the memory of a run that saves often.
            variable = os.path.join(temporary, name)
            os.mkdir(variable)
            data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            running = thread.submit(hashlib.sha256, data)
            _write_file(os.path.join(variable, DATA_FILE), data)
            _write_file(os.path.join(variable, META_FILE), format_meta(array.shape, array.dtype).encode())
            for file_name, contents in (files or {}).items():
                _write_file(os.path.join(variable, file_name), contents)
            digests[name] = running.result().hexdigest()
            if checksums.has_checksum(name):
                line = checksums.line(digests[name], DATA_FILE)
                _write_file(os.path.join(variable, checksums.CHECKSUM_FILE), line.encode())
            # Other variables may have such a suffix, too.
            if name.endswith(MOMENT_SUFFIXES) and name[:-2] in digests:
                _write_file(os.path.join(variable, OWNER_FILE), f"{digests[name[:-2]]}\n".encode())

        yield write
        listed = {name: digest for name, digest in digests.items() if checksums.has_checksum(name)}
        lines = [checksums.line(digest, f"{name}/{DATA_FILE}") for name, digest in listed.items()]
        _write_file(os.path.join(temporary, DONE_FILE), "".join(lines).encode())


def _write_file(path, data):
    with open(path, "wb") as file:
        file.write(data)


def format_meta(shape, dtype):
    """Returns the text of the `meta` file for an array of that shape and NumPy dtype."""
    dimensions = "".join(f"  dim: {size}\n" for size in shape)
    return f"shape {{\n{dimensions}}}\ndata_type: {_NAME_OF_DTYPE[np.dtype(dtype)]}\n"


def read_meta(variable_folder):
    """Returns (shape, NumPy dtype) from a variable's `meta` file, or None if it has none.

    Raises UserError if the file is invalid.
    """
    path = Path(variable_folder) / META_FILE
    text = None
    with reading(path), contextlib.suppress(FileNotFoundError), open_input(path) as file:
        text = file.read(_LARGEST_META)
    if text is None:
        return None
    data_type = re.search(r"\bdata_type:\s*(\w+)", text)
    if data_type is None or data_type[1] not in _DTYPE_OF_NAME:
        raise UserError(f"{path}: has no known data type; delete the file to use the model's shape and type")
    sizes = re.findall(r"\bdim:\s*(\d+)", text)
    if len(sizes) > _MOST_DIMENSIONS or any(len(size) > _MOST_DIGITS for size in sizes):
        raise UserError(f"{path}: has an invalid shape; delete the file to use the model's shape and type")
    return tuple(int(size) for size in sizes), _DTYPE_OF_NAME[data_type[1]]


def check_is_snapshot(folder):
    """Raises UserError unless `folder` is a complete snapshot."""
    folder = Path(folder)
    if os.path.isfile(f"{folder}.index"):
        raise UserError(f"{folder}: {_TENSORFLOW}")
    with reading(folder, "folder"):
        names = os.listdir(folder)
    if DONE_FILE not in names or not (folder / DONE_FILE).is_file():
        advice = _advice_for(folder, names)
        raise UserError(f"{folder}: not a complete snapshot: it has no file {DONE_FILE}; {advice}")


def advice_for_other_models(folder):
    """Returns advice if `folder` has a snapshot, a Hugging Face model or a TensorFlow checkpoint; else None."""
    names = os.listdir(folder)
    if DONE_FILE in names:
        return "it is a snapshot of this suite, which needs no conversion"
    if any(name.endswith((".safetensors", ".safetensors.index.json")) or name == "pytorch_model.bin" for name in names):
        return "it is a Hugging Face model; convert it with tools/convert_hf.py import"
    return _TENSORFLOW if any(name.endswith(".index") for name in names) else None


def _advice_for(folder, names):
    """Returns advice for a folder with the files `names` that was given instead of a snapshot."""
    other = advice_for_other_models(folder) if DONE_FILE not in names else None
    if other:
        return other
    snapshots = [name for name in names if (folder / name / DONE_FILE).is_file()]
    if snapshots:
        snapshots.sort(key=lambda name: (len(name), name))
        return f"give one of the snapshots in it: {some_of(snapshots, 10)}"
    return "give the folder of a snapshot, which holds a folder for each variable"


def read_checksums(folder, names):
    """Returns the checksums of the variables `names` for `read_variable`; see checksums.recorded."""
    return checksums.recorded(folder, names, DONE_FILE, DATA_FILE)


def stale_moments(folder, names, digests):
    """Returns the moments among `names` whose variable was overwritten after they were saved.

    A moment without an OWNER_FILE is not stale. `digests`: from `read_checksums`, or empty; a digest that it lacks is
    computed. Raises UserError if an OWNER_FILE cannot be read.
    """
    owners = _owners(folder, names)
    variables = {name[:-2] for name in owners}
    current = {name: _digest(folder, name, digests) if name in names else None for name in variables}
    return [name for name, owner in owners.items() if owner != current[name[:-2]]]


def check_owners(folder, names):
    """Raises UserError if a variable's two moments have different OWNER_FILEs, which means that one is damaged.

    They are saved together, and copying another variable over theirs changes neither.
    """
    owners = _owners(folder, names)
    for name, owner in owners.items():
        first = name[:-2] + MOMENT_SUFFIXES[0]
        if owner != owners.get(first, owner):
            raise UserError(
                f"{Path(folder) / name}: its file {OWNER_FILE} is not that of {first}, so one of them is damaged; copy "
                "the snapshot again or use an older one, or give --skip_checksums to ignore such moments"
            )


def _owners(folder, names):
    """Returns name -> the digest of the owner's values, for the moments among `names` that have an OWNER_FILE."""
    owners = {}
    for name in names:
        path = Path(folder) / name / OWNER_FILE
        if not name.endswith(MOMENT_SUFFIXES) or not path.is_file():
            continue
        with reading(path), open_input(path, errors="replace") as file:
            owners[name] = file.read(_LARGEST_META).strip()
    return owners


def _digest(folder, variable, digests):
    recorded = digests.get(variable, ())
    return next(iter(recorded)) if len(recorded) == 1 else checksums.of_file(Path(folder) / variable / DATA_FILE)


def variable_names(folder):
    """Returns the sorted names of the variables in the snapshot `folder`. Raises UserError if it is not one."""
    check_is_snapshot(folder)
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def read_variable(folder, name, shape=None, dtype=None, digests=None):
    """Returns the array of variable `name` in the snapshot `folder`.

    `shape` and `dtype`: the model's, which `meta` (if present) and the file must match, except for leading ones in the
    shape (legacy snapshots have position embeddings as [1, length, hidden]). Without them, `meta` is required.
    `digests`: from `read_checksums`; the values must match if it has the variable. Raises UserError, naming the
    variable.
    """
    variable = Path(folder) / name
    path = variable / DATA_FILE
    meta = read_meta(variable)
    if shape is None:
        if meta is None:
            raise UserError(f"{variable}: has no {META_FILE} file, so its shape is unknown")
        shape, dtype = meta
    shape, dtype = tuple(shape), np.dtype(dtype)
    if meta is not None and (_without_leading_ones(meta[0]), meta[1]) != (_without_leading_ones(shape), dtype):
        raise UserError(
            f"{variable}: the snapshot has {meta[1]} {list(meta[0])}, the model needs {dtype} {list(shape)}; "
            "check the flags that give the model's size"
        )
    size = math.prod(shape) * dtype.itemsize
    with reading(path), open_input(path, "rb") as file:
        found = os.fstat(file.fileno()).st_size
        # Do not read a file of the wrong size: it may be huge.
        data = file.read(size) if found == size else b""
    if found != size:
        raise UserError(
            f"{path}: has {found} bytes, the model needs {size} for {dtype} {list(shape)}; "
            "the file is damaged or of another model"
        )
    if digests and name in digests:
        checksums.check(hashlib.sha256(data).hexdigest(), digests[name], variable)
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def verify_variable(folder, name, digests):
    """Raises UserError if the file of variable `name` does not match its `meta` or its checksum, if it has them.

    `digests`: from `read_checksums`.
    """
    variable = Path(folder) / name
    meta = read_meta(variable)
    if meta is not None:
        read_variable(folder, name, *meta, digests)
    elif name in digests:
        checksums.check(checksums.of_file(variable / DATA_FILE), digests[name], variable)


def _without_leading_ones(shape):
    shape = tuple(shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
