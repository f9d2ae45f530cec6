"""Tests the native reader's order against a Python version of the algorithm, and resuming from any position."""

# F811: the arguments named after the imported fixture.
# ruff: noqa: F811

import os

import numpy as np
import pytest

from record_readers import Reader, expected_order, library, write_parts  # noqa: F401
from records import ofrecord

# Epochs smaller and larger than the buffer, an empty part, one reader and several.
CASES = [
    ([40], {}),
    ([40], {"buffer_size": 1, "reorders_parts": False}),
    ([30, 1, 0, 17, 25], {"buffer_size": 16}),
    ([30, 1, 0, 17, 25], {"buffer_size": 16, "readers": 2, "reader": 0}),
    ([30, 1, 0, 17, 25], {"buffer_size": 16, "readers": 2, "reader": 1}),
    ([30, 1, 5, 17, 25], {"buffer_size": 1, "reorders_parts": True, "seed": 2**64 - 1}),
    ([1500, 900], {"seed": 7}),
]


@pytest.mark.parametrize(("counts", "settings"), CASES)
class TestOrder:
    def test_equals_the_python_version(self, library, tmp_path, counts, settings):
        paths = write_parts(tmp_path, counts)
        settings = {"seed": 1, "readers": 1, "reader": 0, "buffer_size": 1024, "reorders_parts": True, **settings}
        expected = expected_order(paths, **settings)
        reader = Reader(library, paths, **settings)
        for _ in range(2 * sum(counts) + 50):
            position = reader.next()
            assert position == next(expected)
            number = ofrecord.parse(reader.bytes, paths[0], 0)["id"][0]
            assert number // 10000 == position[0] and reader.bytes in paths[position[0]].read_bytes()

    def test_resumes_from_any_position(self, library, tmp_path, counts, settings):
        paths = write_parts(tmp_path, counts)
        through = Reader(library, paths, **settings)
        places = np.random.default_rng(0).integers(0, 2 * sum(counts), 8).tolist()
        states, order = {}, []
        for count in range(2 * sum(counts)):
            if count in (0, 1, *places):
                states[count] = through.save()
            order.append(through.next())
        for count, state in states.items():
            # The state's seed takes precedence.
            restored = Reader(library, paths, **{**settings, "seed": 12345}, state=state)
            assert restored.save() == state
            assert restored.take(len(order) - count) == order[count:]
            assert restored.save() == through.save()


def test_each_record_once_per_epoch(library, tmp_path):
    paths = write_parts(tmp_path, [1500, 900, 100, 300])
    whole = Reader(library, paths)
    epochs = [whole.take(2800) for _ in range(3)]
    assert len(set(epochs[0])) == 2800
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_readers_split_the_parts_of_each_epoch(library, tmp_path):
    paths = write_parts(tmp_path, [50] * 6)
    readers = [Reader(library, paths, readers=3, reader=reader) for reader in range(3)]
    everything = sorted((part, offset) for part in range(6) for offset, _ in ofrecord.read_serialized(paths[part]))
    shares = []
    for _ in range(5):
        read = [reader.take(100) for reader in readers]
        assert sorted(sum(read, [])) == everything
        shares.append([sorted({part for part, _ in positions}) for positions in read])
    assert shares[0] == [[0, 1], [2, 3], [4, 5]]
    assert shares[1] != shares[0]


def test_seed_changes_the_order(library, tmp_path):
    paths = write_parts(tmp_path, [200])
    assert Reader(library, paths, seed=1).take(200) != Reader(library, paths, seed=2).take(200)


class TestBadParts:
    def check(self, reader, *fragments, part=-1, offset=0):
        assert reader.next() is None
        text, *place = reader.error()
        assert place == [part, offset]
        for fragment in fragments:
            assert fragment in text, text
        assert reader.next() is None and reader.error()[0] == text

    def test_missing_part(self, library, tmp_path):
        self.check(Reader(library, [tmp_path / "part-0"]), f"{tmp_path}/part-0: cannot be read: No such file")

    def test_no_records(self, library, tmp_path):
        self.check(Reader(library, write_parts(tmp_path, [0, 0])), "hold no records")

    def test_too_long_record(self, library, tmp_path):
        """Allocates no memory for a record whose length is absurd, in a part of terabytes."""
        path = tmp_path / "part-0"
        path.write_bytes((2**40).to_bytes(8, "little"))
        os.truncate(path, 2**41)
        reader = Reader(library, [path], buffer_size=1, reorders_parts=False)
        text = "part-0: the record at byte 0 is 1099511627776 bytes long, more than 16777216"
        self.check(reader, text, part=0, offset=0)

    @pytest.mark.parametrize("buffer_size", [1, 2])
    def test_truncated(self, library, tmp_path, buffer_size):
        (path,) = write_parts(tmp_path, [3])
        last = [offset for offset, _ in ofrecord.read_serialized(path)][-1]
        for size in (last + 3, last + 8, path.stat().st_size - 1):
            data = path.read_bytes()
            path.write_bytes(data[:size])
            reader = Reader(library, [path], buffer_size=buffer_size, reorders_parts=False)
            taken = reader.take(3 - buffer_size)
            assert None not in taken
            self.check(reader, "part-0: the record at byte", "runs past the end", part=0, offset=last)
            path.write_bytes(data)

    @pytest.mark.parametrize(
        ("length", "text"), [(0, "is empty"), (2**63 - 1, "runs past the end"), (2**64 - 1, "runs past the end")]
    )
    def test_absurd_length(self, library, tmp_path, length, text):
        (path,) = write_parts(tmp_path, [3])
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
        self.check(Reader(library, [path]), "part-0: the record at byte 0 " + text, part=0)

    def test_removed_part(self, library, tmp_path):
        paths = write_parts(tmp_path, [2, 2])
        reader = Reader(library, paths, buffer_size=1, reorders_parts=False)
        assert None not in reader.take(2)
        paths[1].unlink()
        self.check(reader, "part-1: cannot be read any more: No such file")

    def test_growing_part(self, library, tmp_path):
        paths = write_parts(tmp_path, [2, 2])
        reader = Reader(library, paths, buffer_size=1, reorders_parts=False)
        assert None not in reader.take(2)
        size = paths[1].stat().st_size
        paths[1].write_bytes(paths[1].read_bytes() + b"1")
        self.check(reader, f"part-1: had {size} bytes", f"now has {size + 1}")

    def test_shrinking_part(self, library, tmp_path):
        (path,) = write_parts(tmp_path, [100000])
        reader = Reader(library, [path], buffer_size=1, reorders_parts=False)
        assert None not in reader.take(10)
        os.truncate(path, 10)
        while reader.next() is not None:
            pass
        assert "has been cut off since the run began" in reader.error()[0]


class TestBadStates:
    def check(self, library, paths, state, *fragments, **settings):
        reader = Reader(library, paths, **settings, state=state)
        assert reader.next() is None
        for fragment in fragments:
            assert fragment in reader.error()[0]

    def test_any_damage(self, library, tmp_path):
        paths = write_parts(tmp_path, [20])
        reader = Reader(library, paths)
        reader.take(3)
        state = reader.save()
        for cut in range(0, len(state), 8):
            self.check(library, paths, state[:cut], "the saved position of the reader")
        generator = np.random.default_rng(0)
        for _ in range(500):
            damaged = bytearray(state)
            damaged[generator.integers(len(state))] ^= 1 << generator.integers(8)
            self.check(library, paths, bytes(damaged), "the saved position of the reader is damaged")

    def test_of_other_parts(self, library, tmp_path):
        paths = write_parts(tmp_path, [20, 30])
        state = Reader(library, paths).save()
        other = "of another number of parts, ranks or way to shuffle"
        self.check(library, paths[:1], state, other)
        self.check(library, paths, state, other, readers=2)
        self.check(library, paths, state, other, buffer_size=1)
        self.check(library, paths, state, other, reorders_parts=False)
        with open(paths[1], "ab") as part:
            part.write(b"more")
        self.check(library, paths, state, "part-1: has", "when the position of the reader was saved")
