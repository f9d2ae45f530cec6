"""run_classifier.py as its users run it."""

import filecmp
import json
import re
import shutil

import numpy as np
import pytest

import config
import reference_bert
from made_parts import write_classifier_part
from records import checks, description
from running import TINY_MODEL, needs_kernels, run
from snapshots import layout, model_files, variables
from system.errors import UserError
from training import classifier_data, classifier_results, model_flags, run_setup

pytestmark = pytest.mark.slow

SIZE = variables.ModelSize(200, 32, 2, 2, 128, 40, 2)
VOCAB = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def write_model(folder, num_labels=3, labels=None):
    """A snapshot of random values; returns them."""
    shapes = variables.encoder_shapes(SIZE) | variables.head_shapes(SIZE)["pooler"]
    shapes |= variables.head_shapes(SIZE, num_labels)["classifier"]
    generator = np.random.default_rng(0)
    values = {
        name: generator.normal(1.0 if name.endswith("gamma") else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    encoded = None if labels is None else "".join(f"{label}\n" for label in labels).encode()
    with layout.open_writer(folder) as write:
        for name, value in values.items():
            of_model = model_files.encode(model_files.config_of(SIZE), labels=encoded)
            write(name, value, of_model if name == variables.WORD_EMBEDDINGS else None)
    return values


def describe(folder, labels=None, **others):
    """Describes the records in the folder as create_classifier_data.py does."""
    others = {"is_regression": False, "has_labels": True, **others}
    described = description.describe(description.CLASSIFICATION, {"[PAD]": 0, "a": 199}, VOCAB, True, 32, **others)
    description.write(folder, described, VOCAB, labels)


def matrix_of(path):
    return np.array([[float(number) for number in line.split("\t")] for line in path.read_text().splitlines()])


def test_evaluates_and_predicts_exactly_on_two_ranks(tmp_path):
    """An odd number of examples, and records that only fill up google's batches, against the float64 reference."""
    values = write_model(tmp_path / "model", 2, ["no", "yes"])
    records = write_classifier_part(tmp_path / "eval" / "part-0", [0, 1, 1, 0, 1, 0, 0, 1, 1, 0], padding=(8, 9))
    describe(tmp_path / "eval", ["no", "yes"], task_name="mrpc")
    test_records = write_classifier_part(tmp_path / "test" / "part-0", [0] * 11, seed=1)
    describe(tmp_path / "test", ["no", "yes"], has_labels=False)
    result = run(
        "run_classifier.py", "--do_eval", "--do_predict", eval_data_dir=tmp_path / "eval",
        test_data_dir=tmp_path / "test", model_load_dir=tmp_path / "model", seq_length=32, gpu_num_per_node=2,
        batch_size_per_device=2, log_dir=tmp_path / "log", output_dir=tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr

    def logits_of(some):
        batch = {name: np.stack([record[name] for record in some]) for name in some[0]}
        return reference_bert.classifier_logits(values, batch, SIZE.num_attention_heads).numpy()

    logits, right = logits_of(records[:8]), np.array([record["label_ids"][0] for record in records[:8]])
    found = logits.argmax(axis=1)
    hits = ((found == 1) & (right == 1)).sum()
    results = dict(line.split(" = ") for line in (tmp_path / "out/eval_results.txt").read_text().splitlines())
    assert list(results) == ["eval_accuracy", "eval_f1", "eval_loss"]
    assert float(results["eval_accuracy"]) == (found == right).mean()
    np.testing.assert_allclose(float(results["eval_f1"]), 2 * hits / ((found == 1).sum() + (right == 1).sum()))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(float(results["eval_loss"]), -log_probabilities[range(8), right].mean(), rtol=1e-5)

    logits = logits_of(test_records)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(matrix_of(tmp_path / "out/test_results.tsv"), expected, atol=1e-5)
    names = [["no", "yes"][index] for index in logits.argmax(axis=1)]
    assert (tmp_path / "out/labels.txt").read_text() == "no\nyes\n"
    assert (tmp_path / "out/predictions.tsv").read_text().splitlines() == [
        "index\tprediction", *(f"{index}\t{name}" for index, name in enumerate(names)),
    ]  # fmt: skip


def train(data_dir, output, *arguments, **flags):
    settings = {
        **TINY_MODEL, "seq_length": 32, "batch_size_per_device": 4, "learning_rate": 1e-3, "warmup_batches": 2,
        "num_epochs": 3, "model_save_every_n_iter": 4, "save_last_snapshot": True, "loss_print_every_n_iter": 2,
        "log_dir": output, "model_save_dir": output, **flags,
    }  # fmt: skip
    result = run("run_classifier.py", "--do_train", *arguments, data_dir=data_dir, **settings)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_same(first, second):
    compared = filecmp.dircmp(first, second)
    assert compared.left_only == compared.right_only == compared.diff_files == []
    for name in compared.subdirs:
        assert filecmp.cmpfiles(first / name, second / name, [path.name for path in (first / name).iterdir()], False)[
            1:
        ] == ([], [])


@needs_kernels
def test_evaluation_changes_nothing_of_training(tmp_path):
    """With dropout, and a snapshot after an evaluation; a resumed run evaluates as well. Parts of OneFlow-Benchmark."""
    write_classifier_part(tmp_path / "data" / "train.of_record-0", [0, 1, 2] * 3)
    describe(tmp_path / "data", ["a", "b", "c"])
    train(tmp_path / "data", tmp_path / "without")
    evaluation = ("--do_eval", f"--eval_data_dir={tmp_path / 'data'}")
    told = train(tmp_path / "data", tmp_path / "with", *evaluation)
    # 9 records in batches of 4: epochs end in iterations 3, 5 and, were it not the last, 7.
    assert re.findall(r"Evaluation after (\d+) iterations", told) == ["3", "5", "6"]
    assert (tmp_path / "with/last_snapshot/bert-embeddings-word_embeddings/labels.txt").read_text() == "a\nb\nc\n"
    for name in ("snapshot_4", "last_snapshot"):
        assert_same(tmp_path / "without" / name, tmp_path / "with" / name)
    shutil.rmtree(tmp_path / "without/last_snapshot")
    told = train(tmp_path / "data", tmp_path / "without", *evaluation, "--resume")
    assert re.findall(r"Evaluation after (\d+) iterations", told) == ["5", "6"]
    assert_same(tmp_path / "without/last_snapshot", tmp_path / "with/last_snapshot")


def test_evaluation_where_zero_has_divided_the_model(tmp_path):
    """Its loss at the end is that of the model which is saved then. Epochs count what is accumulated for an update."""
    records = write_classifier_part(tmp_path / "data" / "part-0", [0, 1, 2] * 3)
    describe(tmp_path / "data", ["a", "b", "c"])
    evaluation = ("--do_eval", f"--eval_data_dir={tmp_path / 'data'}")
    flags = {"batch_size_per_device": 1, "num_accumulation_steps": 2, "gpu_num_per_node": 2, "zero_stage": 1}
    told = train(tmp_path / "data", tmp_path / "out", *evaluation, num_epochs=2, **flags)
    assert re.findall(r"Evaluation after (\d+) iterations", told) == ["3", "4"]
    saved = tmp_path / "out/last_snapshot"
    names = [name for name in layout.variable_names(saved) if not re.search(r"-[mv]$|^System", name)]
    values = {name: layout.read_variable(saved, name) for name in names}
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    results = dict(line.split(" = ") for line in (tmp_path / "out/eval_results.txt").read_text().splitlines())
    expected = reference_bert.classifier_loss(values, batch, SIZE.num_attention_heads)
    np.testing.assert_allclose(float(results["eval_loss"]), float(expected), rtol=1e-5)


def checked(tmp_path, *flags):
    """The classifier_data.Sets of a command line."""
    args = config.parse_classifier_args(["--seq_length=32", f"--log_dir={tmp_path}", *flags])
    model_flags.settle(args)
    return classifier_data.check(args), args


def test_results_do_not_get_among_records_or_into_a_snapshot(tmp_path):
    folder, data = f"--output_dir={tmp_path}", f"--test_data_dir={tmp_path}/."
    args = config.parse_classifier_args(["--do_predict", data, "--model_load_dir=x", folder, f"--log_dir={tmp_path}"])
    args.model_load_dir = None
    with pytest.raises(UserError, match="--output_dir=.*: is --test_data_dir; give another folder"):
        run_setup.check_folders(args)
    (tmp_path / layout.DONE_FILE).touch()
    with pytest.raises(UserError, match="--output_dir=.*: is a snapshot, which the next one of its name replaces"):
        run_setup.check_folders(args)


def test_labels_of_records_and_model(tmp_path, capsys):
    write_classifier_part(tmp_path / "a" / "part-0", [2, 1, 0])
    folder = f"--data_dir={tmp_path / 'a'}"
    with pytest.raises(UserError, match="has no labels.txt .* give --num_labels"):
        checked(tmp_path, "--do_train", folder)
    with pytest.raises(UserError, match="field label_ids holds 2, which is not from 0 to below --num_labels=2"):
        checked(tmp_path, "--do_train", folder, "--num_labels=2")
    assert checked(tmp_path, "--do_train", folder, "--num_labels=3")[0].labels is None

    describe(tmp_path / "a", ["x", "y", "z"])
    data, args = checked(tmp_path, "--do_train", folder)
    assert data.train.labels == data.labels == ["x", "y", "z"] and args.num_labels == 3
    with pytest.raises(UserError, match="--num_labels: is of 4 labels, but .*labels.txt of 3 labels"):
        checked(tmp_path, "--do_train", folder, "--num_labels=4")

    write_classifier_part(tmp_path / "b" / "part-0", [0, 1, 2])
    other = ["--do_eval", f"--eval_data_dir={tmp_path / 'b'}"]
    describe(tmp_path / "b", ["x", "z", "y"])
    with pytest.raises(UserError, match="b/labels.txt: its labels, x, z, y, are not those of .*a/labels.txt, x, y, z"):
        checked(tmp_path, "--do_train", folder, *other)
    describe(tmp_path / "b", ["x", "y", "z"], has_labels=False)
    with pytest.raises(UserError, match="b: its records were made without labels"):
        checked(tmp_path, "--do_train", folder, *other)
    describe(tmp_path / "b", ["x", "y", "z"], is_shuffled=True)
    assert checked(tmp_path, "--do_train", folder, *other)[0].evaluation.record_count == 3
    with pytest.raises(UserError, match="b: its records were made with --shuffle, so the predictions would not be"):
        checked(tmp_path, "--do_train", folder, "--do_predict", f"--test_data_dir={tmp_path / 'b'}")
    describe(tmp_path / "b", ["x", "y", "z"], task_name="qqp")
    with pytest.raises(UserError, match="--task_name=qqp has 2 labels, but the data has 3 labels"):
        checked(tmp_path, "--do_train", folder, *other)
    describe(tmp_path / "b", ["x", "y", "z"], task_name="mnli")
    assert checked(tmp_path, "--do_train", folder, *other)[0].metrics == ("accuracy",)

    write_model(tmp_path / "model", 2)
    model = f"--model_load_dir={tmp_path / 'model'}"
    with pytest.raises(UserError, match="labels.txt: is of 3 labels, but .*model of 2 labels; to learn other labels"):
        checked(tmp_path, "--do_train", folder, model)
    write_model(tmp_path / "model", 3, ["z", "y", "x"])
    with pytest.raises(UserError, match="make the records anew with --labels_file=.*model/bert-embeddings"):
        checked(tmp_path, *other, model)
    capsys.readouterr()
    write_model(tmp_path / "model", 3, ["x", "y", "z"])
    assert checked(tmp_path, *other, model, folder)[0].evaluation.record_count == 3
    assert "Notice: --data_dir is not read without --do_train" in capsys.readouterr().out


def test_records_of_another_kind_or_text(tmp_path):
    write_classifier_part(tmp_path / "a" / "part-0", [0.5, 1.0])
    describe(tmp_path / "a", is_regression=True, task_name="sts-b")
    flags = ["--do_train", "--do_eval", f"--data_dir={tmp_path / 'a'}"]
    data, args = checked(tmp_path, *flags, f"--eval_data_dir={tmp_path / 'a'}")
    assert (args.num_labels, data.labels, data.metrics) == (1, None, ("pearson", "spearman"))
    write_classifier_part(tmp_path / "b" / "part-0", [0.5])
    described = description.describe(description.CLASSIFICATION, {"[PAD]": 199}, b"other", True, 32, is_regression=True)
    description.write(tmp_path / "b", described, b"other")
    with pytest.raises(UserError, match="--eval_data_dir=.*b: its records were made with another vocabulary"):
        checked(tmp_path, *flags, f"--eval_data_dir={tmp_path / 'b'}")
    described["kind"] = description.PRETRAINING
    (tmp_path / "b/records.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="--eval_data_dir=.*b: its records are for pre-training"):
        checked(tmp_path, *flags, f"--eval_data_dir={tmp_path / 'b'}")
    with pytest.raises(UserError, match="--eval_data_dir=.*none: there is no such folder"):
        checked(tmp_path, *flags, f"--eval_data_dir={tmp_path / 'none'}")


def test_names_of_parts(tmp_path):
    """This suite's come first, else those of OneFlow-Benchmark, if they are of one data set."""
    for name in ("train.of_record-0", "train.of_record-1", "train.of_record-x", "readme.of_record"):
        (tmp_path / name).touch()
    assert [path.name for path in checks.part_paths(tmp_path)] == ["train.of_record-0", "train.of_record-1"]
    (tmp_path / "eval.of_record-0").touch()
    with pytest.raises(UserError, match="parts of several data sets, eval.of_record-0 and train.of_record-0; give"):
        checks.part_paths(tmp_path)
    (tmp_path / "part-00000").touch()
    assert [path.name for path in checks.part_paths(tmp_path)] == ["part-00000"]


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ([], "nothing to do"),
        (["--do_train"], "--do_train needs --data_dir"),
        (["--do_eval", "--model_load_dir=x"], "--do_eval needs --eval_data_dir"),
        (["--do_eval", "--eval_data_dir=x"], "--model_load_dir is missing"),
        (["--do_predict", "--test_data_dir=x", "--model_load_dir=x", "--resume"], "--resume needs --do_train"),
        (["--do_train", "--data_dir=x", "--num_epochs=1", "--iter_num=1"], "exclude each other"),
        (["--do_train", "--data_dir=x", "--output_dir=y"], "it gets; snapshots go to --model_save_dir"),
        (["--do_train", "--data_dir=x", "--eval_batch_size_per_device=2"], "device needs --do_eval or --do_predict"),
    ],
)
def test_wrong_usage(capsys, flags, fragment):
    with pytest.raises(SystemExit):
        config.parse_classifier_args(flags)
    assert fragment in capsys.readouterr().err


def test_metrics():
    generator = np.random.default_rng(0)
    right, logits = generator.integers(0, 2, 50), generator.normal(size=(50, 2)).astype(np.float32)
    found = logits.argmax(axis=1)
    values = classifier_results.evaluate(("accuracy", "f1", "matthews_correlation"), logits, right)
    np.testing.assert_allclose(values["accuracy"], (found == right).mean())
    np.testing.assert_allclose(values["matthews_correlation"], np.corrcoef(found, right)[0, 1])
    scores = generator.normal(size=50).astype(np.float32)
    values = classifier_results.evaluate(("pearson", "spearman"), logits[:, :1], scores)
    ranks = [np.argsort(np.argsort(side)) for side in (logits[:, 0], scores)]
    np.testing.assert_allclose(values["pearson"], np.corrcoef(logits[:, 0], scores)[0, 1], rtol=1e-5)
    np.testing.assert_allclose(values["spearman"], np.corrcoef(*ranks)[0, 1])
    np.testing.assert_allclose(values["loss"], np.square(logits[:, 0] - scores).mean(), rtol=1e-5)
    constant = classifier_results.evaluate(("pearson", "spearman"), np.ones((3, 1), np.float32), scores[:3])
    assert np.isnan([constant["pearson"], constant["spearman"]]).all()
    assert np.isnan(classifier_results.evaluate(("pearson",), np.ones((1, 1), np.float32), scores[:1])["pearson"])


def test_scores_are_predicted_as_they_are(tmp_path):
    classifier_results.write_predictions(tmp_path, np.array([[1.5], [-0.25]], np.float32), None)
    assert (tmp_path / "test_results.tsv").read_text() == "1.5\n-0.25\n"
    assert (tmp_path / "predictions.tsv").read_text() == "index\tprediction\n0\t1.5\n1\t-0.25\n"
    assert not (tmp_path / "labels.txt").exists()


def test_names_of_an_earlier_prediction_do_not_stay(tmp_path):
    for labels, expected in ((["no", "yes"], "no\nyes\n"), (None, "0\n1\n")):
        classifier_results.write_predictions(tmp_path, np.array([[1.5, 0.5]], np.float32), labels)
        assert (tmp_path / "labels.txt").read_text() == expected
