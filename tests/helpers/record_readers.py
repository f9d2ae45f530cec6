"""The native record reader on its own, and the order in which it should read."""

import ctypes

import numpy as np
import pytest

from engine import kernel_files, native
from records import ofrecord

MASK = 2**64 - 1


class Settings(ctypes.Structure):
    """BertReaderSettings of kernels/record_reader.h."""

    _fields_ = (
        ("parts", ctypes.c_int64),
        ("paths", ctypes.POINTER(ctypes.c_char_p)),
        ("seed", ctypes.c_uint64),
        ("readers", ctypes.c_int64),
        ("reader", ctypes.c_int64),
        ("buffer_size", ctypes.c_int64),
        ("reorders_parts", ctypes.c_bool),
    )


class Record(ctypes.Structure):
    """BertRecord."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("part", ctypes.c_int64),
        ("offset", ctypes.c_int64),
    )


@pytest.fixture(scope="module")
def library():
    if not kernel_files.built_sets():
        pytest.skip("no native kernels (make kernels)")
    library = native.open_library(kernel_files.built_sets()[0])
    library.bert_reader_open.restype = ctypes.c_void_p
    library.bert_reader_next.restype = ctypes.c_bool
    library.bert_reader_error.restype = ctypes.c_char_p
    library.bert_reader_save.restype = ctypes.c_int64
    return library


class Reader:
    """The native reader."""

    def __init__(self, library, paths, seed=1, readers=1, reader=0, buffer_size=1024, reorders_parts=True, state=None):
        self._library = library
        paths = (ctypes.c_char_p * len(paths))(*(str(path).encode() for path in paths))
        settings = Settings(len(paths), paths, seed, readers, reader, buffer_size, reorders_parts)
        self._reader = ctypes.c_void_p(library.bert_reader_open(ctypes.byref(settings)))
        if state is not None:
            library.bert_reader_restore(self._reader, state, ctypes.c_int64(len(state)))

    def __del__(self):
        self._library.bert_reader_close(self._reader)

    def next(self):
        """Returns (part, offset) of the next record, or None."""
        record = Record()
        if not self._library.bert_reader_next(self._reader, ctypes.byref(record)):
            return None
        self.bytes = ctypes.string_at(record.data, record.size)
        return record.part, record.offset

    def take(self, count):
        return [self.next() for _ in range(count)]

    def error(self):
        """Returns (text, part, offset) of the error."""
        part, offset = ctypes.c_int64(), ctypes.c_int64()
        text = self._library.bert_reader_error(self._reader, ctypes.byref(part), ctypes.byref(offset))
        return text.decode(), part.value, offset.value

    def save(self):
        size = self._library.bert_reader_save(self._reader, None, ctypes.c_int64(0))
        state = ctypes.create_string_buffer(size)
        assert self._library.bert_reader_save(self._reader, state, ctypes.c_int64(size)) == size
        self._library.bert_reader_seal(state, ctypes.c_int64(size))
        return state.raw


def mix(state):
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def random_numbers(seed, purpose, index):
    """Returns a function that draws a number from 0 to below its argument."""
    state = mix(mix(mix(seed + 0x9E3779B97F4A7C15 & MASK) + purpose & MASK) + index & MASK)

    def below(limit):
        nonlocal state
        state = state + 0x9E3779B97F4A7C15 & MASK
        return mix(state) * limit >> 64

    return below


def expected_order(paths, seed, readers, reader, buffer_size, reorders_parts):
    """Yields (part, offset) in the order in which the reader should read."""
    draw = random_numbers(seed, 2, reader)
    epoch = 0
    while True:
        order = list(range(len(paths)))
        if reorders_parts and epoch > 0:
            choose = random_numbers(seed, 1, epoch)
            for last in range(len(order) - 1, 0, -1):
                chosen = choose(last + 1)
                order[last], order[chosen] = order[chosen], order[last]
        mine = order[len(paths) * reader // readers : len(paths) * (reader + 1) // readers]
        unread = [(part, offset) for part in mine for offset, _ in ofrecord.read_serialized(paths[part])]
        buffer = []
        while unread or buffer:
            while unread and len(buffer) < buffer_size:
                buffer.append(unread.pop(0))
            chosen = draw(len(buffer)) if buffer_size > 1 else 0
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            yield buffer.pop()
        epoch += 1


def write_parts(folder, counts):
    """Writes parts with `counts` records of different sizes and returns their paths."""
    paths = []
    for part, count in enumerate(counts):
        paths.append(folder / f"part-{part}")
        with ofrecord.open_writer(paths[-1]) as write:
            for index in range(count):
                write(ofrecord.serialize({"id": np.full(1 + index % 7, 10000 * part + index, dtype=np.int32)}))
    return paths
