"""Snapshots on disk: a folder with one folder a variable, in the layout of legacy OneFlow checkpoints.

    <snapshot>/<variable>/out    the values, little-endian, in C order
    <snapshot>/<variable>/meta   shape and data type, as text protobuf (VariableMetaInfo); may be missing
    <snapshot>/<variable>/sha256 the checksum of `out`; may be missing
    <snapshot>/<variable>-m/of   SHA-256 of the `out` that Adam's moments -m and -v belong to; may be missing
    <snapshot>/snapshot_done     the list of all checksums, or empty; written last

A variable is named after the TensorFlow variable of the published BERT, with `/` as `-` and `kernel` as `weight`.
`oneflow.load(<snapshot>)` reads the same folder. Nothing here needs the engine.
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
from system.errors import UserError
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
_NAMED_SNAPSHOTS = 10
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
    """A function `write(name, array, files=None)`; the snapshot `folder` appears, whole, when the block ends well.

    `files` (name -> bytes) are added to the variable's folder. A variable is written before its moments. A snapshot
    that stood at `folder` stays until the end and is replaced in one step.
    """
    digests = {}
    # While the disk takes the values, another thread computes their checksum.
    with atomic_folder(folder) as temporary, ThreadPoolExecutor(1) as thread:

        def write(name, array, files=None):
            # No Paths here: pathlib interns the parts of each. The table of interned strings, which Python makes anew
            # when it has taken in enough of them, tears holes into the memory of a run that saves often.
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
            # What ends so may also be a variable of that name, or a moment without its variable.
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
    """The text of a `meta` file for an array of that shape and NumPy dtype."""
    dimensions = "".join(f"  dim: {size}\n" for size in shape)
    return f"shape {{\n{dimensions}}}\ndata_type: {_NAME_OF_DTYPE[np.dtype(dtype)]}\n"


def read_meta(variable_folder):
    """(shape, NumPy dtype) from a variable's `meta` file, or None where there is none.

    Raises UserError if it cannot be understood.
    """
    path = Path(variable_folder) / META_FILE
    text = None
    with reading(path), contextlib.suppress(FileNotFoundError), open_input(path) as file:
        text = file.read(_LARGEST_META)
    if text is None:
        return None
    data_type = re.search(r"\bdata_type:\s*(\w+)", text)
    if data_type is None or data_type[1] not in _DTYPE_OF_NAME:
        raise UserError(f"{path}: names no data type this suite knows; delete the file to go by the model's shape")
    sizes = re.findall(r"\bdim:\s*(\d+)", text)
    if len(sizes) > _MOST_DIMENSIONS or any(len(size) > _MOST_DIGITS for size in sizes):
        raise UserError(f"{path}: no array has such a shape; delete the file to go by the model's shape")
    return tuple(int(size) for size in sizes), _DTYPE_OF_NAME[data_type[1]]


def check_is_snapshot(folder):
    """Raises UserError unless `folder` is a complete snapshot."""
    folder = Path(folder)
    if os.path.isfile(f"{folder}.index"):
        raise UserError(f"{folder}: {_TENSORFLOW}")
    with reading(folder, "folder"):
        names = os.listdir(folder)
    if DONE_FILE not in names or not (folder / DONE_FILE).is_file():
        advice = _what_to_give(folder, names)
        raise UserError(f"{folder}: not a complete snapshot: it has no file {DONE_FILE}; {advice}")


def advice_for_other_models(folder):
    """What to do with the model in `folder` if it is a snapshot, Hugging Face's or TensorFlow's; else None."""
    names = os.listdir(folder)
    if DONE_FILE in names:
        return "it is a snapshot of this suite, which needs no conversion"
    if any(name.endswith((".safetensors", ".safetensors.index.json")) or name == "pytorch_model.bin" for name in names):
        return "it is a Hugging Face model; convert it with tools/convert_hf.py import"
    return _TENSORFLOW if any(name.endswith(".index") for name in names) else None


def _what_to_give(folder, names):
    """Advice for who has given a folder that holds `names` in place of a snapshot."""
    other = advice_for_other_models(folder) if DONE_FILE not in names else None
    if other:
        return other
    snapshots = [name for name in names if (folder / name / DONE_FILE).is_file()]
    if snapshots:
        snapshots.sort(key=lambda name: (len(name), name))
        more = ", ..." if len(snapshots) > _NAMED_SNAPSHOTS else ""
        return f"give one of the snapshots in it: {', '.join(snapshots[:_NAMED_SNAPSHOTS])}{more}"
    return "give the folder of a snapshot, which holds a folder for each variable"


def read_checksums(folder, names):
    """The checksums of the variables `names` in the snapshot `folder`, for `read_variable`; see checksums.recorded."""
    return checksums.recorded(folder, names, DONE_FILE, DATA_FILE)


def stale_moments(folder, names, digests):
    """Which of the moments among `names` belong to other values of their variable than the snapshot `folder` has.

    So it is after a variable was copied over another one. Moments that do not say what they belong to are not stale.
    `digests` is what `read_checksums` gives, or empty; where it does not tell, the values are read.
    Raises UserError if a file that tells cannot be read.
    """
    owners = _owners(folder, names)
    variables = {name[:-2] for name in owners}
    of_variable = {name: _digest(folder, name, digests) if name in names else None for name in variables}
    return [name for name, owner in owners.items() if owner != of_variable[name[:-2]]]


def check_owners(folder, names):
    """Raises UserError if a variable's moments say that they belong to different values: one of the files is damaged.

    Both are saved with it, and stay together where another variable is copied over it.
    """
    owners = _owners(folder, names)
    for name, owner in owners.items():
        first = name[:-2] + MOMENT_SUFFIXES[0]
        if owner != owners.get(first, owner):
            raise UserError(
                f"{Path(folder) / name}: its file {OWNER_FILE} is not that of {first}, so one of them is damaged; copy "
                "the snapshot anew or go back to an older one, or give --skip_checksums to do without such moments"
            )


def _owners(folder, names):
    """name -> the digest of the values that it belongs to, of those of the moments among `names` that tell."""
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
    """The names of the variables in the snapshot `folder`, sorted."""
    check_is_snapshot(folder)
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def read_variable(folder, name, shape=None, dtype=None, digests=None):
    """The array of variable `name` in the snapshot `folder`.

    With `shape` and `dtype` (the model's), the file must fit them: `meta`, where present, must name the same dtype
    and the same shape but for leading ones (legacy snapshots hold position embeddings as [1, length, hidden]).
    Without them `meta` must be there. Where `digests`, which `read_checksums` gives, has the variable, the values must
    have that checksum. Raises UserError naming the variable.
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
        # Read no more than should be there: the file may be anything.
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
    """Raises UserError unless the file of variable `name` has the size that `meta` says and the checksum in `digests`.

    As far as there are a `meta` and a checksum; `digests` is what `read_checksums` gives.
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
