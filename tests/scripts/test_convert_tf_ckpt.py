"""convert_tf_ckpt_to_of.py on checkpoints that TensorFlow itself writes."""

import json
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import convert_tf_ckpt_to_of
from in_process import full_disk, run_in_process
from running import ROOT, assert_fails_with_one_line, run
from snapshots import layout
from tf_checkpoints import CONFIG, HIDDEN, POOLER, bert_variables_of, random_values, save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as Google publishes them, of a model in training: with Adam's moments and the training step."""
    folder = tmp_path_factory.mktemp("tf") / "uncased_L-2_H-16_A-4"
    values = random_values(bert_variables_of())
    moments = {
        f"{name}/adam_{moment}": np.random.default_rng(ord(moment)).random(value.shape, np.float32)
        for name, value in values.items()
        for moment in "mv"
    }
    values |= moments | {"global_step": np.int64(1234)}
    save_checkpoint(folder / "bert_model.ckpt", values)
    (folder / "bert_config.json").write_text(json.dumps(CONFIG))
    return folder, values


SCRIPT = "convert_tf_ckpt_to_of.py"


def convert(source, target, *arguments):
    """Runs the script within this process, which has TensorFlow loaded already."""
    return run_in_process(
        convert_tf_ckpt_to_of.main, SCRIPT, *arguments, tf_checkpoint_path=source, of_dump_path=target
    )


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    folder, values = checkpoint
    target = tmp_path_factory.mktemp("of") / "bert-oneflow"
    result = run(SCRIPT, tf_checkpoint_path=folder, of_dump_path=target)
    assert result.returncode == 0, result.stderr
    return target, values, result


def test_writes_every_variable_and_moment_under_its_name(converted):
    target, values, _ = converted
    expected = {}
    for name, (snapshot_name, _) in bert_variables_of().items():
        expected[snapshot_name] = values[name]
        expected[f"{snapshot_name}-m"] = values[f"{name}/adam_m"]
        expected[f"{snapshot_name}-v"] = values[f"{name}/adam_v"]
    assert layout.variable_names(target) == sorted(expected)
    for name, value in expected.items():
        assert (target / name / "out").read_bytes() == value.astype("<f4").tobytes()
        np.testing.assert_array_equal(layout.read_variable(target, name), value)


def test_engine_reads_the_result(converted):
    target, values, _ = converted
    # In a process of its own, so that this one need not hold the engine beside TensorFlow.
    program = (
        "import sys, numpy; from engine.oneflow_loader import flow; variables = flow.load(sys.argv[1]);"
        "numpy.savez(sys.argv[2], **{name: tensor.numpy() for name, tensor in variables.items()})"
    )
    arrays = target.parent / "arrays.npz"
    subprocess.run([sys.executable, "-c", program, str(target), str(arrays)], cwd=ROOT, check=True, timeout=120)
    with np.load(arrays) as loaded:
        assert sorted(loaded) == layout.variable_names(target)
        for name, (snapshot_name, _) in bert_variables_of().items():
            np.testing.assert_array_equal(loaded[snapshot_name], values[name])


def test_says_what_it_did(converted):
    target, values, result = converted
    lines = result.stdout.splitlines()
    names = layout.variable_names(target)
    parameters = sum(np.size(value) for name, value in values.items() if name != "global_step")
    moments = 2 * len(bert_variables_of())
    assert lines == [
        f"converted {len(names)} variables (including {moments} of Adam's moments): {parameters:,} parameters, "
        f"{4 * parameters:,} bytes, in {target}",
        "skipped global_step: the training step: a run from the snapshot starts its schedule at 0",
        "flags for this model: --num_hidden_layers=2 --num_attention_heads=4 --hidden_size_per_head=4 "
        "--vocab_size=50 --max_position_embeddings=24",
    ]
    assert result.stderr == ""


def test_prefix_and_its_files_name_the_same_checkpoint(checkpoint, converted, tmp_path):
    folder, _ = checkpoint
    for number, name in enumerate(("bert_model.ckpt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001")):
        result = convert(folder / name, tmp_path / str(number))
        assert result.returncode == 0, result.stderr
        assert layout.variable_names(tmp_path / str(number)) == layout.variable_names(converted[0])


@pytest.fixture(scope="module")
def small_values():
    """A one-layer model without pooler and heads: quick to convert."""
    return random_values({name: entry for name, entry in bert_variables_of(1, {}).items() if name not in POOLER})


def test_folder_without_checkpoint_file(small_values, tmp_path):
    save_checkpoint(tmp_path / "model" / "bert_model.ckpt", small_values)
    (tmp_path / "model" / "checkpoint").unlink()
    result = convert(tmp_path / "model", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert len(layout.variable_names(tmp_path / "out")) == len(small_values)


def test_without_a_config_the_sizes_are_named_and_the_heads_left_open(small_values, tmp_path):
    save_checkpoint(tmp_path / "model" / "bert_model.ckpt", small_values)
    result = convert(tmp_path / "model", tmp_path / "out")
    assert result.stdout.splitlines()[-1].startswith("layers: 1, hidden size: 16 (")


def test_checkpoint_file_chooses_among_several_also_after_a_move(small_values, tmp_path):
    save_checkpoint(tmp_path / "here" / "model.ckpt-1", {name: value * 2 for name, value in small_values.items()})
    save_checkpoint(tmp_path / "here" / "model.ckpt-2", small_values)
    (tmp_path / "here" / "checkpoint").write_text('model_checkpoint_path: "/gone/training/model.ckpt-1"\n')
    result = convert(tmp_path / "here", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(
        layout.read_variable(tmp_path / "out", "bert-embeddings-word_embeddings"),
        small_values["bert/embeddings/word_embeddings"] * 2,
    )


def test_checkpoint_with_a_name_beyond_ascii(small_values, tmp_path):
    save_checkpoint(tmp_path / "modèle" / "модель.ckpt", small_values)  # TensorFlow escapes it in `checkpoint`
    save_checkpoint(tmp_path / "modèle" / "other.ckpt", small_values)
    (tmp_path / "modèle" / "checkpoint").write_text(
        'model_checkpoint_path: "' + "".join(f"\\{byte:03o}" for byte in "модель.ckpt".encode()) + '"\n'
    )
    result = convert(tmp_path / "modèle", tmp_path / "out")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "named", [r"C:\models\bert\model.ckpt-1", r"C:\\models\\bert\\model.ckpt-1", r"D:/b/model.ckpt-1"]
)
def test_checkpoint_file_from_windows(tmp_path, named):
    for name in ("model.ckpt-1", "model.ckpt-2"):
        (tmp_path / f"{name}.index").touch()
    (tmp_path / "checkpoint").write_text(f'\ufeffmodel_checkpoint_path: "{named}"\r\n', encoding="utf-8")
    assert convert_tf_ckpt_to_of.find_checkpoint(tmp_path) == tmp_path / "model.ckpt-1"


@pytest.mark.parametrize("before", ["model/", "tower/bert/", "-bert/"])
def test_names_within_a_wrapper(small_values, tmp_path, before):
    """With something before `bert/`, and with the encoder's names alone, where `bert/` is missing."""
    if before == "-bert/":
        values = {name.removeprefix("bert/"): value for name, value in small_values.items()}
    else:
        values = {before.removesuffix("bert/") + name: value for name, value in small_values.items()}
    save_checkpoint(tmp_path / "model.ckpt", values)
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    for name, (snapshot_name, _) in bert_variables_of(1, {}).items():
        if name in small_values:
            np.testing.assert_array_equal(layout.read_variable(tmp_path / "out", snapshot_name), small_values[name])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(small_values, tmp_path, value):
    name = "bert/embeddings/LayerNorm/beta"
    broken = np.where(np.arange(16) == 3, value, small_values[name]).astype(np.float32)
    save_checkpoint(tmp_path / "model.ckpt", small_values | {name: broken})
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert_fails_with_one_line(result, f"model.ckpt: {name} holds NaN or infinity")
    assert not (tmp_path / "out").exists()


def test_a_padded_vocabulary_is_said_to_be_one(small_values, tmp_path):
    words = np.zeros((56, 16), np.float32)
    save_checkpoint(tmp_path / "model.ckpt", small_values | {"bert/embeddings/word_embeddings": words})
    (tmp_path / "bert_config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1}))
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert_fails_with_one_line(result, "bert_config.json: has vocab_size 50, but the weights have 56", "multiple of 8")


def test_squad_head_is_turned_to_the_orientation_of_a_dense_layer(small_values, tmp_path):
    weights = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    values = small_values | {
        "cls/squad/output_weights": weights,
        "cls/squad/output_weights/adam_m": weights + 1000,
        "cls/squad/output_weights/adam_v": weights + 2000,
        "cls/squad/output_bias": np.float32([3, 4]),
    }
    save_checkpoint(tmp_path / "model.ckpt", values)
    assert convert(tmp_path / "model.ckpt", tmp_path / "out").returncode == 0
    for suffix, offset in (("", 0), ("-m", 1000), ("-v", 2000)):
        found = layout.read_variable(tmp_path / "out", f"cls-squad-output-weight{suffix}")
        assert found.shape == (HIDDEN, 2)
        np.testing.assert_array_equal(found, weights.T + offset)
    np.testing.assert_array_equal(layout.read_variable(tmp_path / "out", "cls-squad-output-bias"), [3, 4])


def test_narrow_and_wide_floats_become_float32(small_values, tmp_path):
    word, position = "bert/embeddings/word_embeddings", "bert/embeddings/position_embeddings"
    token_type = "bert/embeddings/token_type_embeddings"
    values = small_values | {
        word: small_values[word].astype(np.float16),
        position: small_values[position].astype(ml_dtypes.bfloat16),
        token_type: small_values[token_type].astype(np.float64) / 3,
    }
    save_checkpoint(tmp_path / "model.ckpt", values)
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    for name in (word, position, token_type):
        found = layout.read_variable(tmp_path / "out", name.replace("/", "-"))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values[name].astype(np.float32))
    for dtype in ("float16", "bfloat16", "float64"):
        assert f"stored as float32: 1 variables of {dtype}\n" in result.stdout


def test_state_of_the_training_is_skipped_with_its_reason(small_values, tmp_path):
    gamma = "bert/embeddings/LayerNorm/gamma"
    values = small_values | {
        "global_step": np.int64(7),
        "beta1_power": np.float32(0.9),
        "good_steps": np.int32(3),
        f"{gamma}/Adam": small_values[gamma],
        f"{gamma}/lamb_v": small_values[gamma],
    }
    save_checkpoint(tmp_path / "model.ckpt", values)
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert len(layout.variable_names(tmp_path / "out")) == len(small_values)
    skipped = [line for line in result.stdout.splitlines() if line.startswith("skipped")]
    assert [re.match("skipped (.*?): ", line)[1] for line in skipped] == [
        f"{gamma}/Adam, {gamma}/lamb_v",
        "beta1_power",
        "global_step",
        "good_steps",
    ]


def test_intermediate_size_of_its_own_is_among_the_flags(small_values, tmp_path):
    values = dict(small_values)
    prefix = "bert/encoder/layer_0"
    values[f"{prefix}/intermediate/dense/kernel"] = np.zeros((HIDDEN, 40), np.float32)
    values[f"{prefix}/intermediate/dense/bias"] = np.zeros(40, np.float32)
    values[f"{prefix}/output/dense/kernel"] = np.zeros((40, HIDDEN), np.float32)
    save_checkpoint(tmp_path / "model.ckpt", values)
    config = CONFIG | {"num_hidden_layers": 1, "intermediate_size": 40}
    (tmp_path / "bert_config.json").write_text(json.dumps(config))
    assert "--intermediate_size=40" in convert(tmp_path / "model.ckpt", tmp_path / "out").stdout


def test_existing_output_stays_unless_told_otherwise(small_values, tmp_path):
    save_checkpoint(tmp_path / "model.ckpt", small_values)
    assert convert(tmp_path / "model.ckpt", tmp_path / "out").returncode == 0
    before = layout.read_variable(tmp_path / "out", "bert-embeddings-LayerNorm-gamma")

    save_checkpoint(tmp_path / "model.ckpt", {name: value + 1 for name, value in small_values.items()})
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert_fails_with_one_line(result, tmp_path / "out", "exists already", "--overwrite")
    gamma = layout.read_variable(tmp_path / "out", "bert-embeddings-LayerNorm-gamma")
    np.testing.assert_array_equal(gamma, before)

    assert convert(tmp_path / "model.ckpt", tmp_path / "out", "--overwrite").returncode == 0
    gamma = layout.read_variable(tmp_path / "out", "bert-embeddings-LayerNorm-gamma")
    np.testing.assert_array_equal(gamma, before + 1)


def test_overwrite_replaces_nothing_but_a_snapshot(small_values, tmp_path):
    save_checkpoint(tmp_path / "model" / "model.ckpt", small_values)
    result = convert(tmp_path / "model", tmp_path / "model", "--overwrite")
    assert_fails_with_one_line(result, "snapshot_done", "does not replace")
    assert (tmp_path / "model" / "model.ckpt.index").exists()


def write_damaged(source, target, suffix, change):
    shutil.copytree(source, target)
    path = target / f"bert_model.ckpt.{suffix}"
    path.write_bytes(change(path.read_bytes()))
    return target


def flip_middle_bit(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("index", lambda data: data[:-100], "damaged or not a checkpoint"),
        ("index", flip_middle_bit, "damaged or not a checkpoint"),
        ("index", lambda data: b"", "damaged or not a checkpoint"),
        ("data-00000-of-00001", lambda data: data[:-1], "truncated: its variables take"),
        ("data-00000-of-00001", flip_middle_bit, "variable "),
        ("data-00000-of-00001", lambda data: b"", "truncated: its variables take"),
    ],
)
def test_damaged_checkpoint(checkpoint, tmp_path, suffix, change, message):
    damaged = write_damaged(checkpoint[0], tmp_path / "damaged", suffix, change)
    assert_fails_with_one_line(convert(damaged, tmp_path / "out"), "bert_model.ckpt", message)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_damage_is_one_line_of_the_process_too(checkpoint, tmp_path):
    damaged = write_damaged(checkpoint[0], tmp_path / "damaged", "data-00000-of-00001", flip_middle_bit)
    result = run(SCRIPT, tf_checkpoint_path=damaged, of_dump_path=tmp_path / "out")
    assert_fails_with_one_line(result, "bert_model.ckpt: variable ", "cannot be read", "hecksum")


def test_data_file_missing(checkpoint, tmp_path):
    shutil.copytree(checkpoint[0], tmp_path / "model")
    (tmp_path / "model" / "bert_model.ckpt.data-00000-of-00001").unlink()
    assert_fails_with_one_line(convert(tmp_path / "model", tmp_path / "out"), "truncated: its variables take")


def test_no_checkpoint_there(small_values, tmp_path):
    missing = tmp_path / "missing"
    assert_fails_with_one_line(convert(missing, tmp_path / "out"), missing, "there is no checkpoint")
    (tmp_path / "empty").mkdir()
    assert_fails_with_one_line(convert(tmp_path / "empty", tmp_path / "out"), "no file *.index")
    save_checkpoint(tmp_path / "two" / "a.ckpt", small_values)
    save_checkpoint(tmp_path / "two" / "b.ckpt", small_values)
    (tmp_path / "two" / "checkpoint").unlink()
    assert_fails_with_one_line(convert(tmp_path / "two", tmp_path / "out"), "a.ckpt, b.ckpt", "prefix")
    (tmp_path / "two" / "checkpoint").write_text('model_checkpoint_path: "c.ckpt"\n')
    assert_fails_with_one_line(convert(tmp_path / "two", tmp_path / "out"), "names the checkpoint c.ckpt")
    for text in ("\n", 'model_checkpoint_path: "\\xzz"\n'):
        (tmp_path / "two" / "checkpoint").write_text(text)
        assert_fails_with_one_line(convert(tmp_path / "two", tmp_path / "out"), "has no line model_checkpoint_path")


@pytest.mark.parametrize(
    "name, advice",
    [
        ("snapshot_done", "it is a snapshot of this suite, which needs no conversion"),
        ("model.safetensors", "it is a Hugging Face model; convert it with tools/convert_hf.py import"),
    ],
)
def test_a_model_of_another_kind(tmp_path, name, advice):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).touch()
    assert_fails_with_one_line(convert(tmp_path / "model", tmp_path / "of"), f"{tmp_path / 'model'}: {advice}")


def test_tf2_object_based_checkpoint(tmp_path):
    tf.train.Checkpoint(weights=tf.Variable([1.0, 2.0])).write(str(tmp_path / "model"))
    result = convert(tmp_path / "model", tmp_path / "out")
    assert_fails_with_one_line(result, "TensorFlow 2 object-based", "convert_hf.py")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../escaped",
        "bert/../../../escaped",
        "a//b",
        ".hidden",
        "snapshot_done",
        "x" * 300,
        "x" + "/adam_m" * 1500,
    ],
)
def test_names_that_are_no_folders_are_refused(small_values, tmp_path, name):
    save_checkpoint(tmp_path / "in" / "model.ckpt", small_values | {name: np.ones(2, np.float32)})
    result = convert(tmp_path / "in", tmp_path / "out")
    assert_fails_with_one_line(result, "cannot become the name of a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_looks_like_a_moment_without_a_variable_is_kept(small_values, tmp_path):
    names = {"cls/lost/adam_m": "cls-lost-m", "cls/named-v": "cls-named-v"}
    save_checkpoint(tmp_path / "model.ckpt", small_values | {name: np.ones(2, np.float32) for name in names})
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    for name in names.values():
        np.testing.assert_array_equal(layout.read_variable(tmp_path / "out", name), [1, 1])
    assert layout.stale_moments(tmp_path / "out", list(names.values()), {}) == []


def test_names_that_become_the_same_are_refused(small_values, tmp_path):
    save_checkpoint(tmp_path / "model.ckpt", small_values | {"bert/embeddings-word_embeddings": np.ones(2, np.float32)})
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert_fails_with_one_line(result, "bert/embeddings-word_embeddings", "would both become")


def test_other_models_are_refused(small_values, tmp_path):
    albert = {name: value for name, value in small_values.items() if "layer_0" not in name}
    save_checkpoint(tmp_path / "albert.ckpt", albert)
    assert_fails_with_one_line(convert(tmp_path / "albert.ckpt", tmp_path / "out"), "not a BERT")
    incomplete = {name: value for name, value in small_values.items() if not name.endswith("query/bias")}
    save_checkpoint(tmp_path / "incomplete.ckpt", incomplete)
    result = convert(tmp_path / "incomplete.ckpt", tmp_path / "out")
    assert_fails_with_one_line(result, "has no variable bert-encoder-layer_0-attention-self-query-bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, "has hidden_size 32, but the weights are of a model with 16"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers is 1000000000000000"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"model_type": "roberta"}, "of type 'roberta'"),
    ],
)
def test_config_that_does_not_fit(small_values, tmp_path, change, message):
    save_checkpoint(tmp_path / "model.ckpt", small_values)
    (tmp_path / "bert_config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1} | change))
    result = convert(tmp_path / "model.ckpt", tmp_path / "out")
    assert_fails_with_one_line(result, "bert_config.json", message)


def test_data_file_that_is_a_link_to_itself(checkpoint, tmp_path):
    model = shutil.copytree(checkpoint[0], tmp_path / "model")
    (data,) = model.glob("*.data-*")
    data.unlink()
    data.symlink_to(data.name)
    assert_fails_with_one_line(convert(model, tmp_path / "out"), "bert_model.ckpt", "truncated")


def test_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path):
    with full_disk(1000):
        result = convert(checkpoint[0], tmp_path / "out")
    assert_fails_with_one_line(result, "File too large", tmp_path / "out", status=1)
    assert list(tmp_path.iterdir()) == []


def test_without_tensorflow(checkpoint, tmp_path):
    program = (
        "import sys; sys.modules['tensorflow'] = None; import runpy; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["convert_tf_ckpt_to_of.py", "--tf_checkpoint_path", str(checkpoint[0])]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--of_dump_path", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert_fails_with_one_line(
        result, "TensorFlow, which reads checkpoints, cannot be imported", "pip install -r requirements.txt"
    )
