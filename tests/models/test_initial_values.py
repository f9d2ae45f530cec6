"""The values that parameters start with."""

import math
from statistics import NormalDist

import numpy as np
import pytest

import bert_util
from engine.oneflow_loader import flow

pytestmark = pytest.mark.slow

SHAPE = (1000, 600)  # more than two blocks


def draw(seed, count):
    initializer = bert_util.Initializer(flow.placement("cpu", [0]), seed)
    return [initializer.truncated_normal(SHAPE, 0.02).numpy() for _ in range(count)]


def test_truncated_normal(monkeypatch):
    first, second = draw(1, 2)
    # The variance of a standard normal distribution cut at 2 (Johnson, Kotz, Balakrishnan 1994, 13.10.1).
    normal = NormalDist()
    variance = 1 - 4 * normal.pdf(2) / (normal.cdf(2) - normal.cdf(-2))
    count = first.size
    for values in (first, second):
        assert values.dtype == np.float32
        assert np.abs(values).max() <= 0.02 * 2
        assert abs(values.mean()) < 5 * 0.02 / math.sqrt(count)
        assert values.var() == pytest.approx(0.02**2 * variance, rel=10 / math.sqrt(count))
    # Blocks and parameters are independent of each other.
    assert len(np.unique(np.concatenate([first, second]))) > 1.9 * count
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / math.sqrt(count)
    monkeypatch.setattr(bert_util, "usable_processors", lambda: 1)
    np.testing.assert_array_equal(draw(1, 1)[0], first)
    assert (draw(2, 1)[0] != first).mean() > 0.99
