"""Reads TFRecord files and their tf.train.Example messages without TensorFlow.

A file is a sequence of records: length of the data (8 bytes, little-endian), checksum of the length (4), data, checksum
of the data (4). A checksum is a masked CRC-32C. The whole file may be compressed with gzip.

Defines the messages from their published schema (tensorflow/core/example/*.proto).
"""

import functools
import gzip
import struct
import zlib

import google_crc32c
from google.protobuf import message

from records import ofrecord
from records.ofrecord import FIELD
from system.errors import UserError
from system.input_files import reading

_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_GZIP_MAGIC = b"\x1f\x8b\x08"
_BUFFER = 1 << 20  # bytes

# A training instance has a few kilobytes. A larger length is damage, even if its checksum is correct.
LONGEST_RECORD = 1 << 24  # bytes

_KINDS = {
    "bytes_list": (1, FIELD.TYPE_BYTES),
    "float_list": (2, FIELD.TYPE_FLOAT),
    "int64_list": (3, FIELD.TYPE_INT64),
}
_FILE = ofrecord.map_of_features("tensorflow", "Features", _KINDS)
ofrecord.add_message_field(_FILE.message_type.add(name="Example"), "features", 1, ".tensorflow.Features")
Example = ofrecord.message_class(_FILE, "tensorflow.Example")


def masked_crc(data):
    """Returns the TFRecord checksum of `data`: its CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path, offset=0):
    """Yields (offset, data) for each record of the file `path`, starting at `offset`.

    Offsets are in bytes of the (decompressed) content. Holds one record at a time. Raises UserError if the file cannot
    be read, is not a TFRecord file, ends within a record or has a wrong checksum.
    """
    open_file = gzip.open if is_compressed(path) else functools.partial(open, buffering=_BUFFER)
    with reading(path):
        try:
            with open_file(path, "rb") as file:
                file.seek(offset)
                while head := file.read(_HEAD.size):
                    if len(head) < _HEAD.size:
                        raise _truncated(path, offset)
                    length, crc = _HEAD.unpack(head)
                    if masked_crc(head[:8]) != crc:
                        what = "damaged" if offset else "not a TFRecord file, or damaged"
                        raise UserError(
                            f"{path}: {what}: the length of the record at byte {offset} has a wrong checksum"
                        )
                    if length > LONGEST_RECORD:
                        raise UserError(
                            f"{path}: the record at byte {offset} is {length} bytes long, more than {LONGEST_RECORD}"
                        )
                    data, tail = file.read(length), file.read(_TAIL.size)
                    if len(tail) < _TAIL.size:
                        raise _truncated(path, offset)
                    if masked_crc(data) != _TAIL.unpack(tail)[0]:
                        raise UserError(
                            f"{path}: damaged: the data of the record at byte {offset} have a wrong checksum"
                        )
                    yield offset, data
                    offset += _HEAD.size + length + _TAIL.size
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged: its gzip data after {offset} decompressed bytes: {error}") from None
        except EOFError:
            raise UserError(
                f"{path}: truncated: its gzip data end after {offset} decompressed bytes; make or copy the file again"
            ) from None


def is_compressed(path):
    """Whether the file `path` is a gzip file. Raises UserError if it cannot be read."""
    with reading(path), open(path, "rb") as file:
        head = file.read(_HEAD.size)
    # A record's length may look like a gzip header, but then its checksum follows.
    is_record = len(head) == _HEAD.size and masked_crc(head[:8]) == _HEAD.unpack(head)[1]
    return head.startswith(_GZIP_MAGIC) and not is_record


def _truncated(path, offset):
    return UserError(f"{path}: truncated: it ends within the record at byte {offset}; make or copy the file again")


def parse_example(data, path, offset):
    """Parses a tf.train.Example: returns name -> Feature message. Raises UserError with `path` and `offset` (bytes)."""
    try:
        entries = ofrecord.parse_message(Example, data).features.feature
        return {entry.key.decode(): entry.value for entry in entries}
    except (message.DecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: the record at byte {offset} is not a tf.train.Example") from None
