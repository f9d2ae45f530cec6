"""Snapshots on disk: a folder with one folder a variable, in the layout of legacy OneFlow checkpoints.

    <snapshot>/<variable>/out    the values, little-endian, in C order
    <snapshot>/<variable>/meta   shape and data type, as text protobuf (VariableMetaInfo); may be missing
    <snapshot>/<variable>-m/of   SHA-256 of the `out` that Adam's moments -m and -v belong to; may be missing
    <snapshot>/snapshot_done     empty; written last

A variable is named after the TensorFlow variable of the published BERT, with `/` as `-` and `kernel` as `weight`.
`oneflow.load(<snapshot>)` reads the same folder. Nothing here needs the engine.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import numpy as np

from util import UserError, atomic_folder

DONE_FILE = "snapshot_done"
DATA_FILE = "out"
META_FILE = "meta"
OWNER_FILE = "of"
MOMENT_SUFFIXES = ("-m", "-v")

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
    """A function `write(name, array)`; the snapshot `folder` appears, whole, when the block ends well.

    A variable is written before its moments. A snapshot that stood at `folder` stays until the end and is replaced in
    one step.
    """
    digests = {}
    with atomic_folder(folder) as temporary:

        def write(name, array):
            variable = temporary / name
            variable.mkdir()
            data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            with open(variable / DATA_FILE, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            (variable / META_FILE).write_text(format_meta(array.shape, array.dtype))
            if name.endswith(MOMENT_SUFFIXES):
                (variable / OWNER_FILE).write_text(digests[name[:-2]] + "\n")
            else:
                digests[name] = hashlib.sha256(data).hexdigest()

        yield write
        (temporary / DONE_FILE).touch()


def format_meta(shape, dtype):
    """The text of a `meta` file for an array of that shape and NumPy dtype."""
    dimensions = "".join(f"  dim: {size}\n" for size in shape)
    return f"shape {{\n{dimensions}}}\ndata_type: {_NAME_OF_DTYPE[np.dtype(dtype)]}\n"


def read_meta(variable_folder):
    """(shape, NumPy dtype) from a variable's `meta` file, or None where there is none."""
    path = Path(variable_folder) / META_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    data_type = re.search(r"\bdata_type:\s*(\w+)", text)
    if data_type is None or data_type[1] not in _DTYPE_OF_NAME:
        raise UserError(f"{path}: names no data type this suite knows; delete the file to go by the model's shape")
    return tuple(int(size) for size in re.findall(r"\bdim:\s*(\d+)", text)), _DTYPE_OF_NAME[data_type[1]]


def check_is_snapshot(folder):
    """Raises UserError unless `folder` is a complete snapshot."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder of a snapshot")
    if not (folder / DONE_FILE).is_file():
        raise UserError(
            f"{folder}: not a complete snapshot: it has no file {DONE_FILE}; give the folder of a snapshot, which "
            "holds a folder for each variable"
        )


def stale_moments(folder, names):
    """Which of the moments among `names` belong to other values of their variable than the snapshot `folder` has.

    So it is after a variable was copied over another one. Moments that do not say what they belong to are not stale.
    """
    stale = []
    digests = {}
    for name in names:
        path = Path(folder) / name / OWNER_FILE
        if not name.endswith(MOMENT_SUFFIXES) or not path.is_file():
            continue
        variable = name[:-2]
        if variable not in digests:
            digests[variable] = _digest(Path(folder) / variable / DATA_FILE) if variable in names else None
        if path.read_text(errors="replace").strip() != digests[variable]:
            stale.append(name)
    return stale


def _digest(path):
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def variable_names(folder):
    """The names of the variables in the snapshot `folder`, sorted."""
    check_is_snapshot(folder)
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def read_variable(folder, name, shape=None, dtype=None):
    """The array of variable `name` in the snapshot `folder`.

    With `shape` and `dtype` (the model's), the file must fit them: `meta`, where present, must name the same dtype
    and the same shape but for leading ones (legacy snapshots hold position embeddings as [1, length, hidden]).
    Without them `meta` must be there. Raises UserError naming the variable and both shapes.
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
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        # Read no more than should be there: the file may be anything.
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            data = file.read(size) if found == size else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if found != size:
        raise UserError(
            f"{path}: has {found} bytes, the model needs {size} for {dtype} {list(shape)}; "
            "the file is damaged or of another model"
        )
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _without_leading_ones(shape):
    shape = tuple(shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
