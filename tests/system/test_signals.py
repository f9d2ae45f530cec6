"""Runs that are stopped, cannot save or get bad numbers: what they say, what they leave, how they end."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launched import PRETRAINING, Launched, has_handler
from made_parts import write_pretraining_part
from running import ROOT, WITHOUT_FSYNC, run
from snapshots import layout, run_state, series

pytestmark = pytest.mark.slow

ENDLESS = {**PRETRAINING, "iter_num": 1000000, "batch_size_per_device": 4, "environment": WITHOUT_FSYNC}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one part of 24 pre-training records."""
    folder = tmp_path_factory.mktemp("data")
    write_pretraining_part(folder / "part-0", 24)
    return folder


def iterations_of(folder):
    """How many iterations the run had done whose snapshot this is; all its variables can be read."""
    for name in layout.variable_names(folder):
        layout.read_variable(folder, name)
    (step,) = layout.read_variable(folder, "System-Train-TrainStep-PretrainJob")
    assert run_state.read(folder)["iteration"] == step
    return step


def assert_stopped(training, number, ranks=1):
    """It ends with 128 + the signal, having saved what it has trained, and says where."""
    assert training.wait() == 128 + number, (training.stdout, training.stderr)
    (line,) = training.stderr.splitlines()
    found = re.fullmatch(
        rf"run_pretraining.py: stopped by {signal.Signals(number).name} after (\d+) of 1000000 iterations; "
        rf"--resume goes on from {training.output}/snapshot_\1",
        line,
    )
    assert found, line
    assert iterations_of(training.output / f"snapshot_{found[1]}") == int(found[1])
    last = re.findall(r"^iter (\d+),", training.stdout, re.MULTILINE)[-1]
    assert int(last) == int(found[1]) - 1
    assert training.ranks() == {}
    return int(found[1])


class TestPreemption:
    """The first signal saves. The second, and signals of two ranks in a save: tests/training/test_resume.py."""

    def test_in_training(self, data, tmp_path):
        with Launched("run_pretraining.py", tmp_path, data_dir=data, **ENDLESS) as training:
            training.wait_for("iter 2,")
            training.process.send_signal(signal.SIGHUP)
            assert_stopped(training, signal.SIGHUP)

    def test_during_the_first_compilation(self, data, tmp_path):
        with Launched("run_pretraining.py", tmp_path, data_dir=data, **ENDLESS) as training:
            training.wait_for_file("metrics-*.jsonl")
            training.process.send_signal(signal.SIGINT)
            assert_stopped(training, signal.SIGINT)

    def test_during_a_save(self, data, tmp_path):
        # A save that waits for the disk lasts until the signal comes.
        flags = {**ENDLESS, "model_save_every_n_iter": 5, "environment": None}
        with Launched("run_pretraining.py", tmp_path, data_dir=data, **flags) as training:
            training.wait_for("Saving model")
            training.process.send_signal(signal.SIGTERM)
            assert_stopped(training, signal.SIGTERM)

    def test_two_ranks(self, data, tmp_path):
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=2, **ENDLESS) as training:
            training.wait_for("iter 2,")
            training.process.send_signal(signal.SIGINT)
            assert_stopped(training, signal.SIGINT)

    def test_two_ranks_all_of_which_are_sent_signals(self, data, tmp_path):
        """As Slurm does: two to each rank, one of them passed on; only the launcher counts."""
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=2, **ENDLESS) as training:
            training.wait_for("iter 2,")
            for process_id in (training.process.pid, *training.ranks().values()):
                os.kill(process_id, signal.SIGTERM)
            assert_stopped(training, signal.SIGTERM)

    def test_one_rank_alone_is_sent_a_signal(self, data, tmp_path):
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=2, **ENDLESS) as training:
            training.wait_for("iter 2,")
            os.kill(training.ranks()[1], signal.SIGTERM)
            assert_stopped(training, signal.SIGTERM)

    def test_two_ranks_that_have_not_begun_to_train(self, data, tmp_path):
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=2, **ENDLESS) as training:
            training.wait_for("Time stamp")
            training.process.send_signal(signal.SIGTERM)
            assert training.wait() == 143
            assert len(training.stderr.splitlines()) == 1 and "by SIGTERM" in training.stderr
            assert training.ranks() == {}

    @pytest.mark.parametrize("ranks", [1, 2])
    @pytest.mark.parametrize("delay", [0, 1.5])
    def test_all_processes_are_sent_a_signal_before_training(self, data, tmp_path, ranks, delay):
        """As Slurm does: while flags and data are checked, and later, mostly while the engine is loaded."""
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=ranks, **ENDLESS) as training:
            training.wait_for("Time stamp")
            time.sleep(delay)
            for process_id in (training.process.pid, *training.children()):
                os.kill(process_id, signal.SIGTERM)
            training.assert_failed("ed by SIGTERM", status=143, within=30)  # ended, or stopped


PROGRAM = """
import os, signal, sys, time
from system import signals
with getattr(signals, sys.argv[1])() as numbers:
    print("ready", flush=True)
    {body}
"""


SIGNAL_BEFORE_SIGACTION = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>

int sigaction(int number, const struct sigaction* action, struct sigaction* before) {
  static int has_handler = 0;
  int (*own)(int, const struct sigaction*, struct sigaction*) = dlsym(RTLD_NEXT, "sigaction");
  if (number == SIGTERM && action != NULL) {
    if (has_handler) raise(number);
    has_handler = action->sa_handler != SIG_IGN && action->sa_handler != SIG_DFL;
  }
  return own(number, action, before);
}
"""


def start_program(context, body):
    command = [sys.executable, "-c", PROGRAM.format(body=body), context]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def wait_until_heeded(process_id, number):
    """Returns when the process has got a signal that it heeds once."""
    deadline = time.monotonic() + 60
    while has_handler(process_id, number):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestSignals:
    def test_a_second_one_kills_while_python_does_not_run(self):
        """As within the engine: the system must do it."""
        body = "sum(range(10**10))"  # which does not let any Python code run
        with start_program("recorded", body) as process:
            time.sleep(0.3)  # It goes on as well if it has not begun yet.
            process.send_signal(signal.SIGTERM)
            wait_until_heeded(process.pid, signal.SIGTERM)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM

    def test_two_at_the_same_time(self):
        body = "signal.pthread_sigmask(signal.SIG_BLOCK, {2, 15}); os.kill(os.getpid(), 2); os.kill(os.getpid(), 15);"
        body += " signal.pthread_sigmask(signal.SIG_UNBLOCK, {2, 15}); time.sleep(60)"
        with start_program("recorded", body) as process:
            assert process.wait(60) in (130, 143, -2, -15)
            assert process.stderr.read() == ""

    @pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
    @pytest.mark.parametrize(
        ("call", "status"),
        [
            ("signals.ignore()", 0),
            ("signals.set_action(15, signal.SIG_DFL)", -15),
            ("signal.signal(15, signal.SIG_IGN)", 0),
        ],
    )
    def test_one_that_comes_when_python_has_looked_for_it(self, tmp_path, call, status):
        """Just before the system is told what to do at it; Python alone tells of it with a traceback."""
        (tmp_path / "late.c").write_text(SIGNAL_BEFORE_SIGACTION)
        library = tmp_path / "late.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "late.c", "-ldl"], check=True)
        body = "import signal; from system import signals; signal.signal(15, lambda *_: None); "
        body += call
        program = [sys.executable, "-c", body]
        late = subprocess.run(program, cwd=ROOT, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True)
        assert late.returncode == status
        assert (late.stderr != b"") == call.startswith("signal."), late.stderr

    def test_handlers_are_put_back(self):
        body = (
            "pass\nassert signal.getsignal(2) is signal.default_int_handler and signal.getsignal(15) == signal.SIG_DFL"
        )
        with start_program("recorded", body) as process:
            assert process.wait(60) == 0, process.stderr.read()


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes at `folder`; skips the test where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class TestSaving:
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_a_full_disk_keeps_nobody_from_training(self, data, tmp_path, ranks):
        """With several ranks only the first one finds out."""
        flags = {**ENDLESS, "model_save_every_n_iter": 20, "gpu_num_per_node": ranks}
        disk = tmp_path / "disk"
        with small_disk(disk, 16 << 20):
            with Launched(
                "run_pretraining.py", tmp_path / "o", data_dir=data, model_save_dir=disk, **flags
            ) as training:
                training.wait_for("snapshot_20.")
                training.wait_for("iter 20,")
                with contextlib.suppress(OSError):
                    (disk / "filler").write_bytes(bytes(16 << 20))
                training.wait_for("iter 100,")
                (disk / "filler").unlink()
                seen = len(training.stdout)
                while "Saving model" not in training.stdout[seen:].split("iter ", 1)[-1]:
                    time.sleep(0.05)
                training.process.send_signal(signal.SIGTERM)
                assert training.wait() == 143, training.stderr
            *warnings, line = training.stderr.splitlines()
            assert "stopped by SIGTERM" in line
            assert warnings
            for warning in warnings:
                assert re.fullmatch(
                    rf"run_pretraining.py: warning: {disk}/snapshot_(\d+) could not be saved "
                    rf"\({disk}/snapshot_\1\S*: No space left on device\); "
                    rf"training goes on, the newest snapshot is {disk}/snapshot_\d+",
                    warning,
                )
            assert iterations_of(disk / "snapshot_20") == 20
            failed = {re.search(r"snapshot_\d+", warning)[0] for warning in warnings}
            saved = {path.name for path in series.complete_snapshots(disk)}
            assert not failed & saved and len(saved) >= 2
            assert {path.name for path in disk.iterdir()} == saved, "nothing half written stays"

    def test_a_full_disk_at_a_signal(self, data, tmp_path):
        with small_disk(tmp_path / "disk", 100000):
            save_dir = {"model_save_dir": tmp_path / "disk"}
            with Launched("run_pretraining.py", tmp_path / "o", data_dir=data, **save_dir, **ENDLESS) as training:
                training.wait_for("iter 2,")
                training.process.send_signal(signal.SIGTERM)
                training.assert_failed("stopped by SIGTERM after", "No space left", "no snapshot has been saved yet")

    def test_a_snapshot_replaces_nothing_else(self, data, tmp_path):
        """A name that only a signal makes it need, so that nothing was found wrong before."""
        for iteration in range(1, 200):
            (tmp_path / f"snapshot_{iteration}").mkdir()
            (tmp_path / f"snapshot_{iteration}" / "thesis.txt").touch()
        with Launched("run_pretraining.py", tmp_path, data_dir=data, **ENDLESS) as training:
            training.wait_for("iter 2,")
            training.process.send_signal(signal.SIGTERM)
            training.assert_failed("stopped by SIGTERM after", "is no snapshot")
        assert len(list(tmp_path.glob("snapshot_*/thesis.txt"))) == 199

    def test_keep(self, data, tmp_path):
        flags = {**PRETRAINING, "iter_num": 9, "batch_size_per_device": 4, "save_last_snapshot": True}
        flags |= {"log_dir": tmp_path, "model_save_dir": tmp_path, "data_dir": data}
        assert run("run_pretraining.py", **flags, model_save_every_n_iter=3).returncode == 0
        assert names(tmp_path) == ["snapshot_3", "snapshot_6", "snapshot_9", "last_snapshot"]
        # What an earlier run has left is older, whatever its numbers are.
        assert run("run_pretraining.py", **flags, model_save_every_n_iter=4, model_save_keep=2).returncode == 0
        assert names(tmp_path) == ["snapshot_4", "snapshot_8", "last_snapshot"]


def names(folder):
    return [path.name for path in series.complete_snapshots(folder)]


class TestSeries:
    @staticmethod
    def make(folder, name, number=None, iteration=0):
        step = folder / name / "System-Train-TrainStep-PretrainJob"
        step.mkdir(parents=True)
        (folder / name / layout.DONE_FILE).touch()
        if number is not None:
            state = {"run_number": number, "iteration": iteration, "losses": {}}
            state |= {"run": {"same": {}, "similar": {}}, "positions": [{"reader": None, "random": None}]}
            (step / run_state.FILE).write_bytes(run_state.encode(state))

    def test_order(self, tmp_path):
        self.make(tmp_path, "snapshot_30", 4, 30)
        self.make(tmp_path, "snapshot_120", 3, 120)  # of an earlier run
        self.make(tmp_path, "last_snapshot", 4, 25)
        self.make(tmp_path, "snapshot_100")  # of an older version, as the next
        self.make(tmp_path, "snapshot_90")
        self.make(tmp_path, "snapshot_050", 9, 50)
        (tmp_path / "snapshot_40").mkdir()
        expected = ["snapshot_90", "snapshot_100", "snapshot_120", "last_snapshot", "snapshot_30"]
        assert names(tmp_path) == expected
        assert series.next_run_number(tmp_path) == 5
        assert series.next_run_number(tmp_path / "nothing") == 1

    def test_removing(self, tmp_path):
        for iteration, name in ((10, "snapshot_10"), (15, "last_snapshot"), (20, "snapshot_20"), (30, "snapshot_30")):
            self.make(tmp_path, name, 1, iteration)
        (tmp_path / "snapshot_5").mkdir()  # no snapshot
        (tmp_path / ".snapshot_1.removed.tmp").mkdir()  # left when one was killed
        series.remove_oldest(tmp_path, 2)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["last_snapshot", "snapshot_20", "snapshot_30", "snapshot_5"]
        series.remove_oldest(tmp_path, 5)
        assert sorted(path.name for path in tmp_path.iterdir()) == left

    def test_removing_a_link_leaves_what_it_names(self, tmp_path):
        self.make(tmp_path / "elsewhere", "model", 1, 10)
        self.make(tmp_path / "saved", "snapshot_20", 1, 20)
        (tmp_path / "saved" / "snapshot_10").symlink_to(tmp_path / "elsewhere" / "model")
        series.remove_oldest(tmp_path / "saved", 1)
        assert os.listdir(tmp_path / "saved") == ["snapshot_20"]
        assert layout.check_is_snapshot(tmp_path / "elsewhere" / "model") is None


class TestBadNumbers:
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_a_loss_that_is_none(self, data, tmp_path, ranks):
        """Weights of 2e37 and more; what was saved before they came is what is left."""
        flags = {**ENDLESS, "learning_rate": 2e37, "warmup_batches": 0, "model_save_every_n_iter": 1}
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=ranks, **flags) as training:
            training.assert_failed(
                "iter 1 (learning rate 2e+37): ", "total_loss is ", f"{tmp_path}/snapshot_1", within=60
            )
        assert names(tmp_path) == ["snapshot_1"]

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_weights_that_are_none(self, data, tmp_path, ranks):
        """Losses and gradients were good; the update was not."""
        flags = {**ENDLESS, "learning_rate": 3e38, "warmup_batches": 2, "model_save_every_n_iter": 1}
        with Launched("run_pretraining.py", tmp_path, data_dir=data, gpu_num_per_node=ranks, **flags) as training:
            training.assert_failed(
                "not finite", f"{tmp_path}/snapshot_2 is not saved", f"is {tmp_path}/snapshot_1", within=60
            )
        assert names(tmp_path) == ["snapshot_1"]
        assert iterations_of(Path(tmp_path / "snapshot_1")) == 1
