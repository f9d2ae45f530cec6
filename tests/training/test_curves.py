"""The curves of training runs: TensorBoard's event files, and the pictures of tools/plot_log.py."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import plot_log
from in_process import full_disk, run_in_process
from made_parts import write_pretraining_part
from pretraining_runs import logged, pretrain, pretraining_flags
from running import ROOT, WITHOUT_FSYNC, assert_fails_with_one_line, run
from training import metrics, run_folder
from training.event_file import EventFile

pytestmark = pytest.mark.slow

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
    environment = {**os.environ, **WITHOUT_FSYNC}
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
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


# ---- tools/plot_log.py


def write_log(folder, name, steps, loss=lambda step: 9 / (1 + step), **more):
    folder.mkdir(exist_ok=True)
    lines = [
        {"train_step": step, "total_loss": loss(step), "learning_rate": 1e-4, "sentences_per_sec": 100.0, **more}
        for step in steps
    ]
    (folder / f"metrics-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def plot(*arguments):
    return run_in_process(plot_log.main, "plot_log.py", *arguments)


def is_picture(path):
    """Whether the file is a whole PNG on which something is drawn in colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return bool((np.ptp(pixels, axis=2) > 50).sum() > 50)


def test_a_resumed_run_is_one_curve(tmp_path):
    write_log(tmp_path, "1", range(8), loss=lambda step: 1.0)
    write_log(tmp_path, "2", range(5, 10), loss=lambda step: 2.0)
    write_log(tmp_path, "3", range(3), loss=lambda step: 3.0)  # from before there were run folders
    (tmp_path / "PretrainJob-1").mkdir()
    content = {"metrics": ["metrics-1.jsonl", "metrics-2.jsonl", "metrics-removed.jsonl"]}
    (tmp_path / "PretrainJob-1" / run_folder.RUN_FILE).write_text(json.dumps(content))
    first, second = plot_log.read_log_dir(str(tmp_path), False)
    assert (first.name, second.name) == ("PretrainJob-1", "metrics-3")
    assert first.steps.tolist() == list(range(10)) and first.resumed == [5]
    assert first.values["total_loss"].tolist() == [1.0] * 5 + [2.0] * 5
    assert second.values["total_loss"].tolist() == [3.0] * 3


def test_evaluations_are_curves_of_their_own(tmp_path):
    """An evaluation that was made up for when the run was resumed is of the step before."""

    def evaluation(step, loss):
        return json.dumps({"train_step": step, "eval_masked_lm_loss": loss, "eval_masked_lm_accuracy": 0.5}) + "\n"

    write_log(tmp_path, "1", range(8), mlm_loss=1.0)
    write_log(tmp_path, "2", range(5, 10), mlm_loss=1.0)
    for name, first, second in (("1", evaluation(2, 3.0), evaluation(6, 9.0)), ("2", evaluation(4, 2.0), "")):
        path = tmp_path / f"metrics-{name}.jsonl"
        path.write_text(first + path.read_text() + second)
    (tmp_path / "PretrainJob-1").mkdir()
    content = {"metrics": ["metrics-1.jsonl", "metrics-2.jsonl"]}
    (tmp_path / "PretrainJob-1" / run_folder.RUN_FILE).write_text(json.dumps(content))
    (run,) = plot_log.read_log_dir(str(tmp_path), False)
    assert run.steps.tolist() == list(range(10)) and run.evaluated.tolist() == [2, 4]
    assert run.metrics["eval_masked_lm_loss"].tolist() == [3.0, 2.0]
    titles = [axes.get_title("left") for axes in plot_log.draw([run]).axes]
    assert titles == [
        "Loss", "Masked language model loss", "Evaluation: masked_lm_accuracy", "Learning rate", "Sentences per second",
    ]  # fmt: skip


def test_running_mean_and_groups():
    values = np.random.default_rng(0).standard_normal(333)
    expected = [values[max(0, index - 3) : index + 4].mean() for index in range(333)]
    np.testing.assert_allclose(plot_log.running_mean(values), expected)  # 2 % of 333 are 3 to either side
    np.testing.assert_allclose(plot_log.group_means(np.arange(7.0), 3), [1, 4, 6])
    assert plot_log.reduce_groups(np.maximum, np.arange(7.0), 3).tolist() == [2, 5, 6]


def test_runs_of_all_kinds_in_one_picture(tmp_path):
    write_log(tmp_path / "point", "1", range(1))
    write_log(tmp_path / "$long_{name", "1", range(0, 50000, 10), mlm_loss=1.0, nsp_loss=0.5)
    write_log(tmp_path / "_diverged", "1", range(80), loss=lambda step: 1.0 if step < 40 else float("nan"))
    write_log(tmp_path / "only nan 图", "1", range(3), loss=lambda step: float("nan"))
    write_log(tmp_path / "infinite", "1", range(60), loss=lambda step: float("inf"))
    write_log(tmp_path / "other", "1", range(60), another_loss=1.0)
    result = plot(*tmp_path.iterdir(), "-o", tmp_path / "loss.png")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"runs: 6, in {tmp_path / 'loss.png'}\n"
    assert is_picture(tmp_path / "loss.png")


def test_the_folder_above_several_runs(tmp_path):
    """As TensorBoard takes it: each run has its folder's name."""
    for name in ("first", "more/second", "more/third"):
        (tmp_path / "all" / name).mkdir(parents=True)
        write_log(tmp_path / "all" / name, "1", range(3))
    (tmp_path / "all" / "empty").mkdir()
    result = plot(tmp_path / "all", "-o", tmp_path / "loss.png")
    assert (result.returncode, result.stdout) == (0, f"runs: 3, in {tmp_path / 'loss.png'}\n")
    found = plot_log.find_log_dirs(str(tmp_path / "all"))
    assert found == [f"{tmp_path}/all/{name}" for name in ("first", "more/second", "more/third")]


def test_names_tell_where_a_loss_is_no_number_any_more(tmp_path):
    write_log(tmp_path, "1", range(80), loss=lambda step: 1.0 if step < 40 else float("nan"))
    (run,) = plot_log.read_log_dir(str(tmp_path), False)
    assert plot_log.describe(run) == "metrics-1 (no finite loss from step 40)"


def test_pictures_of_real_runs(resumed, tmp_path):
    _, log_dir, *_ = resumed
    for name, plot_ in (("loss.png", partial(run, "tools/plot_log.py")), ("loss.svg", plot), ("loss.pdf", plot)):
        result = plot_(log_dir, "-o", tmp_path / name)
        assert (result.returncode, result.stderr) == (0, "")
    assert is_picture(tmp_path / "loss.png")
    assert (tmp_path / "loss.svg").read_text().startswith("<?xml")
    assert (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    write_log(tmp_path, "1", range(5))
    with open(tmp_path / "metrics-1.jsonl", "a") as file:
        file.write('{"train_step": 5, "total_lo')
    (run,) = plot_log.read_log_dir(str(tmp_path), False)
    assert run.steps.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "content, fragments",
    [
        (None, ["has no file metrics-*.jsonl", "--log_dir"]),
        (b"", ["no run has logged an iteration yet"]),
        (b"{}\n", ["metrics-1.jsonl, line 1", "has no train_step"]),
        (b'{"train_step": 1}\n\n', ["metrics-1.jsonl, line 2", "not JSON"]),
        (b"\xff\x00\n", ["metrics-1.jsonl, line 1", "not JSON"]),
        (b"[" * 100000 + b"\n", ["metrics-1.jsonl, line 1", "not JSON"]),
        (b'{"train_step": 1e400}\n', ["has no train_step"]),
        (b'{"train_step": -1}\n', ["has no train_step"]),
        (b'{"train_step": ' + b"9" * 30 + b"}\n", ["has no train_step"]),
        (b"[1]\n", ["has no train_step"]),
    ],
)
def test_logs_that_are_none(tmp_path, content, fragments):
    if content is not None:
        (tmp_path / "metrics-1.jsonl").write_bytes(content)
    result = plot(tmp_path, "-o", tmp_path / "loss.png")
    assert_fails_with_one_line(result, "plot_log.py: error: ", str(tmp_path), *fragments)
    assert not list(tmp_path.glob("*.png"))


def test_more_losses_than_a_picture_shows(tmp_path):
    """Each has a panel of its own: of one run, and of several together."""
    losses = {f"x{number}_loss": 1.0 for number in range(13)}
    write_log(tmp_path, "1", range(2), **losses)
    assert_fails_with_one_line(plot(tmp_path, "-o", tmp_path / "loss.png"), "metrics-1.jsonl: has 13 kinds of losses")
    del losses["x12_loss"]
    write_log(tmp_path, "1", range(2), **losses)
    assert plot(tmp_path, "-o", tmp_path / "loss.png").returncode == 0
    write_log(tmp_path, "2", range(2), x12_loss=1.0)
    result = plot(tmp_path, "-o", tmp_path / "more.png")
    assert_fails_with_one_line(result, "2 runs with 13 other kinds of losses are more than a picture can show")


def test_more_runs_than_a_picture_shows(tmp_path):
    for number in range(501):
        write_log(tmp_path, str(number), range(1))
    result = plot(tmp_path, "-o", tmp_path / "loss.png")
    assert_fails_with_one_line(result, "501 runs with 0 other kinds of losses are more than a picture can show")


def test_bad_flags_of_plot_log(tmp_path):
    write_log(tmp_path, "1", range(5))
    assert_fails_with_one_line(plot(tmp_path / "none", "-o", tmp_path / "a.png"), "none: there is no such folder")
    assert_fails_with_one_line(plot(tmp_path, "-o", tmp_path / "a.jpg"), "a.jpg", ".png")
    assert_fails_with_one_line(plot(tmp_path, "-o", tmp_path / "none" / "a.png"), "--output", "cannot be written")
    assert_fails_with_one_line(plot(tmp_path), "-o")
    assert_fails_with_one_line(plot("-o", tmp_path / "a.png"), "log_dir")


# ---- what cannot be written


def test_a_full_disk_costs_numbers_but_not_the_run(tmp_path, capsys):
    args = arguments(tmp_path, iter_num=100, loss_print_every_n_iter=50, log_every_n_iter=1, do_eval=False)
    args.node_num = args.gpu_num_per_node = args.batch_size_per_device = args.num_accumulation_steps = 1
    with full_disk(4000), metrics.MetricLog(args, "PretrainJob", 0, {}) as log:
        for iteration in range(100):
            log.add(iteration, iteration, 1e-4, {"total_loss": 1.0})
    captured = capsys.readouterr()
    assert [line.split(",")[0] for line in captured.out.splitlines()] == ["iter 49", "iter 99"]
    (warning,) = captured.err.splitlines()
    assert f"warning: {tmp_path}: numbers are lost (File too large" in warning
    (run,) = plot_log.read_log_dir(str(tmp_path), False)
    assert run.steps.tolist() == list(range(len(run.steps))) and 10 < len(run.steps) < 100
