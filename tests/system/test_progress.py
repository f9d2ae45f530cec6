"""What the scripts show on a terminal: a bar below whole lines, and nothing left behind by Ctrl-C."""

import io
import os
import pty
import re
import select

import pytest

import small_models
from made_parts import write_pretraining_part, write_squad_parts
from pretraining_runs import LOSS_LINE, pretraining_flags
from running import TINY_MODEL, WITHOUT_FSYNC
from system import progress
from terminals import Terminal

pytestmark = pytest.mark.slow

TIME_LEFT = re.compile(r"\[\d\d:\d\d<(\d\d:\d\d), +[\d.]+(batch/s|s/batch)\]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(what a short training run leaves on a terminal, its snapshot)."""
    folder = tmp_path_factory.mktemp("trained")
    write_pretraining_part(folder / "part-0", 12)
    flags = pretraining_flags(
        folder, folder, iter_num=40, loss_print_every_n_iter=5, model_save_every_n_iter=15, save_last_snapshot=True
    )
    terminal = Terminal("run_pretraining.py", environment=WITHOUT_FSYNC, **flags)
    return terminal, folder / "last_snapshot"


def test_training_shows_a_bar_below_whole_lines(trained):
    terminal, snapshot = trained
    assert terminal.status == 0, terminal.output
    begin = terminal.lines.index("Init model on demand")
    end = terminal.lines.index("-" * 66, begin)
    lines = terminal.lines[begin + 1 : end]
    assert [LOSS_LINE.fullmatch(line)[1] for line in lines if line.startswith("iter")] == [
        str(iteration) for iteration in range(4, 40, 5)
    ]
    assert [line for line in lines if not line.startswith("iter")] == [
        f"Saving model to {snapshot.parent / name}." for name in ("snapshot_15", "snapshot_30", "last_snapshot")
    ]
    assert TIME_LEFT.search(terminal.output)
    assert terminal.lines[end + 1].startswith("average speed: ")
    assert terminal.last_line() == "-" * 66
    assert terminal.is_left_clean()


def test_prediction_shows_a_bar(tmp_path):
    write_squad_parts(tmp_path / "data", 40, is_training=False)
    terminal = Terminal(
        "run_squad_predict.py",
        **{**TINY_MODEL, "seq_length": 32, "data_part_num": 1, "batch_size_per_device": 1, "log_dir": tmp_path},
        data_dir=tmp_path / "data",
        model_load_dir=small_models.write_tiny_squad_snapshot(tmp_path / "snapshot"),
        all_results_file=tmp_path / "all_results.npy",
    )
    assert terminal.status == 0, terminal.output
    assert TIME_LEFT.search(terminal.output)
    assert terminal.last_line() == f"Saved 40 results to {tmp_path / 'all_results.npy'}."
    assert terminal.is_left_clean()


def test_ctrl_c_in_training_leaves_the_terminal_clean(tmp_path):
    write_pretraining_part(tmp_path / "part-0", 12)
    flags = pretraining_flags(tmp_path, tmp_path, iter_num=100000, loss_print_every_n_iter=10)
    terminal = Terminal("run_pretraining.py", **flags, press_ctrl_c_at="iter 9,")
    assert terminal.status == 130
    begin = terminal.lines.index("Init model on demand")
    *losses, saving, error = filter(None, terminal.lines[begin + 1 :])
    # Behind a line the terminal may echo the key.
    assert [line for line in losses if not LOSS_LINE.fullmatch(line.removesuffix("^C"))] == []
    assert re.fullmatch(f"Saving model to {tmp_path}/snapshot_[0-9]+[.]", saving)
    assert error.startswith("run_pretraining.py: stopped by SIGINT after ")
    assert terminal.is_left_clean()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_ctrl_c_in_training_leaves_the_terminal_clean(tmp_path, ranks):
    """While a large model is saved: what was the bar's line is the error's."""
    write_pretraining_part(tmp_path / "part-0", 12)
    flags = pretraining_flags(tmp_path, tmp_path, iter_num=100000, vocab_size=400000, gpu_num_per_node=ranks)
    terminal = Terminal("run_pretraining.py", **flags, press_ctrl_c_at="iter 1,", times=2)
    assert terminal.status == 130, terminal.output
    assert re.search(r"/100000 \[.*\^C", terminal.output)
    assert terminal.last_line() == "run_pretraining.py: error: ended by SIGINT"
    assert terminal.is_left_clean()
    assert "/100000 [" not in "".join(terminal.lines)


class FakeStream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


@pytest.mark.parametrize("stdout, stderr", [(True, False), (False, True), (False, False)])
def test_no_bar_unless_stdout_and_stderr_are_a_terminal(monkeypatch, stdout, stderr):
    """With `| tee log` the lines and the bar would come to the terminal from two processes."""
    monkeypatch.setattr("sys.stdout", FakeStream(stdout))
    monkeypatch.setattr("sys.stderr", stream := FakeStream(stderr))
    with progress.progress_bar(total=3) as bar:
        bar.update()
        progress.print_line("a line")
    assert stream.getvalue() == ""


def test_a_terminal_that_does_not_know_its_width_shows_a_bar(monkeypatch):
    master, slave = pty.openpty()  # 0 rows and 0 columns, as long as nobody sets them
    with open(slave, "w", encoding="utf-8") as stream, open(master, "rb", buffering=0):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        with progress.progress_bar(total=3, unit="batch") as bar:
            bar.update(3)
        stream.flush()
        output = ""
        while not re.search(r"100%\|.+\| 3/3 \[.*batch/s\]", output):
            # It comes in pieces.
            assert select.select([master], [], [], 30)[0], output
            output += os.read(master, 65536).decode()


def test_a_bar_that_has_not_come_to_its_end_is_erased(monkeypatch):
    monkeypatch.setattr("sys.stdout", FakeStream(True))
    for total, is_left in [(1, True), (2, False)]:
        monkeypatch.setattr("sys.stderr", stream := FakeStream(True))
        with progress.progress_bar(total=total) as bar:
            bar.update()
        assert stream.getvalue().endswith("\n" if is_left else "\r\x1b[K")


def test_a_bar_that_is_not_left_is_erased_with_what_the_terminal_wrote_beside_it(monkeypatch):
    monkeypatch.setattr("sys.stdout", FakeStream(True))
    monkeypatch.setattr("sys.stderr", stream := FakeStream(True))
    with progress.progress_bar(total=3, leave=False) as bar:
        bar.update()
    assert stream.getvalue().endswith("\r\x1b[K")
