"""Evaluation while a model is trained: what it finds, what comes of it, and that training does not notice."""

import filecmp
import json
import os
import re
import shutil
from argparse import Namespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import config
import create_squad_data
import npy2json
import reference_bert
from in_process import run_in_process
from made_parts import write_pretraining_part
from pretraining_runs import logged, pretrain, pretraining_flags
from records import description
from running import ROOT, TINY_MODEL, assert_fails_with_one_line, needs_kernels, run
from snapshots import layout
from system.errors import UserError
from training import evaluation, pretraining_metrics, squad_evaluation

pytestmark = pytest.mark.slow

METRICS = ["masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy", "loss", "perplexity"]


def evaluations(output):
    """iteration -> metrics, of the run that saved in `output`."""
    content = json.loads((output / evaluation.HISTORY_FILE).read_text())
    return {entry.pop("iteration"): entry for entry in content["evaluations"]}


def results_of(path):
    return {name: float(value) for name, value in (line.split(" = ") for line in path.read_text().splitlines())}


def assert_same_folders(first, second):
    for folder, _, names in os.walk(first):
        other = second / os.path.relpath(folder, first)
        assert sorted(os.listdir(folder)) == sorted(os.listdir(other))
        assert filecmp.cmpfiles(folder, other, names, shallow=False)[1:] == ([], [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with data/ and dev/ (7 records), and the outputs of the same run with evaluation and without."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, count in (("data", 12), ("dev", 7)):
        (folder / name).mkdir()
        write_pretraining_part(folder / name / "part-0", count, seed=count)
    for name, flags in (("without", {}), ("with", {"eval_data_dir": folder / "dev", "eval_every_n_iter": 2})):
        result = train(folder, folder / name, iter_num=6, model_save_every_n_iter=4, **flags)
        assert result.returncode == 0, result.stderr
        (folder / f"{name}.txt").write_text(result.stdout)
    return folder


def train(folder, output, **flags):
    return pretrain(folder / "data", output, save_last_snapshot=True, **flags)


def test_snapshots_are_the_same_with_evaluation_and_without(runs):
    """With dropout, byte for byte."""
    for name in ("snapshot_4", "last_snapshot"):
        assert_same_folders(runs / "without" / name, runs / "with" / name)
    assert not (runs / "without" / "best_snapshot").exists()


def test_what_an_evaluation_tells(runs):
    told = (runs / "with.txt").read_text()
    lines = re.findall(r"^Evaluation after (\d+) iterations: (.*), examples: 7$", told, re.MULTILINE)
    found = evaluations(runs / "with")
    assert [int(iteration) for iteration, _ in lines] == list(found) == [2, 4, 6]
    assert lines[0][1] == ", ".join(f"{name}: {found[2][name]:.4f}" for name in METRICS)
    assert results_of(runs / "with/eval_results.txt") == {"global_step": 6, **found[6]}
    of_evaluations = [line for line in logged(runs / "with") if "eval_loss" in line]
    assert [(line.pop("iter"), line.pop("train_step")) for line in of_evaluations] == [(1, 1), (3, 3), (5, 5)]
    assert of_evaluations == [{f"eval_{name}": found[key][name] for name in METRICS} for key in found]
    (folder,) = (runs / "with").glob("PretrainJob-*/eval")
    events = EventAccumulator(str(folder)).Reload()
    tags = {"masked_lm_loss": "loss/mlm_loss", "perplexity": "eval/perplexity"}
    for name, tag in tags.items():
        values = [event.value for event in events.Scalars(tag)]
        assert values == pytest.approx([values[name] for values in found.values()], rel=1e-6)


def test_the_best_model_is_kept(runs):
    found = evaluations(runs / "with")
    best = min(found, key=lambda iteration: found[iteration]["loss"])
    state = next((runs / "with/best_snapshot").glob("System*/run_state")).read_text()
    assert json.loads(state.splitlines()[0])["iteration"] == best


def test_numbers_are_those_of_the_reference(runs, tmp_path):
    """Two ranks, 7 records in batches of 4, a model that is restored: float64 NumPy has the same."""
    flags = pretraining_flags(
        None, tmp_path, do_train=False, data_part_num=None, eval_data_dir=runs / "dev", model_save_dir=None,
        model_load_dir=runs / "with/last_snapshot", gpu_num_per_node=2, eval_batch_size_per_device=2,
        output_dir=tmp_path,
    )  # fmt: skip
    result = run("run_pretraining.py", **flags)
    assert result.returncode == 0, result.stderr
    found = results_of(tmp_path / "eval_results.txt")
    assert set(found) == set(METRICS)
    assert found == pytest.approx(evaluations(runs / "with")[6], rel=1e-5)

    model = runs / "with/last_snapshot"
    names = [name for name in layout.variable_names(model) if not re.search(r"-[mv]$|^System", name)]
    values = {name: layout.read_variable(model, name) for name in names}
    records = write_pretraining_part(tmp_path / "part-0", 7, seed=7)
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    weights = batch["masked_lm_weights"].ravel().astype(bool)
    for prefix, logits, labels in (
        ("masked_lm", reference_bert.masked_lm_logits(values, batch, 2).numpy().reshape(-1, 200)[weights],
         batch["masked_lm_ids"].ravel()[weights]),
        ("next_sentence", reference_bert.next_sentence_logits(values, batch, 2).numpy(),
         batch["next_sentence_labels"][:, 0]),
    ):  # fmt: skip
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[range(len(labels)), labels]
        np.testing.assert_allclose(found[f"{prefix}_loss"], losses.mean(), rtol=1e-5)
        assert found[f"{prefix}_accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    np.testing.assert_allclose(found["perplexity"], np.exp(found["masked_lm_loss"]))


@needs_kernels
def test_a_resumed_run_makes_up_for_an_evaluation(runs):
    """Stopped after snapshot_4, before the evaluation that was due then: that comes first, and the rest is the same."""
    output = runs / "stopped"
    shutil.copytree(runs / "without/snapshot_4", output / "snapshot_4")
    flags = {"eval_data_dir": runs / "dev", "eval_every_n_iter": 2, "resume": True}
    result = train(runs, output, iter_num=6, model_save_every_n_iter=4, **flags)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"Evaluation after (\d+) iterations", result.stdout) == ["4", "6"]
    expected = evaluations(runs / "with")
    assert evaluations(output) == {4: expected[4], 6: expected[6]}
    assert_same_folders(output / "last_snapshot", runs / "with/last_snapshot")


def test_early_stopping(runs):
    """Without learning no evaluation is better than the first. --model_save_keep leaves the best model alone."""
    output = runs / "early"
    flags = {
        "learning_rate": 0, "iter_num": 8, "model_save_every_n_iter": 1, "model_save_keep": 1,
        "eval_data_dir": runs / "dev", "eval_every_n_iter": 1, "early_stopping": 2,
        "eval_batch_size_per_device": 2**20,  # as large as the data set
        "metric_for_best_model": "masked_lm_accuracy",
    }  # fmt: skip
    result = train(runs, output, **flags)
    assert result.returncode == 0, result.stderr
    assert list(evaluations(output)) == [1, 2, 3]
    assert "Training stops after 3 iterations: 2 evaluations have not found a better masked_lm_acc" in result.stdout
    iterations = {
        path.parent.parent.name: json.loads(path.read_text().splitlines()[0])["iteration"]
        for path in output.glob("*/System*/run_state")
    }
    assert iterations == {"best_snapshot": 1, "snapshot_3": 3, "last_snapshot": 3}
    shutil.rmtree(output / "last_snapshot")
    result = train(runs, output, **flags, resume=True)
    assert result.returncode == 0, result.stderr
    assert "Nothing is left to do: 2 evaluations have" in result.stdout and (output / "last_snapshot").is_dir()


def evaluation_in(folder, is_due=lambda iteration: True, **flags):
    args = Namespace(metric_for_best_model="f1", early_stopping=2, iter_num=9, model_save_dir=str(folder), **flags)
    found = evaluation.Evaluation(None, evaluation.Task(None, None), args)
    found.is_due = is_due
    return found


def test_what_a_resumed_run_knows(tmp_path):
    def start(iteration, run_number=3):
        return Namespace(iteration=iteration, run_number=run_number)

    first = evaluation_in(tmp_path)
    first.begin(start(0))
    for iteration, f1 in ((1, 50.0), (2, float("nan")), (3, 60.0), (4, 60.0)):
        assert first.is_best({"f1": f1}) == (iteration in (1, 3))
        assert not first.is_over()
        first.note(iteration, {"f1": f1})
    first.note(5, {"f1": 10.0})
    assert first.is_over() and "2 evaluations have not found a better f1 than 60.0000 after 3" in first.describe_end()

    resumed = evaluation_in(tmp_path)
    resumed.begin(start(2))
    assert resumed.is_missing(2) is False and resumed.is_best({"f1": 55.0}) and not resumed.is_over()
    resumed.begin(start(7))
    assert resumed.is_missing(7) and not resumed.is_missing(4) and resumed.is_over()
    resumed.begin(start(7, run_number=4))
    assert resumed.is_best({"f1": 1.0})
    entry = '{"run_number": 3, "evaluations": [{"iteration": 1, "f1": %s}]}'
    for content in ("{", "[]", entry % '"x"', entry % "NaN"):
        (tmp_path / evaluation.HISTORY_FILE).write_text(content)
        with pytest.raises(UserError, match="evaluations.json"):
            resumed.begin(start(7))


def test_a_notice_of_the_best_model(capsys, tmp_path):
    found = evaluation_in(tmp_path)
    text = "after 5 iterations; the best by f1 is that after 3"
    for iteration, f1, said in ((1, 50.0, ""), (3, 60.0, ""), (5, 55.0, text)):
        found.note(iteration, {"f1": f1})
        found.tell_other_best()
        told = capsys.readouterr().out
        assert said in told and bool(told) == bool(said)


@pytest.mark.parametrize(
    ("parse", "flags", "fragment"),
    [
        ("pretraining", [], "--do_train needs --data_dir"),
        ("pretraining", ["--data_dir=x", "--do_eval"], "--do_eval needs --eval_data_dir"),
        ("pretraining", ["--data_dir=x", "--do_train=False"], "nothing to do: give --do_train or --do_eval"),
        ("pretraining", ["--eval_data_dir=x", "--do_train=False"], "--model_load_dir is missing"),
        ("pretraining", ["--data_dir=x", "--early_stopping=2"], "--early_stopping needs --do_eval"),
        ("pretraining", ["--data_dir=x", "--eval_every_n_iter=0"], "eval_every_n_iter"),
        (
            "pretraining",
            ["--eval_data_dir=x", "--do_train=False", "--model_load_dir=x", "--metric_for_best_model=loss"],
            "--metric_for_best_model needs --do_train",
        ),
        ("squad", ["--data_dir=x", "--eval_data_dir=x"], "--do_eval needs --eval_predict_file"),
    ],
)
def test_wrong_usage(capsys, parse, flags, fragment):
    with pytest.raises(SystemExit) as exit_:
        getattr(config, f"parse_{parse}_args")(flags)
    assert exit_.value.code == 2 and fragment in capsys.readouterr().err


def test_a_metric_that_there_is_not():
    args = Namespace(do_train=True, do_eval=True, metric_for_best_model="accuracy")
    with pytest.raises(
        UserError, match="--metric_for_best_model=accuracy: the metrics of this task are loss, masked_lm"
    ):
        evaluation.settle_metric(args, pretraining_metrics.NAMES)
    args.metric_for_best_model = "eval_perplexity"
    evaluation.settle_metric(args, pretraining_metrics.NAMES)


def test_records_without_masks():
    with pytest.raises(UserError, match="mask no token"):
        pretraining_metrics.metrics({"masked_lm_weights": np.zeros((2, 3))}, [np.zeros((2, 3))] * 2 + [np.zeros(2)] * 2)


# ---- SQuAD


SQUAD_TRAIN = ROOT / "dataset/squad/train-v1.1.json"
SQUAD_DEV = ROOT / "dataset/squad/dev-v1.1.json"
SQUAD_FLAGS = {
    **TINY_MODEL, "vocab_size": 1200, "max_position_embeddings": 80, "seq_length": 80, "batch_size_per_device": 8,
}  # fmt: skip


def make_records(file, folder, is_training, **flags):
    flags = {"max_seq_length": 80, "doc_stride": 16, "vocab_file": ROOT / "dataset/vocab.txt", **flags}
    made = run_in_process(
        create_squad_data.main, "create_squad_data.py", input_file=file, output_dir=folder, is_training=is_training,
        **flags,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    """A folder with records in train/ and dev/, and out/, the output of a run with snapshots of the model alone."""
    folder = tmp_path_factory.mktemp("squad")
    make_records(SQUAD_TRAIN, folder / "train", True)
    make_records(SQUAD_DEV, folder / "dev", False)
    result = run(
        "run_squad.py", data_dir=folder / "train", eval_data_dir=folder / "dev", eval_predict_file=SQUAD_DEV,
        iter_num=4, eval_every_n_iter=2, save_optimizer=False, save_last_snapshot=True, learning_rate=1e-3,
        warmup_batches=1, log_dir=folder / "out", model_save_dir=folder / "out", **SQUAD_FLAGS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


def test_squad_scores_are_those_of_the_scripts(squad):
    """run_squad_predict.py, npy2json.py and evaluate-v1.1.py on the last snapshot."""
    predicted = run(
        "run_squad_predict.py", data_dir=squad / "dev", model_load_dir=squad / "out/last_snapshot",
        log_dir=squad / "log", all_results_file=squad / "all_results.npy", **SQUAD_FLAGS,
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    made = run_in_process(
        npy2json.main, "npy2json.py", all_results_file=squad / "all_results.npy", predict_file=SQUAD_DEV,
        vocab_file=squad / "dev/vocab.txt", output_dir=squad / "answers",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    scored = run("evaluate-v1.1.py", SQUAD_DEV, squad / "answers/predictions.json")
    found = evaluations(squad / "out")
    assert list(found) == [2, 4] and found[4] == json.loads(scored.stdout) and found[4]["f1"] > 0
    assert results_of(squad / "out/eval_results.txt") == {"global_step": 4, **found[4]}


def test_a_snapshot_of_the_model_alone(squad):
    """It holds no moments, and --resume refuses it."""
    for name in ("last_snapshot", "best_snapshot"):
        names = layout.variable_names(squad / "out" / name)
        assert not [name for name in names if name.endswith(("-m", "-v"))] and "bert-pooler-dense-bias" not in names
        assert "cls-squad-output-weight" in names and "System-Train-TrainStep-SquadFinetuneJob" in names
    result = run(
        "run_squad.py", "--resume", data_dir=squad / "train", iter_num=4, learning_rate=1e-3, warmup_batches=1,
        log_dir=squad / "out", model_save_dir=squad / "out", **SQUAD_FLAGS,
    )  # fmt: skip
    assert_fails_with_one_line(
        result, "last_snapshot lacks", "--save_optimizer=False; start a run from it with --model"
    )


def questions_of(folder, **flags):
    flags = {"seq_length": 80, "vocab_size": 1200, "type_vocab_size": 2, "eval_iter_num": None, **flags}
    return squad_evaluation.check(
        Namespace(**{"eval_data_dir": str(folder), "eval_predict_file": str(SQUAD_DEV), **flags})
    )


def test_squad_records_that_are_not_of_the_questions(squad, tmp_path):
    assert questions_of(squad / "dev").data_set.record_count > 20
    with pytest.raises(UserError, match="its records are for SQuAD training; make some of --eval_predict_file with"):
        questions_of(squad / "train")
    with pytest.raises(UserError, match="train-v1.1.json: the records in .* are of other questions"):
        questions_of(squad / "dev", eval_predict_file=str(SQUAD_TRAIN))
    flags = {"eval_batch_size_per_device": 1, "node_num": 1, "gpu_num_per_node": 1}
    with pytest.raises(UserError, match="--eval_iter_num=1: too few batches for the first question, which has"):
        questions_of(squad / "dev", eval_iter_num=1, **flags)
    shutil.copytree(squad / "dev", tmp_path / "dev")
    (tmp_path / "dev/part-0").write_bytes((squad / "dev/part-0").read_bytes() * 2)
    with pytest.raises(UserError, match="records are not the .* windows of .*, in order"):
        questions_of(tmp_path / "dev")
    with open(tmp_path / "dev" / description.VOCAB_FILE, "a") as file:
        file.write("more\n")
    with pytest.raises(UserError, match="is not the vocabulary that the records beside it were made with"):
        questions_of(tmp_path / "dev")
    (tmp_path / "dev" / description.FILE).unlink()
    with pytest.raises(UserError, match="has no records.json that tells the windows"):
        questions_of(tmp_path / "dev")


def test_a_part_of_the_questions(squad):
    """Of --eval_iter_num batches, those questions count whose windows have all been scored."""
    questions = questions_of(squad / "dev")
    first, second = questions.examples[:2]
    count = second.first_window + len(second.windows) - 1
    logits = np.full((count, 80), -5.0, np.float32)
    # The first word of the first question's context.
    logits[0, len(first.query_pieces) + 2] = 5.0
    word = first.document.words[0]
    found = questions.metrics({}, [logits, logits])
    expected = squad_evaluation.squad_metric.evaluate({first.id: questions.references[first.id]}, {first.id: word})
    assert found == expected


def test_questions_without_an_answer(tmp_path):
    """SQuAD v2.0: of two questions with the highest logits at [CLS], the one that has no answer is right."""
    content = json.loads(SQUAD_DEV.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0].update(is_impossible=True, answers=[])
    (tmp_path / "dev.json").write_text(json.dumps(content))
    make_records(tmp_path / "dev.json", tmp_path / "dev", False)
    questions = questions_of(tmp_path / "dev", eval_predict_file=str(tmp_path / "dev.json"))
    second = questions.examples[1]
    logits = np.full((second.first_window + len(second.windows), 80), -5.0, np.float32)
    logits[:, 0] = 5.0
    assert questions.metrics({}, [logits, logits]) == {"exact_match": 50.0, "f1": 50.0}
