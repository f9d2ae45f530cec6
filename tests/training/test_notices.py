"""What a run is told before its first step."""

from argparse import Namespace

import numpy as np
import pytest

import config
from snapshots import layout
from training import notices
from training.resume import StartingPoint


def told(capsys, tmp_path, *flags, iteration=0, train_step=0, evaluation=None):
    """The notices of a run with those flags that begins there."""
    args = config.parse_pretraining_args(["--data_dir=x", f"--model_save_dir={tmp_path}", *flags])
    notices.tell(args, StartingPoint(iteration, train_step, 1, {}, {}, {}), evaluation)
    return capsys.readouterr().out


USUAL = ("--save_last_snapshot", "--warmup_batches=10", "--iter_num=100")


def test_nothing_is_said_of_a_usual_run(capsys, tmp_path):
    assert told(capsys, tmp_path, *USUAL) == ""
    assert told(capsys, tmp_path / "none", "--iter_num=20", "--model_save_every_n_iter=20", "--warmup_batches=0") == ""


@pytest.mark.parametrize(("warmup", "reached"), [(10000, "2.97e-07"), (100, "2.97e-05")])
def test_a_warm_up_as_long_as_the_run(capsys, tmp_path, warmup, reached):
    flags = (*USUAL, f"--warmup_batches={warmup}", "--learning_rate=3e-5")
    expected = f"the learning rate rises to {reached} at its end, not to 3e-05"
    assert expected in told(capsys, tmp_path, *flags)
    # A run that goes on, or starts from a later train step, reaches the peak.
    assert "rises" not in told(capsys, tmp_path, *flags, train_step=10000)


def test_a_run_that_saves_nothing(capsys, tmp_path):
    flags = ("--iter_num=100", "--warmup_batches=10")
    assert "saves no snapshot" in told(capsys, tmp_path, *flags)
    assert "saves no snapshot" in told(capsys, tmp_path, *flags, "--model_save_every_n_iter=60", iteration=60)
    assert "saves no snapshot" not in told(capsys, tmp_path, *flags, "--model_save_every_n_iter=60")


def test_snapshots_of_an_earlier_run(capsys, tmp_path):
    with layout.open_writer(tmp_path / "snapshot_5") as write:
        write("x", np.zeros(1, np.float32))
    assert "holds snapshots of an earlier run, the newest snapshot_5" in told(capsys, tmp_path, *USUAL)
    assert told(capsys, tmp_path, *USUAL, "--resume") == ""


def test_snapshots_that_cannot_be_resumed(capsys, tmp_path):
    assert told(capsys, tmp_path, *USUAL, "--save_optimizer=False") == ""
    expected = "--save_optimizer=False leaves out the moments that --resume needs"
    assert expected in told(capsys, tmp_path, *USUAL, "--save_optimizer=False", "--resume")


def test_early_stopping_that_cannot_come(capsys, tmp_path):
    flags = (*USUAL, "--eval_data_dir=x", "--early_stopping=3")
    for every, count in ((25, 3), (100, 0), (20, None)):
        evaluation = Namespace(is_due=lambda iteration, every=every: iteration % every == 0)
        expected = f"not end this run early: there are {count} evaluations" if count is not None else ""
        said = told(capsys, tmp_path, *flags, evaluation=evaluation)
        assert expected in said and ("Notice" in said) == bool(expected)


def test_an_update_of_more_sequences_than_all_epochs_have(capsys):
    flags = ["--data_dir=x", "--num_epochs=2", "--batch_size_per_device=4", "--num_accumulation_steps=3"]
    for records, expected in ((6, ""), (5, "one update reads 12 sequences, more than the 10 of --num_epochs=2")):
        args = config.parse_squad_args(flags)
        config.set_iter_num(args, records)
        said = capsys.readouterr().out
        assert args.iter_num == 1 and expected in said and ("Notice" in said) == bool(expected)


def test_a_prediction_of_a_part_of_the_data(capsys):
    args = config.parse_squad_predict_args(
        ["--data_dir=x", "--model_load_dir=x", "--iter_num=3", "--batch_size_per_device=8"]
    )
    for records, expected in ((25, "Notice: --iter_num=3 predicts 24 of the 25 records"), (24, "")):
        config.set_prediction_iter_num(args, records)
        said = capsys.readouterr().out
        assert expected in said and ("Notice" in said) == bool(expected)
