"""Training and prediction on GPUs: that graphs are built and run, and what they consist of.

They run wherever --device=cuda is usable. Nothing here looks at numbers but at those that a device cannot get wrong.
"""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from engine import device, native
from launched import PRETRAINING, SQUAD
from made_parts import write_classifier_part, write_pretraining_part, write_squad_parts
from running import ROOT, run
from snapshots import layout

GPUS, PROBLEM = device.usable_gpus()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(PROBLEM is not None, reason=f"--device=cuda is not usable here: {PROBLEM}"),
]
ONE_OR_MORE = [
    pytest.param(
        count, marks=pytest.mark.skipif(len(GPUS or ()) < count, reason=f"OneFlow can use fewer than {count} GPUs")
    )
    for count in (1, 2, 4)
]
RANKS = ONE_OR_MORE[:2]

# Shards of its matrices have more than 1,024 numbers; it is longer than the sequences.
MODEL = {"num_attention_heads": 2, "hidden_size_per_head": 32, "max_position_embeddings": 48, "device": "cuda"}
TRAINING = {"iter_num": 3, "batch_size_per_device": 4, "save_last_snapshot": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of records by what they are for."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pretraining").mkdir()
    for part in range(2):
        write_pretraining_part(folder / "pretraining" / f"part-{part}", 12)
    write_squad_parts(folder / "squad", 24, parts=2)
    write_squad_parts(folder / "dev", 13, parts=2, is_training=False)
    (folder / "classifier").mkdir()
    for part in range(4):
        write_classifier_part(folder / "classifier" / f"part-{part}", [0, 1, 1] * 8, seed=part)
    return folder


@pytest.fixture(scope="module")
def computes():
    """Skips a test that looks at numbers, where products of ones are none."""
    code = "from engine.oneflow_loader import load; flow = load(None, 'cuda'); x = flow.ones(8, 8, device='cuda'); "
    code += "print((x @ x).sum().item())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    if float(result.stdout) != 512.0:
        pytest.skip("the device computes nothing: a product of ones is zero")


def structure_of(script, output, ranks, **flags):
    """What tests/helpers/gpu_program.py writes on the first rank of a run that succeeds."""
    flags |= {
        "data_part_num": 4 if script == "run_classifier" else 2,
        "log_dir": output,
        "model_save_dir": output,
        "gpu_num_per_node": ranks,
    }
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "gpu_program.py")]
        + [f"--{name}={value}" for name, value in flags.items()],
        env={**os.environ, "SCRIPT": script, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    assert "Device: cuda" in result.stdout
    return json.loads((output / "structure-0.json").read_text())


def dtypes_of(graph, *types):
    """What kinds of floating point numbers the graph's operators of these types take and make."""
    used = {dtype for operator in graph if operator["type"] in types for dtype in operator["dtypes"]}
    return used & {"kFloat16", "kBFloat16", "kFloat", "kDouble"}


def logged(output):
    (path,) = output.glob("metrics-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("use_fp16", [False, True])
@pytest.mark.parametrize("script", ["run_pretraining", "run_squad"])
def test_training(data, tmp_path, script, use_fp16, zero_stage, ranks):
    kind, flags = ("squad", SQUAD) if script == "run_squad" else ("pretraining", PRETRAINING)
    flags = {**flags, **MODEL, **TRAINING, "data_dir": data / kind, "use_fp16": use_fp16, "zero_stage": zero_stage}
    structure = structure_of(script, tmp_path, ranks, **flags)
    # OneFlow's scheduler makes room for those who compute on a CPU only.
    assert structure["slow_threads"] == 0
    (graph,) = structure["graphs"]
    assert dtypes_of(graph, "matmul") == ({"kFloat16"} if use_fp16 else {"kFloat"})
    # The loss and what is done with the gradients, whatever the precision of the products.
    losses = ("sparse_softmax_cross_entropy", "sparse_softmax_cross_entropy_grad", "reduce_mean")
    assert dtypes_of(graph, *losses) == {"kFloat"}
    assert dtypes_of(graph, "multi_reduce_sum_pow_abs", "stack", "scalar_mul_by_tensor", "sqrt") <= {"kFloat"}
    types = [operator["type"] for operator in graph]
    assert ("multi_count_not_finite" in types) == use_fp16
    # One for the parameters that decay and one for the others; in float16 one more for the parameter whose gradient the
    # check for overflow reads, so that its scaling is not part of the update.
    assert (types.count("multi_tensor_adam_update"), types.count("adam_update") > 0) == (
        (0, True) if zero_stage else (2 + use_fp16, False)
    )
    lines = logged(tmp_path)
    assert len(lines) == 3
    for line in lines:
        # No step is skipped: then the norm would be left out.
        assert all(math.isfinite(line[name]) for name in line) and "gradient_norm" in line


@pytest.mark.skipif(not native.is_built(), reason="no native kernels: make kernels builds them")
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("use_fp16", "accumulation_steps"), [(False, 1), (True, 1), (True, 2)])
def test_lamb(data, tmp_path, use_fp16, accumulation_steps, ranks):
    flags = {**PRETRAINING, **MODEL, **TRAINING, "data_dir": data / "pretraining", "use_fp16": use_fp16}
    flags |= {"optimizer_type": "lamb", "num_accumulation_steps": accumulation_steps}
    (graph,) = structure_of("run_pretraining", tmp_path, ranks, **flags)["graphs"]
    types = [operator["type"] for operator in graph]
    variables = layout.variable_names(tmp_path / "last_snapshot")
    assert types.count("lamb_update") == sum(name.endswith("-m") for name in variables) > 0
    assert not {"adam_update", "multi_tensor_adam_update"} & set(types)
    if accumulation_steps == 1:
        # Clipping is part of the update.
        assert types.count("scalar_mul_by_tensor") <= 2 * use_fp16
    assert dtypes_of(graph, "matmul") == ({"kFloat16"} if use_fp16 else {"kFloat"})
    lines = logged(tmp_path)
    assert len(lines) == 3
    assert all("gradient_norm" in line for line in lines)


@pytest.mark.parametrize("ranks", ONE_OR_MORE)
def test_classifier(data, tmp_path, ranks):
    flags = {**SQUAD, **MODEL, **TRAINING, "use_fp16": True, "hidden_dropout_prob": 0.1, "num_labels": 2}
    folders = {f"{name}data_dir": data / "classifier" for name in ("", "eval_", "test_")}
    work = {"do_train": True, "do_eval": True, "do_predict": True}
    for graph in structure_of("run_classifier", tmp_path, ranks, **flags, **folders, **work)["graphs"]:
        assert dtypes_of(graph, "matmul") == {"kFloat16"}
        assert dtypes_of(graph, "sparse_softmax_cross_entropy") <= {"kFloat"}
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) in (96, 97)


@pytest.mark.skipif(not native.is_built(), reason="no native kernels: make kernels builds them")
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("use_fp16", [False, True])
def test_fused_operators(data, tmp_path, use_fp16, ranks):
    """Dropout goes with its neighbours, and no gradient is scaled by a kernel of its own."""
    flags = {**PRETRAINING, **MODEL, **TRAINING, "data_dir": data / "pretraining", "use_fp16": use_fp16}
    flags |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (graph,) = structure_of("run_pretraining", tmp_path, ranks, **flags)["graphs"]
    types = [operator["type"] for operator in graph]
    layers = types.count("fused_scale_mask_softmax_dropout")
    assert layers == flags["num_hidden_layers"]
    assert types.count("fused_bias_add_mask_scale") == 2 * layers
    assert types.count("random_mask_like") == 3 * layers + 1
    # Of the loss, and where several ranks share it.
    assert types.count("scalar_mul_by_tensor") <= 2 * use_fp16
    assert not {"uniform", "softmax", "fused_cast_scale"} & set(types), set(types)
    assert dtypes_of(graph, "fused_scale_mask_softmax_dropout") == ({"kFloat16"} if use_fp16 else {"kFloat"})


@pytest.mark.parametrize(("use_fp16", "tolerance"), [(False, 1e-4), (True, 1e-2)])
def test_losses_are_those_of_the_cpu(computes, data, tmp_path, use_fp16, tolerance):
    losses = {}
    for name in ("cpu", "cuda"):
        flags = {**PRETRAINING, **MODEL, "data_dir": data / "pretraining", "iter_num": 20, "batch_size_per_device": 4}
        flags |= {"device": name, "tf32": False, "use_fp16": use_fp16 and name == "cuda"}
        result = run("run_pretraining.py", **flags, log_dir=tmp_path / name, model_save_dir=tmp_path / name)
        assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
        losses[name] = [line["total_loss"] for line in logged(tmp_path / name)]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=tolerance)
    assert losses["cpu"][-1] < losses["cpu"][0]


def test_snapshots_begin_as_on_the_cpu(data, tmp_path):
    """A step at a learning rate of 0 changes no parameter."""
    flags = {**PRETRAINING, **MODEL, **TRAINING, "data_dir": data / "pretraining", "iter_num": 1, "learning_rate": 0}
    for name in ("cpu", "cuda"):
        output = tmp_path / name
        result = run("run_pretraining.py", **{**flags, "device": name, "log_dir": output, "model_save_dir": output})
        assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    folders = [tmp_path / name / "last_snapshot" for name in ("cpu", "cuda")]
    assert layout.variable_names(folders[0]) == layout.variable_names(folders[1])
    for name in layout.variable_names(folders[0]):
        if not name.endswith(("-m", "-v")):
            values = [layout.read_variable(folder, name) for folder in folders]
            np.testing.assert_array_equal(*values, err_msg=name)


@pytest.mark.skipif(not all(gpu.is_ampere() for gpu in GPUS or ()), reason="a GPU here has no bfloat16")
@pytest.mark.parametrize("ranks", RANKS)
def test_bfloat16(data, tmp_path, ranks):
    flags = {**PRETRAINING, **MODEL, **TRAINING, "data_dir": data / "pretraining", "use_fp16": True}
    (graph,) = structure_of("run_pretraining", tmp_path, ranks, **flags, amp_dtype="bfloat16")["graphs"]
    assert dtypes_of(graph, "matmul") == {"kBFloat16"}
    assert dtypes_of(graph, "sparse_softmax_cross_entropy", "sparse_softmax_cross_entropy_grad") == {"kFloat"}
    # Nothing is scaled, so no step is skipped.
    assert not {"multi_count_not_finite", "dynamic_loss_scale_schedule"} & {operator["type"] for operator in graph}
    assert len(logged(tmp_path)) == 3


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("skip_padding", [False, True])
@pytest.mark.parametrize("use_fp16", [False, True])
def test_prediction(data, tmp_path, use_fp16, skip_padding, ranks):
    flags = {**SQUAD, **MODEL, "batch_size_per_device": 4}
    output = {"log_dir": tmp_path, "model_save_dir": tmp_path}
    training = {**flags, **TRAINING, **output, "iter_num": 1, "data_dir": data / "squad"}
    assert run("run_squad.py", **training).returncode == 0
    file = tmp_path / "results.npy"
    flags |= {"data_dir": data / "dev", "model_load_dir": tmp_path / "last_snapshot", "all_results_file": file}
    del flags["iter_num"]
    flags |= {"use_fp16": use_fp16, "skip_padding": skip_padding}
    for graph in structure_of("run_squad_predict", tmp_path, ranks, **flags)["graphs"]:
        assert dtypes_of(graph, "matmul") == ({"kFloat16"} if use_fp16 else {"kFloat"})
    results = np.load(file, allow_pickle=False)
    assert results["unique_id"].tolist() == list(range(1000000000, 1000000013))
    assert np.isfinite(results["start_logits"]).all()
