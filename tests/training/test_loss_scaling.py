"""Steps that mixed precision skips because a scaled gradient overflows, which a CPU can show as well."""

import math

import pytest

from config import parse_pretraining_args
from engine.oneflow_loader import flow
from training.job import TrainJob

pytestmark = pytest.mark.engine

PLACEMENT = flow.placement("cpu", [0])


class Nothing(flow.nn.Module):
    """A loader of no data."""

    def forward(self):
        return None


class Model(flow.nn.Module):
    """A loss whose gradient is `x` for each of 16 weights."""

    def __init__(self):
        super().__init__()
        self.weight = flow.nn.Parameter(flow.ones(4, 4, placement=PLACEMENT, sbp=flow.sbp.broadcast))
        self.register_buffer("x", flow.ones(4, placement=PLACEMENT, sbp=flow.sbp.broadcast))

    def forward(self, batch):
        return {"total_loss": (self.weight * self.x).sum()}


@pytest.mark.parametrize("batches", [1, 2])
def test_the_step_that_is_skipped_is_the_one_that_is_told(batches):
    model = Model()
    flags = ["--data_dir=x", "--warmup_batches=0", f"--num_accumulation_steps={batches}"]
    job = TrainJob(model, Nothing(), parse_pretraining_args(flags))
    job.scale_loss(2.0**16)
    moved, told = [], []
    for iteration in range(6):
        # 1e36 times the scale is more than float32 holds; the loss is not.
        x = flow.full((4,), 1e36 if iteration in (2, 3) else 1.0, placement=PLACEMENT, sbp=flow.sbp.broadcast)
        model.x.copy_(x)
        before = model.weight.numpy().copy()
        outputs = {name: output.to_local().numpy().mean() for name, output in job().items()}
        moved.append(bool((model.weight.numpy() != before).all()))
        told.append(outputs["gradient_norm"])
        assert abs(outputs["total_loss"]) < 1e38
    assert moved == [True, True, False, False, True, True]
    # Of the loss as it is, not as it is scaled: 16 gradients of 1.
    assert [norm == 4.0 for norm in told] == moved == [math.isfinite(norm) for norm in told]
