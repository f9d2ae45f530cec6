"""The native kernels within OneFlow, against OneFlow's own: eager results, gradients, and AdamW steps of graphs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import native
from conftest import ROOT, TINY_MODEL, run

pytestmark = pytest.mark.skipif(not native.is_built(), reason="no native kernels: make kernels builds them")


def run_operators(file, kernels):
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kernel_operators.py"), str(file)],
        env={**os.environ, "BERT_KERNELS": kernels},
        check=True,
    )
    with np.load(file) as results:
        return dict(results)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results by name: (OneFlow's, ours)."""
    folder = tmp_path_factory.mktemp("operators")
    own = run_operators(folder / "own.npz", "none")
    ours = run_operators(folder / "ours.npz", native.runnable_sets()[0])
    assert "slow kernels" in str(own.pop("description"))
    assert str(ours.pop("description")).startswith("native kernels")
    assert own.keys() == ours.keys()
    return {name: (own[name], ours[name]) for name in own}


def test_same_as_oneflow(results):
    for name, (own, ours) in results.items():
        if name.startswith("dropout"):
            continue
        assert own.shape == ours.shape, name
        scale = np.abs(own).max()
        assert np.abs(own - ours).max() <= 2e-5 * scale + 1e-7, name


def test_dropout(results):
    masks = [results[f"dropout-{i}"][1] for i in range(7)]
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


def test_memory_is_taken_where_it_is_used():
    code = """
import engine, native, pathlib
native.steady_graphs()
flow = engine.load()
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
import argparse, ctypes, pathlib
import numpy as np
import engine, native
flow = engine.load()
import bert_util, pretrain
placement = flow.placement("cpu", [0])
config = bert_util.BertConfig(1000, 192, 4, 4, 768, 128, 2, 0.0, 0.0)
args = argparse.Namespace(
    use_fp16=False, learning_rate=1e-3, weight_decay_rate=0.01, iter_num=9, warmup_batches=0, zero_stage=0
)
generator = np.random.default_rng(1)
sizes = {"input_ids": (1000, 128), "input_mask": (2, 128), "segment_ids": (2, 128), "masked_lm_positions": (128, 20)}
sizes.update(masked_lm_ids=(1000, 20), next_sentence_labels=(2, 1))
batch = {name: generator.integers(0, bound, (8, length)).astype(np.int32) for name, (bound, length) in sizes.items()}
batch["masked_lm_weights"] = np.ones((8, 20), np.float32)
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
ctypes.CDLL(str(native._BUILD / "preload.so")).bert_change_plans(None)
apart, expected = trained()
assert len(values) == len(expected) > 60
for value, other in zip(values, expected):
    np.testing.assert_array_equal(value, other)
assert shared < 0.6 * apart, (shared, apart)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def losses(data, folder, **flags):
    """Of ten steps of pre-training, and what the run printed."""
    result = run(
        "run_pretraining.py", **TINY_MODEL, data_dir=data, data_part_num=1, log_dir=folder, model_save_dir=folder,
        seq_length=32, max_predictions_per_seq=5, batch_size_per_device=12, iter_num=10, learning_rate=1e-3,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0, save_last_snapshot=False, device="cpu", **flags,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (log,) = folder.glob("metrics-*.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    return np.array([step["total_loss"] for step in steps if "total_loss" in step]), result.stdout


def test_training_in_bfloat16(tiny_data, tmp_path):
    exact, _ = losses(tiny_data, tmp_path / "exact")
    rounded, output = losses(tiny_data, tmp_path / "rounded", use_fp16=True)
    assert len(exact) == len(rounded) == 10
    np.testing.assert_allclose(rounded, exact, rtol=0.01)
    if "Matrix products take bfloat16" in output:
        assert (rounded != exact).any()
    else:
        assert "--use_fp16 has no effect on this CPU, which computes in float32: this processor has no" in output
        np.testing.assert_array_equal(rounded, exact)


def test_bfloat16_needs_the_kernels(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_KERNELS", "none")
    _, output = losses(tiny_data, tmp_path, use_fp16=True)
    assert "--use_fp16 has no effect on this CPU, which computes in float32: it needs the native kernels" in output
