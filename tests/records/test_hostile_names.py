"""Tests field names that are not UTF-8: protobuf itself prints to stderr or fails, depending on the message."""

import numpy as np
import pytest

from records import ofrecord, tfrecord
from system.errors import UserError
from tfrecord_files import serialize_example


def test_ofrecord(capfd):
    record = ofrecord.serialize({"name": np.arange(3, dtype=np.int32)}).replace(b"name", b"n\xffme")
    features = ofrecord.parse(record, "part-0", 0)
    assert {name: array.tolist() for name, array in features.items()} == {"n\\xffme": [0, 1, 2]}
    assert capfd.readouterr() == ("", "")


def test_example(capfd):
    example = serialize_example({"name": np.arange(3)}).replace(b"name", b"n\xffme")
    with pytest.raises(UserError, match="a.tfrecord: the record at byte 7 is not a tf.train.Example"):
        tfrecord.parse_example(example, "a.tfrecord", 7)
    assert capfd.readouterr() == ("", "")


def test_last_of_a_repeated_field_counts():
    """Like in a map, which the published message has."""
    records = [ofrecord.serialize({"name": np.array([number], np.int32)}) for number in (1, 2)]
    assert ofrecord.parse(b"".join(records), "part-0", 0)["name"].tolist() == [2]
