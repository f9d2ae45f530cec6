"""run_squad.py and run_squad_predict.py as their users run them."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import reference_bert
from made_parts import write_pretraining_part, write_squad_parts
from records import ofrecord, prediction_file
from running import TINY_MODEL, assert_fails_with_one_line, needs_kernels, run
from snapshots import layout

pytestmark = pytest.mark.slow

COMMON = {**TINY_MODEL, "seq_length": 32, "data_part_num": 1, "batch_size_per_device": 4, "max_predictions_per_seq": 20}
STEP = "System-Train-TrainStep-SquadFinetuneJob"


def train(data_dir, output, **flags):
    settings = {
        "learning_rate": 1e-3,
        "warmup_batches": 2,
        "iter_num": 4,
        "loss_print_every_n_iter": 2,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "save_last_snapshot": True,
        "log_dir": output,
        "model_save_dir": output,
        **COMMON,
        **flags,
    }
    return run("run_squad.py", data_dir=data_dir, **settings)


def predict(data_dir, model, output, **flags):
    """The results of a prediction run."""
    result = run_predict(data_dir, model, output, **flags)
    assert result.returncode == 0, result.stderr
    return np.load(output, allow_pickle=False)


def run_predict(data_dir, model, output, **flags):
    settings = {**COMMON, "log_dir": output.parent, "all_results_file": output, **flags}
    return run("run_squad_predict.py", data_dir=data_dir, model_load_dir=model, **settings)


def logged(output):
    (path,) = output.glob("metrics-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def parameters_of(model):
    """The model's own variables of a snapshot: name -> array."""
    return {
        name: layout.read_variable(model, name)
        for name in layout.variable_names(model)
        if not name.endswith(("-m", "-v")) and not name.startswith("System")
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with train/ (10 records), dev/ (11 records) and first/, the output of a run of 4 iterations."""
    folder = tmp_path_factory.mktemp("squad")
    write_squad_parts(folder / "train", 10)
    write_squad_parts(folder / "dev", 11, seed=1, is_training=False)
    result = train(folder / "train", folder / "first")
    assert result.returncode == 0, result.stderr
    (folder / "first.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A snapshot as a converter makes it: BERT with its pre-training heads, no moments, no train step, no meta."""
    folder = tmp_path_factory.mktemp("bert")
    write_pretraining_part(folder / "part-0", 4)
    settings = {**COMMON, "max_predictions_per_seq": 5, "iter_num": 1, "log_dir": folder, "model_save_dir": folder}
    result = run("run_pretraining.py", data_dir=folder, save_last_snapshot=True, **settings)
    assert result.returncode == 0, result.stderr
    model = folder / "last_snapshot"
    for path in model.iterdir():
        if path.name.endswith(("-m", "-v")) or path.name.startswith("System"):
            shutil.rmtree(path)
        elif path.is_dir():
            (path / "meta").unlink()
    return model


@pytest.fixture(scope="module")
def predicted(work):
    """The results of a prediction of dev/ by the first run's model."""
    return predict(work / "dev", work / "first" / "last_snapshot", work / "predicted.npy")


@pytest.mark.engine
def test_output_and_snapshot(work):
    lines = (work / "first.txt").read_text().splitlines()
    losses = [line for line in lines if line.startswith("iter ")]
    form = r"iter \d, total_loss: \d\.\d{3}, speed: \d+\.\d{3}\(sec/batch\), \d+\.\d{3}\(sentences/sec\)"
    assert len(losses) == 2 and all(re.fullmatch(form, line) for line in losses)
    model = work / "first" / "last_snapshot"
    names = layout.variable_names(model)
    assert layout.read_meta(model / "cls-squad-output-weight") == ((32, 2), np.float32)
    assert layout.read_meta(model / "cls-squad-output-bias") == ((2,), np.float32)
    assert (model / STEP / "out").read_bytes() == (4).to_bytes(8, "little")
    assert not [name for name in names if "pooler" in name or "predictions" in name]


@pytest.mark.engine
def test_predictions_agree_with_the_reference(work, predicted):
    """Every field of the records, and every variable, in its place: against float64."""
    results = predicted
    assert results.dtype == prediction_file.result_dtype(32)
    features = write_squad_parts(work / "again", 11, seed=1, is_training=False)
    batch = {name: np.stack([record[name] for record in features]) for name in features[0]}
    variables = parameters_of(work / "first" / "last_snapshot")
    start, end = (np.asarray(logits) for logits in reference_bert.squad_logits(variables, batch, 2))
    assert results["unique_id"].tolist() == batch["unique_ids"][:, 0].tolist()
    np.testing.assert_allclose(results["start_logits"], start, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(results["end_logits"], end, rtol=1e-4, atol=1e-6)


@pytest.mark.engine
def test_training_agrees_with_the_reference(work, tmp_path):
    (features,) = write_squad_parts(tmp_path / "data", 1, seed=3)
    batch = {name: values[None] for name, values in features.items()}
    model = work / "first" / "last_snapshot"
    result = train(tmp_path / "data", tmp_path, model_load_dir=model, batch_size_per_device=1, iter_num=1)
    assert result.returncode == 0, result.stderr
    (expected,), gradients = reference_bert.squad_gradients(parameters_of(model), batch, 2)
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients.values()))
    (line,) = logged(tmp_path)
    assert line["total_loss"] == pytest.approx(expected, rel=1e-5)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.engine
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_prediction_does_not_depend_on_the_batch(work, predicted, batch_size):
    model, expected = work / "first" / "last_snapshot", predicted
    results = predict(work / "dev", model, work / "batched.npy", batch_size_per_device=batch_size)
    assert results["unique_id"].tolist() == expected["unique_id"].tolist()
    np.testing.assert_allclose(results["start_logits"], expected["start_logits"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results["end_logits"], expected["end_logits"], rtol=1e-5, atol=1e-6)


def test_logits_that_are_not_finite_are_not_written(work, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(work / "first" / "last_snapshot", model)
    np.full(2, np.nan, "<f4").tofile(model / "cls-squad-output-bias" / "out")
    result = run_predict(work / "dev", model, tmp_path / "all.npy", skip_checksums=True)
    assert_fails_with_one_line(result, "--model_load_dir: the model gives NaN or infinity", status=1)
    assert not (tmp_path / "all.npy").exists()


def test_iterations_beyond_the_data_set_wrap_around(work, predicted):
    model = work / "first" / "last_snapshot"
    results = predict(work / "dev", model, work / "wrapped.npy", iter_num=7)
    assert results["unique_id"].tolist() == list(range(1000000000, 1000000011))
    np.testing.assert_array_equal(results, predicted)
    assert len(predict(work / "dev", model, work / "part.npy", iter_num=2)) == 8


@pytest.mark.engine
def test_prediction_over_several_parts(work, predicted, tmp_path):
    write_squad_parts(tmp_path / "dev", 11, parts=3, seed=1, is_training=False)
    model = work / "first" / "last_snapshot"
    results = predict(tmp_path / "dev", model, tmp_path / "parts.npy", data_part_num=3)
    np.testing.assert_array_equal(results, predicted)


@needs_kernels
def test_without_padding(tmp_path, monkeypatch):
    """Trained and predicted without padding: at the tokens, the logits that are computed with it, else -10000."""
    size = {"seq_length": 128, "max_position_embeddings": 128}
    write_squad_parts(tmp_path / "train", 4, seq_length=128)
    windows = write_squad_parts(tmp_path / "made", 11, seq_length=128, is_training=False)
    for index, window in enumerate(windows):
        window["input_mask"][:] = np.arange(128) < 8 + 7 * index
    (tmp_path / "dev").mkdir()
    with ofrecord.open_writer(tmp_path / "dev" / "part-0") as write:
        for window in windows:
            write(ofrecord.serialize(window))
    result = train(tmp_path / "train", tmp_path, iter_num=1, skip_padding=True, **size)
    assert result.returncode == 0, result.stderr
    whole = predict(tmp_path / "dev", tmp_path / "last_snapshot", tmp_path / "whole.npy", **size)
    short = predict(tmp_path / "dev", tmp_path / "last_snapshot", tmp_path / "short.npy", skip_padding=True, **size)
    np.testing.assert_array_equal(short["unique_id"], whole["unique_id"])
    is_token = np.stack([window["input_mask"] for window in windows]) == 1
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(short[name][is_token], whole[name][is_token], rtol=1e-4, atol=1e-5)
        assert (whole[name] != -10000).all()
        np.testing.assert_array_equal(short[name] == -10000, ~is_token)
    # OneFlow's own kernels cannot skip padding; prediction shortens the batches.
    monkeypatch.setenv("BERT_KERNELS", "none")
    result = train(tmp_path / "train", tmp_path / "not", iter_num=1, skip_padding=True, **size)
    assert_fails_with_one_line(
        result, "--skip_padding: it needs the native kernels (", "BERT_KERNELS", "; leave it out"
    )
    short = predict(tmp_path / "dev", tmp_path / "last_snapshot", tmp_path / "cut.npy", skip_padding=True, **size)
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(short[name][is_token], whole[name][is_token], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(short[name] == -10000, ~is_token)


@needs_kernels
def test_in_int8(work, predicted, monkeypatch):
    """Logits are near those of float32; a run that cannot multiply in int8 says so."""
    model, output = work / "first" / "last_snapshot", work / "int8.npy"
    result = run_predict(work / "dev", model, output, use_int8=True)
    assert result.returncode == 0, result.stderr
    assert "\nThe encoder's linear layers multiply in int8 (--use_int8); all else is float32.\n" in result.stdout
    results = np.load(output, allow_pickle=False)
    np.testing.assert_array_equal(results["unique_id"], predicted["unique_id"])
    for name in ("start_logits", "end_logits"):
        difference = np.abs(results[name] - predicted[name]).max() / np.abs(predicted[name]).max()
        assert 1e-4 < difference < 0.05
    both = run_predict(work / "dev", model, output, use_int8=True, use_fp16=True)
    assert both.returncode == 2 and "--use_int8 and --use_fp16 exclude each other" in both.stderr
    monkeypatch.setenv("BERT_KERNELS", "none")
    result = run_predict(work / "dev", model, work / "none.npy", use_int8=True)
    assert_fails_with_one_line(result, "--use_int8: it needs the native kernels (", "BERT_KERNELS=none); leave it out")
    assert not (work / "none.npy").exists()


@pytest.mark.engine
def test_num_epochs(work, tmp_path):
    result = train(work / "train", tmp_path, iter_num="", num_epochs=3)
    assert result.returncode == 2  # an empty iter_num is no number
    settings = {**COMMON, "log_dir": tmp_path, "model_save_dir": tmp_path, "num_epochs": 3}
    settings |= {"batch_size_per_device": 2, "num_accumulation_steps": 2}
    result = run("run_squad.py", data_dir=work / "train", **settings)
    assert result.returncode == 0, result.stderr
    assert "The data set has 10 records." in result.stdout
    assert "iter_num = 7\n" in result.stdout  # 10 records x 3 epochs / (2 batches of 2)
    assert len(logged(tmp_path)) == 7


def test_the_tutorials_merge(work, bert, tmp_path):
    """cp -R, cp -R --remove-destination and xxd, word for word: as good as loading the BERT model directly."""
    initial = work / "first" / "last_snapshot"
    script = f"""
        set -e
        cp -R {initial} ./squadModel
        cp -R --remove-destination {bert}/* ./squadModel/
        cd squadModel/{STEP}
        xxd -r > out <<ONEFLOW
00000000: 0000 0000 0000 0000
ONEFLOW
    """
    if shutil.which("xxd") is None:
        script = script.replace("xxd -r", "head -c 8 /dev/zero")
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    merged = tmp_path / "squadModel"
    result = train(work / "train", tmp_path / "merged", model_load_dir=merged)
    assert result.returncode == 0, result.stderr
    assert "Initialised" not in result.stdout and "Not verified" not in result.stdout
    assert "Ignored, as their variables have been replaced since: " in result.stdout
    assert [line["train_step"] for line in logged(tmp_path / "merged")] == [0, 1, 2, 3]

    # The same head, with its moments, on the same BERT, without the initial model's moments: the same run.
    clean = tmp_path / "clean"
    shutil.copytree(bert, clean)
    for head in initial.glob("cls-squad-*"):
        shutil.copytree(head, clean / head.name)
    result = train(work / "train", tmp_path / "direct", model_load_dir=clean)
    assert result.returncode == 0, result.stderr
    for name in layout.variable_names(tmp_path / "direct" / "last_snapshot"):
        expected = (tmp_path / "direct" / "last_snapshot" / name / "out").read_bytes()
        assert (tmp_path / "merged" / "last_snapshot" / name / "out").read_bytes() == expected, name


def test_the_short_way(work, bert, tmp_path):
    result = train(work / "train", tmp_path, model_load_dir=bert)
    assert result.returncode == 0, result.stderr
    assert "Initialised, as the snapshot lacks them: cls-squad-output-weight, cls-squad-output-bias." in result.stdout


class TestBadInput:
    def test_pretraining_records(self, tiny_data, tmp_path):
        assert_fails_with_one_line(train(tiny_data, tmp_path), "has no field start_positions")

    def test_training_records_for_prediction(self, work, tmp_path):
        model = work / "first" / "last_snapshot"
        assert_fails_with_one_line(run_predict(work / "train", model, tmp_path / "x.npy"), "no field unique_ids")

    def test_prediction_without_a_model(self, work):
        assert_fails_with_one_line(run("run_squad_predict.py", data_dir=work / "dev"), "--model_load_dir")

    def test_prediction_with_a_model_that_was_not_fine_tuned(self, work, bert, tmp_path):
        result = run_predict(work / "dev", bert, tmp_path / "x.npy")
        assert_fails_with_one_line(result, "cls-squad-output-weight", "fine-tuned")
        assert not (tmp_path / "x.npy").exists()

    def test_epochs_and_iterations(self, work, tmp_path):
        assert_fails_with_one_line(train(work / "train", tmp_path, num_epochs=2), "--num_epochs and --iter_num")

    def test_unwritable_results(self, work, tmp_path):
        model = work / "first" / "last_snapshot"
        (tmp_path / "file").touch()
        result = run_predict(work / "dev", model, tmp_path / "file" / "x.npy", log_dir=tmp_path)
        assert_fails_with_one_line(result, "--all_results_file", tmp_path / "file")

    def test_results_that_are_a_folder(self, work, tmp_path):
        model = work / "first" / "last_snapshot"
        result = run_predict(work / "dev", model, tmp_path, log_dir=tmp_path)
        assert_fails_with_one_line(result, "--all_results_file", tmp_path)
        # Not after the prediction, nor after loading the engine for it.
        assert "Device:" not in result.stdout


@needs_kernels
def test_a_record_that_is_bad_in_mid_run(work, tmp_path):
    """The last but one of 11: nothing is written."""
    shutil.copytree(work / "dev", tmp_path / "data")
    part = tmp_path / "data" / "part-0"
    offset = [offset for offset, _ in ofrecord.read_serialized(part)][-2]
    with open(part, "r+b") as file:
        file.seek(offset + 8)
        file.write(b"\xff" * 20)
    result = run_predict(tmp_path / "data", work / "first" / "last_snapshot", tmp_path / "results.npy")
    assert_fails_with_one_line(result, f"{part}: the record at byte {offset} is not an OFRecord")
    assert not (tmp_path / "results.npy").exists()
