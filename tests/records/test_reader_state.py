"""Saving and restoring the position of a job's reader and dropout; tests/training/test_resume.py: in whole runs."""

import itertools
import json

import numpy as np
import pytest

from batches_read import Read
from engine import native
from engine.oneflow_loader import flow
from record_readers import expected_order
from records import checks, ofrecord
from records.loader import OFRecordLoader  # noqa: E402
from system.errors import UserError

pytestmark = pytest.mark.slow

needs_kernels = pytest.mark.skipif(native.random_state() is None, reason="no native kernels")


COUNTS = [30, 20, 50]


@pytest.fixture
def data_set(tmp_path):
    """Three parts of records with one number each, counting up from 1000."""
    paths = [tmp_path / f"part-{part}" for part in range(len(COUNTS))]
    numbers = itertools.count(1000)
    for path, count in zip(paths, COUNTS, strict=True):
        with ofrecord.open_writer(path) as write:
            for number in itertools.islice(numbers, count):
                write(ofrecord.serialize({"id": np.array([number], dtype=np.int32)}))
    return checks.DataSet(paths, {"id": checks.Field(1, 2000)}, sum(COUNTS))


def test_unshuffled_records_come_in_order(data_set):
    assert sum(Read(data_set, shuffle=False).take(25), []) == [*range(1000, 1100)] * 2


@needs_kernels
class TestReader:
    def test_order_equals_the_python_version(self, data_set):
        """Includes an epoch that ends within a batch."""
        places = [(part, offset) for part in range(3) for offset, _ in ofrecord.read_serialized(data_set.paths[part])]
        numbers = dict(zip(places, itertools.count(1000)))
        order = expected_order(data_set.paths, seed=3, readers=1, reader=0, buffer_size=1024, reorders_parts=True)
        read = sum(Read(data_set).take(50), [])
        assert read == [numbers[place] for place in itertools.islice(order, 400)]
        for epoch in range(4):
            assert sorted(read[100 * epoch : 100 * (epoch + 1)]) == [*range(1000, 1100)]

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_resumes_at_the_saved_position(self, data_set, shuffle):
        through = Read(data_set, shuffle)
        batches, states = [], []
        for count in range(20):
            batches += through.take(1)
            states.append(native.reader_state(count + 1))
        for count in (0, 3, 12, 14):
            # A different seed has no effect.
            restored = Read(data_set, shuffle, seed=99)
            native.restore_reader(states[count])
            assert restored.take(19 - count) == batches[count + 1 :]
            assert native.reader_state(19 - count) == states[-1]

    def test_known_states(self, data_set):
        read = Read(data_set)
        read.take(100)
        states = [native.reader_state(count) for count in range(36, 101)]
        assert len(set(states)) == len(states)
        for count in (-1, 0, 35, 105):
            with pytest.raises(ValueError, match=f"after {count} batches is not known"):
                native.reader_state(count)

    def test_state_is_that_of_the_newest_reader(self, data_set):
        first, second = Read(data_set), Read(data_set)
        first.take(3)
        state = native.reader_state(1)
        second.take(1)
        assert native.reader_state(1) == state
        first.take(1)
        with pytest.raises(ValueError, match="not known"):
            native.reader_state(90)

    def test_state_applies_to_one_reader(self, data_set):
        first, second = Read(data_set), Read(data_set)
        batches = first.take(4)
        native.restore_reader(native.reader_state(2))
        assert second.take(2) == batches[2:]
        assert Read(data_set).take(4) == batches

    def test_bad_states(self, data_set):
        read = Read(data_set)
        first = read.take(1)
        state = native.reader_state(1)
        for bad in (b"", state[:-1], state[:-1] + bytes([state[-1] ^ 1]), b"x" * 200):
            with pytest.raises(UserError, match="^the saved position of the reader is"):
                native.restore_reader(bad)
        OFRecordLoader(data_set, 8, flow.placement("cpu", [0]), shuffle=False, seed=3)
        with pytest.raises(UserError, match="another number of parts, ranks or way to shuffle"):
            native.restore_reader(state)
        another = Read(data_set)
        with open(data_set.paths[1], "ab") as part:
            part.write(bytes(8))
        with pytest.raises(UserError, match="part-1: has .* bytes, but had"):
            native.restore_reader(state)
        data_set.paths[2].unlink()
        with pytest.raises(UserError, match="part-2: cannot be read: No such file"):
            native.restore_reader(state)
        del another, first


@needs_kernels
class TestRandomState:
    ONES = flow.ones(8, 100, placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)

    class Drop(flow.nn.Graph):
        def build(self, x):
            return flow._C.dropout(x, 0.5)

        def take(self, calls):
            return [self(TestRandomState.ONES).to_local().numpy().tobytes() for _ in range(calls)]

    def test_resumes_at_the_saved_position(self):
        native.set_seed(5)
        through = self.Drop()
        masks = through.take(3)
        state = native.random_state()
        masks += through.take(3)
        assert len(set(masks)) == 6
        native.set_seed(6)
        native.restore_random_state(state)
        # Names of graphs count up within a process, so no graph uses the restored streams yet.
        del through, masks
        assert json.loads(state)["seed"] == 5 and 3 in json.loads(state)["dropout_calls"].values()

    def test_bad_states(self):
        state = native.random_state()
        for bad in (
            b"",
            b"\xff",
            b"{" * 100000,
            state[:-1],
            b"[]",
            b"1",
            b'{"seed": 1}',
            b'{"seed": -1, "dropout_calls": {}}',
            b'{"seed": 18446744073709551616, "dropout_calls": {}}',
            *(b'{"seed": 1, "dropout_calls": %s}' % calls for calls in (b"[[[], 1]]", b"[]", b'"ab"', b"7", b"null")),
            b'{"seed": 1, "dropout_calls": {"name": [1]}}',
            b'{"seed": 1, "dropout_calls": {"name": -1}}',
            b'{"seed": 1, "dropout_calls": {"a\\nb": 1}}',
            b'{"seed": 1, "dropout_calls": {"name": 1.5}}',
            b'{"seed": 1, "dropout_calls": {"name": true}}',
        ):
            with pytest.raises(UserError, match="the saved random state is damaged"):
                native.restore_random_state(bad)
        native.restore_random_state(state)
