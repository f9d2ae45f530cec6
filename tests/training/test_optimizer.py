"""The optimiser and its schedule within a graph, against their formulas in float64."""

import math

import numpy as np
import pytest

from config import parse_pretraining_args
from engine.oneflow_loader import flow
from running import needs_kernels
from system.errors import UserError
from training import optimizer
from training.job import TrainJob

PLACEMENT = flow.placement("cpu", [0])


def flags(**values):
    return parse_pretraining_args(["--data_dir=x", *(f"--{name}={value}" for name, value in values.items())])


class Nothing(flow.nn.Module):
    """A loader of no data."""

    def forward(self):
        return None


class Linear(flow.nn.Module):
    """A loss that is linear in its weights, so that their gradient is what is put into `gradients`."""

    def __init__(self, **weights):
        super().__init__()
        self.names = list(weights)
        for name, values in weights.items():
            weight = flow.tensor(values, placement=PLACEMENT, sbp=flow.sbp.broadcast)
            setattr(self, name, flow.nn.Parameter(weight))
            self.register_buffer(f"gradient_of_{name}", flow.zeros_like(weight))

    def give(self, gradients):
        for name, values in gradients.items():
            gradient = flow.tensor(values, placement=PLACEMENT, sbp=flow.sbp.broadcast)
            getattr(self, f"gradient_of_{name}").copy_(gradient)

    def forward(self, batch):
        products = [getattr(self, name) * getattr(self, f"gradient_of_{name}") for name in self.names]
        return {"total_loss": sum(product.sum() for product in products)}

    def values(self):
        flow._oneflow_internal.eager.Sync()
        return {name: weight.numpy().astype(np.float64) for name, weight in self.named_parameters()}


@pytest.mark.engine
@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_power": 0.5, "end_learning_rate": 0.02},
        {"lr_schedule": "cosine", "end_learning_rate": 0.05, "warmup_batches": 3},
        {"lr_schedule": "constant", "warmup_batches": 2},
        {"lr_schedule": "constant", "warmup_batches": 0},
    ],
    ids=str,
)
def test_learning_rates_are_those_of_the_formula(schedule):
    """Without memory of earlier gradients Adam moves a weight by the learning rate, so that the rate shows."""
    args = flags(
        **{"warmup_batches": 2, "learning_rate": 0.1, "iter_num": 7, "adam_beta1": 0, "adam_beta2": 0, **schedule}
    )
    model = Linear(bias=np.zeros(1, np.float32))
    model.give({"bias": np.full(1, 3.0, np.float32)})
    job = TrainJob(model, Nothing(), args)
    end = args.end_learning_rate
    for step in range(9):
        before = model.values()["bias"]
        job()
        progress = min(step, 7) / 7
        rate = {
            "linear": end + (0.1 - end) * (1 - progress) ** args.lr_power,
            "cosine": end + (0.1 - end) * (1 + math.cos(math.pi * progress)) / 2,
            "constant": 0.1,
        }[args.lr_schedule]
        if step < args.warmup_batches:
            rate = 0.1 * step / args.warmup_batches
        assert before - model.values()["bias"] == pytest.approx(rate, rel=2e-5, abs=1e-7)
        assert optimizer.learning_rate_at(step, args) == pytest.approx(rate, rel=1e-12)


@pytest.mark.engine
@pytest.mark.parametrize("max_grad_norm", [0.5, 0])
def test_adam_with_other_constants(max_grad_norm):
    args = flags(
        warmup_batches=0, learning_rate=0.01, iter_num=100, weight_decay_rate=0.1, adam_beta1=0.8, adam_beta2=0.95,
        adam_epsilon=1e-3, max_grad_norm=max_grad_norm,
    )  # fmt: skip
    generator = np.random.default_rng(1)
    shapes = {"weight": (5, 7), "bias": (6,)}
    weights = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    model = Linear(**weights)
    job = TrainJob(model, Nothing(), args)
    expected = model.values()
    m, v = dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0.0)
    for step in range(4):
        gradients = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        model.give(gradients)
        outputs = job()
        norm = math.sqrt(sum(float(np.square(g.astype(np.float64)).sum()) for g in gradients.values()))
        assert outputs["gradient_norm"].to_local().item() == pytest.approx(norm, rel=1e-5)
        scale = min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0
        for name, gradient in gradients.items():
            g = gradient * scale
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            decay = 0.1 * expected[name] if name == "weight" else 0.0
            expected[name] -= optimizer.learning_rate_at(step, args) * (m[name] / (np.sqrt(v[name]) + 1e-3) + decay)
        for name, value in model.values().items():
            assert np.linalg.norm(value - expected[name]) <= 1e-6 * np.linalg.norm(expected[name])


@pytest.mark.engine
@needs_kernels
@pytest.mark.parametrize(("max_grad_norm", "accumulation_steps"), [(0.5, 1), (0, 1), (0.5, 2)])
def test_lamb(max_grad_norm, accumulation_steps):
    """Ten steps against the formula of NVIDIA's FusedLAMB."""
    args = flags(
        optimizer_type="lamb", warmup_batches=2, learning_rate=0.02, iter_num=100, weight_decay_rate=0.1,
        adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3, max_grad_norm=max_grad_norm,
        num_accumulation_steps=accumulation_steps,
    )  # fmt: skip
    generator = np.random.default_rng(2)
    # In several chunks, in part of one, at zero; the last two have neither decay nor ratio.
    shapes = {"weight": (130, 257), "small": (5, 7), "zeros": (3, 4), "bias": (20,), "LayerNorm_gamma": (9,)}
    weights = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    weights["zeros"][:] = 0
    model = Linear(**weights)
    job = TrainJob(model, Nothing(), args)
    expected = model.values()
    m, v = dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0.0)
    for step in range(10):
        gradients = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        model.give(gradients)
        job()
        norm = math.sqrt(sum(float(np.square(g.astype(np.float64)).sum()) for g in gradients.values()))
        for name, gradient in gradients.items():
            g = gradient * (min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0)
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            decays = name in ("weight", "small", "zeros")
            update = m[name] / (1 - 0.8 ** (step + 1)) / (np.sqrt(v[name] / (1 - 0.95 ** (step + 1))) + 1e-3)
            update += 0.1 * expected[name] * decays
            norms = np.linalg.norm(expected[name]), np.linalg.norm(update)
            ratio = norms[0] / norms[1] if decays and all(norms) else 1.0
            expected[name] -= optimizer.learning_rate_at(step, args) * ratio * update
    values = model.values()
    for name in shapes:
        assert np.linalg.norm(values[name] - expected[name]) <= 1e-6 * np.linalg.norm(expected[name]), name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optimizer_type": "lamb", "zero_stage": 1}, "--zero_stage=1 cannot be had with --optimizer_type=lamb"),
        ({"optimizer_type": "lamb", "weight_decay_rate": 0}, "--weight_decay_rate=0 would make Adam of"),
        ({"optimizer_type": "lamb", "weight_decay_rate": 1e-46}, "--weight_decay_rate=1e-46 would make Adam of"),
        ({"num_accumulation_steps": 2**31 - 1}, "--num_accumulation_steps=2147483647: too many batches for an update"),
        ({"end_learning_rate": 0.1}, "--end_learning_rate=0.1 is above --learning_rate=0.0001"),
        ({"end_learning_rate": 1e-5, "lr_schedule": "constant"}, "--end_learning_rate=1e-05 has no effect with"),
        ({"lr_power": 2, "lr_schedule": "cosine"}, "--lr_power=2 has no effect with --lr_schedule=cosine"),
    ],
    ids=str,
)
def test_flags_that_contradict_each_other(values, expected):
    with pytest.raises(UserError, match=expected):
        flags(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adam_beta1", 1), ("adam_beta2", -0.1), ("adam_epsilon", 0), ("adam_epsilon", 1e-60), ("max_grad_norm", -1),
        ("max_grad_norm", "nan"), ("lr_power", 0), ("lr_schedule", "exponential"), ("end_learning_rate", "inf"),
    ],
)  # fmt: skip
def test_values_that_flags_do_not_take(name, value, capsys):
    with pytest.raises(SystemExit):
        flags(**{name: value})
    assert f"argument --{name}: " in capsys.readouterr().err
