"""Dropout in a graph draws a mask of its own for every layer and step, by the seed, with and without native kernels."""

import json
import os
import subprocess
import sys

import pytest

from running import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from engine import native, operators
from engine.oneflow_loader import flow
flow.manual_seed(int(sys.argv[1]))
native.set_seed(int(sys.argv[1]))
ones = flow.nn.Parameter(flow.ones(8, 1000, placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast))

class Job(flow.nn.Graph):
    def __init__(self):
        super().__init__()
        self.parameters = flow.nn.ParameterList([ones])
        self.add_optimizer(flow.optim.SGD([ones], lr=0.0))

    def build(self):
        first, second = operators.dropout(ones, 0.25), operators.dropout(ones, 0.25)
        (first + 3 * second).sum().backward()
        return first, second, ones.grad

job = Job()
print(json.dumps([[output.numpy().ravel().tolist() for output in job()] for _ in range(2)]))
"""


def masks(seed, kernels):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed)],
        cwd=ROOT,
        env={**os.environ, "BERT_KERNELS": kernels},
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    return json.loads(result.stdout)


@pytest.mark.parametrize("kernels", ["", "none"])
def test_masks(kernels):
    (first, second, gradient), (later, _, _) = steps = masks(1, kernels)
    assert masks(1, kernels) == steps
    assert masks(2, kernels)[0][0] != first
    for values in (first, second, later):
        assert sorted(set(values)) == pytest.approx([0.0, 1 / 0.75])
        assert 0.22 < values.count(0.0) / 8000 < 0.28
    for one, other in ((first, second), (first, later)):
        # Independent masks agree in 0.75^2 + 0.25^2 of the places.
        assert 0.58 < sum(a == b for a, b in zip(one, other, strict=True)) / 8000 < 0.67
    assert gradient == pytest.approx([a + 3 * b for a, b in zip(first, second, strict=True)])
