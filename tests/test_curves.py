"""The curves of training runs: TensorBoard's event files."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_folder
from conftest import ROOT, write_pretraining_part
from event_file import EventFile
from test_run_pretraining import logged, pretrain, pretraining_flags

TAGS = {
    "loss/total_loss": "total_loss",
    "loss/mlm_loss": "mlm_loss",
    "loss/nsp_loss": "nsp_loss",
    "gradient_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "speed/sentences_per_sec": "sentences_per_sec",
    "speed/ms_per_step": None,
}


def read_events(folder):
    """What TensorBoard itself reads from a run's folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events, tag):
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Output folders: of a run of 6 steps whose snapshot is of step 4, of one that goes on from it, and of both."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "data").mkdir()
    write_pretraining_part(folder / "data" / "part-0", 12)
    flags = pretraining_flags(folder / "data", folder / "log", iter_num=6, model_save_every_n_iter=4)
    program = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([name for name in sys.modules if name.split('.')[0] == 'tensorflow'])"
    )
    command = [sys.executable, "-c", f"import sys; sys.argv[:1] = []\n{program}", "run_pretraining.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    first_lines = logged(folder / "log")
    (name,) = [path.name for path in (folder / "log").glob("metrics-*")]
    second = pretrain(
        folder / "data", folder / "log", iter_num=5, model_load_dir=folder / "log" / "snapshot_4", learning_rate=2e-3
    )
    assert second.returncode == 0, second.stderr
    (path,) = [path for path in (folder / "log").glob("metrics-*") if path.name != name]
    second_lines = [json.loads(line) for line in path.read_text().splitlines()]
    return first, folder / "log", first_lines, second_lines


def test_training_does_without_tensorflow(resumed):
    first, *_ = resumed
    assert first.stdout.splitlines()[-1] == "[]"


def test_a_resumed_run_goes_on_in_its_own_curves(resumed):
    _, log_dir, first_lines, second_lines = resumed
    ((folder, run),) = run_folder.read_runs(log_dir).items()
    assert folder.name.startswith("PretrainJob-20")
    assert len(run["metrics"]) == 2
    # The first four steps of the first run, then what came of them when it was resumed with another learning rate.
    expected = {line["train_step"]: line for line in first_lines + second_lines}
    assert list(expected) == list(range(9)) and expected[4] == second_lines[0]
    events = read_events(folder)
    assert set(events.Tags()["scalars"]) == set(TAGS)
    for tag, key in TAGS.items():
        values = {step: line[key] if key else 1000 * line["sec_per_batch"] for step, line in expected.items()}
        assert scalars(events, tag) == pytest.approx(values, rel=1e-6)


def test_hyper_parameters_are_a_text(resumed):
    _, log_dir, *_ = resumed
    (folder,) = run_folder.read_runs(log_dir)
    first, second = read_events(folder).Tensors("parameters")
    assert (first.step, second.step) == (0, 4)
    (text,) = second.tensor_proto.string_val
    assert "| learning_rate | 0\\.002 |" in text.decode().splitlines()
    assert "| model_load_dir | " in text.decode()


def arguments(folder, **values):
    return Namespace(
        **{"log_dir": str(folder), "model_save_dir": str(folder / "models"), "learning_rate": 1.0, **values}
    )


def test_which_runs_share_a_folder(tmp_path):
    def open_run(number, first_step=0, job="PretrainJob", **values):
        return run_folder.open_run_folder(
            arguments(tmp_path, **values), job, first_step, f"metrics-{number}.jsonl"
        ).name

    assert open_run(1) == "PretrainJob-1"
    assert open_run(2, first_step=10) == "PretrainJob-1"
    assert open_run(3, first_step=10, job="SquadFinetuneJob") == "SquadFinetuneJob-3"
    assert open_run(4, first_step=10, model_save_dir="elsewhere") == "PretrainJob-4"
    assert open_run(5) == "PretrainJob-5"  # from the start again: a run of its own
    assert open_run(6, first_step=3) == "PretrainJob-5"
    metrics = {folder.name: run["metrics"] for folder, run in run_folder.read_runs(tmp_path).items()}
    assert metrics == {
        "SquadFinetuneJob-3": ["metrics-3.jsonl"],
        "PretrainJob-4": ["metrics-4.jsonl"],
        "PretrainJob-1": ["metrics-1.jsonl", "metrics-2.jsonl"],
        "PretrainJob-5": ["metrics-5.jsonl", "metrics-6.jsonl"],
    } and list(metrics) == ["PretrainJob-1", "SquadFinetuneJob-3", "PretrainJob-4", "PretrainJob-5"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": []}', '{"metrics": [1]}', '{"metrics": 3}', "[[[["])
def test_a_damaged_run_file_does_no_harm(tmp_path, content):
    (tmp_path / "PretrainJob-1").mkdir()
    (tmp_path / "PretrainJob-1" / run_folder.RUN_FILE).write_text(content)
    assert run_folder.read_runs(tmp_path) == {}
    folder = run_folder.open_run_folder(arguments(tmp_path), "PretrainJob", 5, "metrics-2.jsonl")
    assert list(run_folder.read_runs(tmp_path)) == [folder]


def test_events_are_there_before_the_file_is_closed(tmp_path):
    """A run that is killed has lost none of its curve."""
    events = EventFile(tmp_path, 0)
    events.write_scalars(0, {"loss/a": 1.5, "b": float("nan")})
    events.write_scalars(1, {"loss/a": float("inf")})
    found = read_events(tmp_path)
    assert scalars(found, "loss/a") == {0: 1.5, 1: float("inf")}
    assert str(scalars(found, "b")[0]) == "nan"
    events.close()
