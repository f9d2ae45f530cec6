"""The OFRecord file format: a part file is a sequence of (8-byte little-endian length, serialized OFRecord).

Defines the message from its published schema (oneflow/core/record/record.proto), so that preparing and checking data
does not need the engine.
"""

import contextlib
import functools
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from system.errors import UserError
from system.input_files import open_input, reading
from system.output_files import atomic_file

_LENGTH = struct.Struct("<Q")

FIELD = descriptor_pb2.FieldDescriptorProto

# Kind of a Feature -> (field number, protobuf type of its values, NumPy type)
_KINDS = {
    "bytes_list": (1, FIELD.TYPE_BYTES, object),
    "float_list": (2, FIELD.TYPE_FLOAT, np.float32),
    "double_list": (3, FIELD.TYPE_DOUBLE, np.float64),
    "int32_list": (4, FIELD.TYPE_INT32, np.int32),
    "int64_list": (5, FIELD.TYPE_INT64, np.int64),
}
_KIND_OF_DTYPE = {np.dtype(dtype): kind for kind, (_, _, dtype) in _KINDS.items() if dtype is not object}


def map_of_features(package, name, kinds):
    """Returns a FileDescriptorProto of the message `name`, a map from names to Features, each a list of values.

    `kinds`: kind of a Feature -> (field number, protobuf type of its values, ...). The map is declared as the list of
    entries that it is on the wire, with bytes as keys, as protobuf fails in several ways where keys are not UTF-8.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for kind, (number, value_type, *_) in kinds.items():
        values = file.message_type.add(name=kind.title().replace("_", ""))  # bytes_list -> BytesList
        field = values.field.add(name="value", number=1, label=FIELD.LABEL_REPEATED, type=value_type)
        if value_type != FIELD.TYPE_BYTES:
            field.options.packed = True
        add_message_field(feature, kind, number, f".{package}.{values.name}", oneof_index=0)
    features = file.message_type.add(name=name)
    add_message_field(features, "feature", 1, f".{package}.{name}.FeatureEntry", label=FIELD.LABEL_REPEATED)
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, label=FIELD.LABEL_OPTIONAL, type=FIELD.TYPE_BYTES)
    add_message_field(entry, "value", 2, f".{package}.Feature")
    return file


def add_message_field(descriptor, name, number, type_name, label=FIELD.LABEL_OPTIONAL, **others):
    """Adds to a DescriptorProto a field that holds a message of the type `type_name`."""
    descriptor.field.add(name=name, number=number, label=label, type=FIELD.TYPE_MESSAGE, type_name=type_name, **others)


def message_class(file, name):
    """Returns the class of the message `name` in `file`, a FileDescriptorProto."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.MessageFactory(pool).GetPrototype(pool.FindMessageTypeByName(name))


OFRecord = message_class(map_of_features("oneflow", "OFRecord", _KINDS), "oneflow.OFRecord")


def serialize(features):
    """Serializes `features` (name -> 1-D NumPy array of int32, int64, float32 or float64) as one OFRecord.

    Fields are sorted by name, so that equal features give equal bytes.
    """
    record = OFRecord()
    for name, values in sorted(features.items()):
        entry = record.feature.add(key=name.encode())
        getattr(entry.value, _KIND_OF_DTYPE[values.dtype]).value.extend(values.tolist())
    return record.SerializeToString()


def serialize_batch(features):
    """Serializes N records, about ten times as fast as `serialize` for each row of `features`, to the same bytes.

    `features`: name -> 2-D array [N, length] of int32, int64, float32 or float64. Returns a list of N bytes objects.
    """
    columns = []
    for name in sorted(features):
        values = features[name]
        if values.dtype.kind == "f":
            encoded = values.astype(values.dtype.newbyteorder("<")).tobytes()
            sizes = np.full(len(values), values.shape[1] * values.dtype.itemsize)
        else:
            encoded, sizes = _varints(values)
        heads = {size: _entry_head(name, values.dtype, size) for size in np.unique(sizes).tolist()}
        ends = np.cumsum(sizes).tolist()
        columns.append(
            [heads[size] + encoded[end - size : end] for size, end in zip(sizes.tolist(), ends, strict=True)]
        )
    return [b"".join(entries) for entries in zip(*columns, strict=True)]


def _varints(values):
    """Encodes a 2-D array of integers as varints (7 bits per byte, lowest first). Returns (bytes, row sizes)."""
    rest = values.astype(np.int64).view(np.uint64)
    longest = max(1, -(-int(rest.max(initial=0)).bit_length() // 7))
    groups = np.empty((*values.shape, longest), dtype=np.uint8)
    is_used = np.ones(groups.shape, dtype=bool)
    for index in range(longest):
        groups[..., index] = rest & np.uint64(0x7F)
        rest = rest >> np.uint64(7)
        if index + 1 < longest:
            is_used[..., index + 1] = rest > 0
            groups[..., index] |= is_used[..., index + 1].view(np.uint8) << 7
    return groups[is_used].tobytes(), np.count_nonzero(is_used, axis=(1, 2))


@functools.lru_cache(maxsize=1 << 16)
def _entry_head(name, dtype, size):
    """Returns the bytes that precede `size` bytes of packed values in the serialized map entry `name`."""
    number = _KINDS[_KIND_OF_DTYPE[dtype]][0]
    head = b"" if size == 0 else _length_delimited(1, size)
    head = _length_delimited(number, len(head) + size) + head
    head = _length_delimited(2, len(head) + size) + head
    head = _length_delimited(1, len(name.encode())) + name.encode() + head
    return _length_delimited(1, len(head) + size) + head


def _length_delimited(field_number, size):
    """Returns the tag and length of a length-delimited field (wire type 2)."""
    return bytes([field_number << 3 | 2]) + _varints(np.array([[size]]))[0]


def parse(serialized, path, offset):
    """Parses one serialized record. Returns name -> 1-D NumPy array (a list of bytes for a bytes feature).

    Names are decoded as UTF-8; other bytes become `\\xff`. Raises UserError, naming `path` and `offset` (bytes).
    """
    try:
        record = parse_message(OFRecord, serialized)
    except message.DecodeError:
        raise UserError(f"{path}: the record at byte {offset} is not an OFRecord; make the part again") from None
    features = {}
    for entry in record.feature:
        name, feature = entry.key.decode(errors="backslashreplace"), entry.value
        kind = feature.WhichOneof("kind")
        if kind is None:
            raise UserError(f"{path}: field {name} of the record at byte {offset} has no value")
        values = getattr(feature, kind).value
        features[name] = list(values) if kind == "bytes_list" else np.fromiter(values, _KINDS[kind][2], len(values))
    return features


def parse_message(message_class, serialized):
    """Parses a protobuf message. Raises DecodeError for invalid bytes, including trailing ones.

    Protobuf itself only warns of trailing bytes.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parsed = message_class.FromString(serialized)
    if caught:
        raise message.DecodeError(str(caught[0].message))
    return parsed


def read_serialized(path, offset=0):
    """Yields (offset in bytes, serialized OFRecord) for each record of the part file `path`, starting at `offset`.

    Holds one record at a time. Raises UserError if the file ends within a record or cannot be read.
    """
    path = Path(path)
    with reading(path), open_input(path, "rb") as file:
        file.seek(offset)
        yield from read_open_file(file, path, offset)


def read_open_file(file, path, offset=0):
    """Like `read_serialized`, for an open part file positioned at `offset`; `path` is for messages only.

    Raises UserError if a record runs past the end of the file.
    """
    size = os.fstat(file.fileno()).st_size
    while offset < size:
        header = file.read(_LENGTH.size)
        length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else size
        if length > size - offset - _LENGTH.size:
            raise UserError(
                f"{path}: truncated or not an OFRecord file: the record at byte {offset} runs past the end "
                f"of the file ({size} bytes); make or copy the part again"
            )
        yield offset, file.read(length)
        offset += _LENGTH.size + length


def read(path):
    """Yields (offset in bytes, features from `parse`) for every record of the part file `path`."""
    for offset, serialized in read_serialized(path):
        yield offset, parse(serialized, path, offset)


@contextlib.contextmanager
def open_writer(path):
    """Yields a function that appends a serialized record. The part file `path` appears, whole, at the block's end."""
    with atomic_file(path) as file:
        yield functools.partial(write_record, file)


def write_record(file, serialized):
    """Appends one serialized record to an open part file."""
    file.write(_LENGTH.pack(len(serialized)))
    file.write(serialized)
