"""The native kernels within OneFlow, against OneFlow's own: eager results, gradients, and AdamW steps of graphs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from engine import kernel_files, native
from launched import Launched
from running import ROOT, TINY_MODEL, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.is_built(), reason="no native kernels: make kernels builds them"),
]


@pytest.fixture(autouse=True)
def kernels_are_used(monkeypatch):
    """Whatever the other tests are to do without."""
    monkeypatch.delenv("BERT_KERNELS", raising=False)


def run_operators(file, kernels):
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "kernel_operators.py"), str(file)],
        env={**os.environ, "BERT_KERNELS": kernels},
        check=True,
    )
    with np.load(file) as results:
        return dict(results)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Results of OneFlow's own kernels by name."""
    results = run_operators(tmp_path_factory.mktemp("own") / "own.npz", "none")
    assert "slow kernels" in str(results.pop("description"))
    return results


@pytest.fixture(scope="module", params=kernel_files.built_sets())
def ours(request, tmp_path_factory):
    """Results of the library's by name."""
    results = run_operators(tmp_path_factory.mktemp("ours") / "ours.npz", request.param)
    assert str(results.pop("description")).startswith(f"native kernels: {request.param}")
    return results


def error(actual, expected):
    """The largest difference."""
    assert actual.shape == expected.shape
    return np.abs(actual.astype(np.float64) - expected).max()


def exact_name(name):
    """That of what float64 says to the result `name`, if there is one."""
    kind, number = name.rsplit("-", 1)
    return f"{kind}-exact-{number}"


def test_same_as_oneflow(own, ours):
    """In graphs, and eagerly with memory that is not aligned."""
    assert ours.keys() == {name for name in own if "-exact-" not in name}
    for name in ours:
        if not name.startswith("dropout") and exact_name(name) not in own:
            assert error(ours[name], own[name]) <= 2e-5 * np.abs(own[name]).max() + 1e-7, name


def test_right_at_extremes(own, ours):
    """Values and gradients are what float64 says, by OneFlow's own kernels; denormal ones too.

    Where float32 cannot hold that, as in attention scores of 10,000, OneFlow's own kernels say what it can.
    """
    compared = 0
    for name in ours:
        expected = own.get(exact_name(name))
        if expected is not None:
            tolerance = 2e-5 * np.abs(expected).max() + 1e-44
            assert error(ours[name], expected) <= max(tolerance, 2 * error(own[name], expected)), name
            compared += 1
    assert compared > 400


def test_dropout(ours):
    masks = [ours[f"dropout-{i}"] for i in range(7)]
    for mask in masks:
        np.testing.assert_array_equal(np.unique(mask), np.float32([0, 4 / 3]))
        assert (mask == 0).mean() == pytest.approx(0.25, abs=0.01)
    first, again, other, *of_graph = masks
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # In a graph, OneFlow's own kernel gives all layers the same mask.
    for i, mask in enumerate(of_graph):
        for later in of_graph[i + 1 :]:
            assert (mask != later).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.02)


def test_dropout_gradients(own, ours):
    for results in (own, ours):
        eager, eager_gradient, graph, graph_gradient = (results[f"dropout-gradient-{i}"] for i in range(4))
        x, weights = (np.random.default_rng(seed).standard_normal((13, 77)).astype(np.float32) for seed in (0, 99))
        for out, gradient in ((eager, eager_gradient), (graph, graph_gradient)):
            scale = np.where(out != 0, np.float32(4 / 3), 0)
            np.testing.assert_allclose(out, x * scale, rtol=1e-6)
            np.testing.assert_allclose(gradient, weights * scale, rtol=1e-6)


def test_graph_for_cuda_against_float64():
    """The graph that a GPU runs, of the library's plain kernels."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0"]
        + [
            "tests/models/test_pretraining_numerics.py::test_losses_and_gradients",
            "tests/training/test_optimizer.py::test_lamb",
        ],
        cwd=ROOT,
        env={**os.environ, "BERT_OPERATORS": "cuda"},
        check=True,
    )


def test_dropout_for_cuda():
    """Masks and their scale, the order of heads, and what becomes of padding, by the operators of a GPU."""
    code = """
import numpy as np
from engine import native
native.load_engine_fixes()
from engine import operators
from engine.oneflow_loader import flow, nn
native.set_seed(5)
place = {"placement": flow.placement("cpu", [0]), "sbp": flow.sbp.broadcast}
BATCH, LENGTH, HEADS, RATE = 2, 64, 3, 0.25
SIZE = HEADS * LENGTH
parameters = nn.ParameterDict({
    "value": nn.Parameter(flow.tensor(np.tile(np.eye(LENGTH, dtype=np.float32), (BATCH, HEADS)), **place)),
    "x": nn.Parameter(flow.ones(BATCH * LENGTH, SIZE, **place)),
    "bias": nn.Parameter(flow.full((SIZE,), 2.0, **place)),
})
nothing = flow.zeros(BATCH * LENGTH, SIZE, **place)
ramp = flow.tensor(np.arange(SIZE, dtype=np.float32), **place)
kept = np.ones((BATCH, LENGTH), np.int32)
kept[1, 48:] = 0
kept = flow.tensor(kept, **place)

class Job(nn.Graph):
    def __init__(self):
        super().__init__()
        self.parameters_of_job = parameters
        self.config.allow_fuse_add_to_output(True)
        self.add_optimizer(flow.optim.SGD(parameters.parameters(), lr=0.0))

    def build(self):
        mask = operators.attention_mask(kept)
        context = operators.attention(nothing, nothing, parameters["value"], mask, HEADS, RATE)
        plain = operators.attention(nothing, nothing, parameters["value"], mask, HEADS, 0.0)
        first, second = (operators.dropout(parameters["x"], RATE) for _ in range(2))
        x, bias = parameters["x"], parameters["bias"]
        normalised = operators.residual_norm(x, bias, nothing + 5.0, ramp + 1.0, ramp, mask, RATE)
        ((context * context).sum() + (first + 2.0 * second).sum()).backward()
        gradients = [parameters[name].grad for name in ("value", "x")]
        return [context, plain, first, second, normalised, *gradients]

job = Job()
outputs, later = ([output.numpy() for output in job()] for _ in range(2))
context, plain, first, second, normalised, dvalue, dx = outputs
scale = np.float32(1 / (1 - RATE))
# One head after the other: in each, the probability of each key, all the same, dropped or scaled up, 0 for padding.
probabilities = context.reshape(BATCH, LENGTH, HEADS, LENGTH)
for sequence, keys in enumerate((64, 48)):
    assert (probabilities[sequence, :, :, keys:] == 0).all()
    there = probabilities[sequence, :, :, :keys]
    np.testing.assert_allclose(np.unique(there), [0, scale / keys], rtol=1e-6)
    assert abs((there == 0).mean() - RATE) < 0.03, (there == 0).mean()
    expected = np.zeros((LENGTH, HEADS, LENGTH))
    expected[:, :, :keys] = 1 / keys
    np.testing.assert_allclose(plain.reshape(BATCH, LENGTH, HEADS, LENGTH)[sequence], expected, rtol=1e-6)
# The gradient of the sum of squares by the values: 2 p^T p v, by the same masked p.
p = probabilities.transpose(0, 2, 1, 3)
expected = 2 * p.transpose(0, 1, 3, 2) @ p
np.testing.assert_allclose(dvalue.reshape(BATCH, LENGTH, HEADS, LENGTH).transpose(0, 2, 1, 3), expected, atol=1e-6)
np.testing.assert_allclose(dx, first + 2 * second, rtol=1e-6)
# Before it is normalised, each is (1 + 2) x scale + 5, or 5 where it is dropped.
is_dropped = normalised < (np.arange(SIZE))
share = is_dropped.mean(axis=1, keepdims=True)
assert abs(share.mean() - RATE) < 0.02
deviation = np.sqrt(share * (1 - share))
expected = np.where(is_dropped, share - 1, share) / deviation * (np.arange(SIZE) + 1) + np.arange(SIZE)
np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-3)
# No two masks are the same: of places, of steps.
masks = [values != 0 for values in (first, second, later[2], later[3])]
for i, mask in enumerate(masks):
    for other in masks[i + 1 :]:
        assert abs((mask != other).mean() - 2 * RATE * (1 - RATE)) < 0.02
assert (later[0] != context).any()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "BERT_OPERATORS": "cuda"}, check=True)


def test_what_an_operator_cannot_take_is_an_error_of_python():
    code = """
import sys
from engine import native, oneflow_loader
flow = oneflow_loader.load()

def of(*shape):
    return flow.ones(*shape)

random = flow.ones(8, dtype=flow.int64)
attention = [of(8, 4), of(8, 4), of(8, 4), of(2, 4)]
attention_grad = [of(8, 4), *attention, random]
norm = [of(8, 4), of(4), of(8, 4), of(4), of(4), of(2, 4)]
norm_grad = [of(8, 4), of(8, 4), of(8), of(4), random, of(2, 4)]
good = {
    "bert_attention": attention, "bert_attention_grad": attention_grad, "bert_residual_norm": norm,
    "bert_residual_norm_grad": norm_grad, "bert_bias_gelu_grad": [of(8, 4), of(4), of(8, 4)],
    "bert_linear": [of(8, 3), of(3, 4), of(4)], "bert_linear_grad": [of(8, 3), of(8, 4)],
    "bert_layout": [of(2, 4)], "bert_pack": [of(8, 3), of(2, 4)], "bert_unpack": [of(8, 3), of(2, 4)],
    "multi_reduce_sum_pow_abs": [of(3), of(8, 4)],
    "scalar_mul_by_tensor": [of(3), of(1)],
}

ANY_ROWS = [("bert_linear", 0), ("bert_layout", 0)]
ANY_COLUMNS = [
    ("bert_linear_grad", 0), ("bert_linear_grad", 1), ("bert_layout", 0), ("bert_pack", 0), ("bert_unpack", 0),
]

def fails(operator, tensors, error=ValueError, **attributes):
    try:
        native.apply(operator, tensors, **attributes)
    except error as found:
        text = str(found)
        assert text.startswith(operator + ": ") and text.isprintable(), text
        return text
    raise AssertionError((operator, [tensor.shape for tensor in tensors], attributes))

for operator, tensors in good.items():
    native.apply(operator, tensors)
    for place, tensor in enumerate(tensors):
        others = [None, 1.0, tensor.numpy()]
        if operator != "multi_reduce_sum_pow_abs":
            fails(operator, tensors[:place] + tensors[place + 1 :])
            others += [of(*tensor.shape, 1), of(5), tensor.to(flow.float64)]
            if (operator, place) not in ANY_COLUMNS:
                others.append(of(*tensor.shape[:-1], tensor.shape[-1] + 1))
            if (operator, place) not in ANY_ROWS:
                others.append(of(tensor.shape[0] + 1, *tensor.shape[1:]))
        if operator == "scalar_mul_by_tensor":
            others = others[:3]
        for other in others:
            error = ValueError if isinstance(other, flow.Tensor) else TypeError
            fails(operator, tensors[:place] + [other] + tensors[place + 1 :], error)
    native.apply(operator, tensors)
for heads in (0, -1, 3, 8, 2**40):
    fails("bert_attention", attention, heads=heads)
    fails("bert_attention_grad", attention_grad, heads=heads)
for rate in (-0.1, 1.1, float("nan")):
    for operator in ("bert_attention", "bert_attention_grad", "bert_residual_norm", "bert_residual_norm_grad"):
        fails(operator, good[operator], rate=rate)
for operator in ("bert_nothing", "", "relu_of"):
    fails(operator, [])
assert fails("bert_linear", []) == "bert_linear: it takes 3 tensors, not 0"
narrow = [of(8, 4), of(8, 2), of(8, 4), of(2, 4)]
assert fails("bert_attention", narrow) == "bert_attention: key is (8,2), not (8,4)"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_memory_is_taken_where_it_is_used():
    code = """
import pathlib
from engine import native
native.load_engine_fixes()
from engine.oneflow_loader import flow
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
large = flow.empty(1 << 28)
assert large[12345:12347].numpy().tolist() == [0, 0]
assert resident() - before < 1 << 26, resident() - before
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_arrays_of_a_graph_share_memory():
    code = """
import pathlib
import numpy as np
from engine import native
from engine.oneflow_loader import flow
import bert_util, pretrain
from config import parse_pretraining_args
placement = flow.placement("cpu", [0])
config = bert_util.BertConfig(1000, 192, 4, 4, 768, 128, 2, 0.0, 0.0)
args = parse_pretraining_args(["--data_dir=x", "--learning_rate=1e-3", "--iter_num=9", "--warmup_batches=0"])
generator = np.random.default_rng(1)
sizes = {"input_ids": (1000, 128), "input_mask": (2, 128), "segment_ids": (2, 128), "masked_lm_positions": (128, 20)}
sizes.update(masked_lm_ids=(1000, 20), next_sentence_labels=(2, 1))
batch = {name: generator.integers(0, bound, (16, length)).astype(np.int32) for name, (bound, length) in sizes.items()}
batch["masked_lm_weights"] = np.ones((16, 20), np.float32)
batch = {name: flow.tensor(array, placement=placement, sbp=flow.sbp.broadcast) for name, array in batch.items()}
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
def trained():
    model = pretrain.BertForPretraining(config, bert_util.Initializer(placement, 3))
    job = pretrain.PretrainJob(model, lambda: batch, args)
    before = resident()
    metrics = [job() for _ in range(4)]
    values = [metric.numpy() for step in metrics for metric in step.values()]
    return resident() - before, values + [parameter.numpy().copy() for parameter in model.parameters()]
trained()  # what is taken once
shared, values = trained()
native.load_engine_fixes().bert_change_plans(None)
apart, expected = trained()
assert len(values) == len(expected) > 60
for value, other in zip(values, expected):
    np.testing.assert_array_equal(value, other)
assert shared < 0.6 * apart, (shared, apart)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_outputs_that_prediction_does_not_read_share_memory():
    code = """
import ctypes, pathlib
import numpy as np
from engine import native
from engine.oneflow_loader import flow
import bert_util, squad
from training import scoring
placement = flow.placement("cpu", [0])
config = bert_util.BertConfig(1000, 384, 12, 4, 1536, 128, 2, 0.1, 0.1)
model = squad.BertForQuestionAnswering(config, bert_util.Initializer(placement, 3))
ids = np.random.default_rng(1).integers(0, 2, (8, 128)).astype(np.int32)
inputs = [flow.tensor(ids, placement=placement, sbp=flow.sbp.broadcast) for _ in range(3)]
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
def predicted():
    job = scoring.BatchJob(model.eval())
    before = resident()
    logits = [output.numpy() for output in job(*inputs)]
    return resident() - before, logits
predicted()  # what is taken once
shared, logits = predicted()
native.load_engine_fixes().bert_change_plans(None)
apart, expected = predicted()
np.testing.assert_array_equal(logits, expected)
assert shared < 0.1 * apart, (shared, apart)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_graphs_that_are_kept_make_the_same_jobs(ranks, tmp_path):
    """With all that rewrites jobs: accumulation, checkpointing, with two ranks ZeRO."""
    flags = {**TINY_MODEL, "num_hidden_layers": 1, "seq_length": 16, "max_predictions_per_seq": 3, "iter_num": 9}
    with Launched(
        "tests/helpers/compiled_jobs.py", tmp_path, environment={"PYTHONPATH": str(ROOT)}, **flags, data_dir=tmp_path,
        device="cpu", gpu_num_per_node=ranks, zero_stage=ranks - 1,
    ) as program:  # fmt: skip
        assert program.wait(timeout=300) == 0, program.stderr
    assert "The same: prediction, training." in program.stdout


def losses(data, folder, **flags):
    """Of each step of pre-training without dropout, and what the run printed."""
    sizes = {"seq_length": 32, "max_predictions_per_seq": 5, "batch_size_per_device": 12, "iter_num": 10}
    result = run(
        "run_pretraining.py", **{**TINY_MODEL, **sizes, **flags}, data_dir=data, data_part_num=1, log_dir=folder,
        model_save_dir=folder, hidden_dropout_prob=0, attention_probs_dropout_prob=0, save_last_snapshot=False,
        device="cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (log,) = folder.glob("metrics-*.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    return np.array([step["total_loss"] for step in steps if "total_loss" in step]), result.stdout


def test_training_in_bfloat16(tmp_path, monkeypatch):
    """Losses over 100 steps of the sample are within 1 % of float32's, also where operands are rounded in software."""
    sample = {
        "seq_length": 128, "max_predictions_per_seq": 20, "vocab_size": 1200, "num_hidden_layers": 2,
        "num_attention_heads": 4, "hidden_size_per_head": 64, "max_position_embeddings": 128,
        "batch_size_per_device": 2, "iter_num": 100, "learning_rate": 1e-4, "warmup_batches": 10,
    }  # fmt: skip
    exact, _ = losses(ROOT / "dataset", tmp_path / "exact", **sample)
    # It has learnt, as far as a model of this size does in 100 steps.
    assert exact[-1] < 0.75 * exact[0]
    processor_has_it = "avx512_bf16" in kernel_files.processor_flags()
    for in_software in {not processor_has_it, True}:
        # Builds without AVX-512 leave no instruction to the processor that it may have.
        monkeypatch.setenv("BERT_KERNELS", "" if in_software == (not processor_has_it) else "avx2")
        rounded, output = losses(ROOT / "dataset", tmp_path / str(in_software), use_fp16=True, **sample)
        told = "Notice: --use_fp16 makes this run slower" if in_software else "Matrix products take bfloat16"
        assert told in output
        assert len(exact) == len(rounded) == 100
        differences = np.abs(rounded / exact - 1)
        # What was seen is 0.0001. Products that round to half as many digits again do not pass this.
        assert 1e-7 < differences.max() <= 0.001


def test_bfloat16_needs_the_kernels(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_KERNELS", "none")
    _, output = losses(tiny_data, tmp_path, use_fp16=True)
    assert "--use_fp16 has no effect on this CPU, which computes in float32: it needs the native kernels" in output
