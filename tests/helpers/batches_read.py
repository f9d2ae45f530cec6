"""What a job's loader reads."""

import itertools

import numpy as np
import pytest

from engine.oneflow_loader import flow
from records import checks, ofrecord
from records.loader import OFRecordLoader  # noqa: E402

COUNTS = [30, 20, 50]


@pytest.fixture
def data_set(tmp_path):
    """Three parts of records that hold one number: 1000 and more, counted on through the parts."""
    paths = [tmp_path / f"part-{part}" for part in range(len(COUNTS))]
    numbers = itertools.count(1000)
    for path, count in zip(paths, COUNTS, strict=True):
        with ofrecord.open_writer(path) as write:
            for number in itertools.islice(numbers, count):
                write(ofrecord.serialize({"id": np.array([number], dtype=np.int32)}))
    return checks.DataSet(paths, {"id": checks.Field(1, 2000)}, sum(COUNTS))


class Read(flow.nn.Graph):
    """Gives what the loader gives, 8 records a batch."""

    def __init__(self, data_set, shuffle=True, seed=3):
        super().__init__()
        self.loader = OFRecordLoader(data_set, 8, flow.placement("cpu", [0]), shuffle, seed)

    def build(self):
        return self.loader()["id"]

    def take(self, batches):
        return [self().to_local().numpy().ravel().tolist() for _ in range(batches)]
