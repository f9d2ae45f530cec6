"""--resume: the run that was stopped and goes on is the run that was never stopped, byte for byte."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import config
from launched import PRETRAINING, Launched, slow_disk
from made_parts import write_pretraining_part
from records.checks import DataSet
from running import ROOT, assert_fails_with_one_line, needs_kernels, run
from snapshots import layout, run_state, series
from system.errors import UserError
from training import resume

pytestmark = pytest.mark.slow

STEP = "System-Train-TrainStep-PretrainJob"
# Shuffled, with dropout, and a line of losses that a save falls into.
FLAGS = {
    **PRETRAINING,
    "iter_num": 24,
    "batch_size_per_device": 4,
    "loss_print_every_n_iter": 7,
    "model_save_every_n_iter": 5,
    "save_last_snapshot": True,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with four parts of 22 pre-training records in all, which do not divide by a batch."""
    folder = tmp_path_factory.mktemp("data")
    for part, count in enumerate((4, 5, 6, 7)):
        write_pretraining_part(folder / f"part-{part}", count, seed=part)
    return folder


def pretrain(data, output, **flags):
    """A run to its end; returns its stdout."""
    flags = {**FLAGS, "data_part_num": 4, "log_dir": output, "model_save_dir": output, **flags}
    result = run("run_pretraining.py", data_dir=data, **flags)
    assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    return result.stdout


def start(data, output, name="first", **flags):
    flags = {**FLAGS, "data_part_num": 4, "log_dir": output, "model_save_dir": output, **flags}
    return Launched("run_pretraining.py", output / name, data_dir=data, **flags)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The output folder of the run that was never stopped, with its stdout in stdout.txt."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "stdout.txt").write_text(pretrain(data, folder))
    return folder


@pytest.fixture(scope="module")
def whole_on_two_ranks(data, tmp_path_factory):
    """The same of two ranks, each of which reads two parts of its own."""
    folder = tmp_path_factory.mktemp("whole_on_two_ranks")
    (folder / "stdout.txt").write_text(pretrain(data, folder, gpu_num_per_node=2))
    return folder


def loss_lines(text):
    return [line.split(", speed")[0] for line in text.splitlines() if re.match(r"iter \d", line)]


def logged(folder):
    """iteration -> its numbers, but for times, of all the runs that have logged there."""
    found = {}
    for path in sorted(folder.glob("metrics-*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["iter"]] = {name: entry[name] for name in entry if "sec" not in name}
    return found


def read_all(folder):
    """path -> bytes of every file."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(output, whole, *texts):
    assert sum(map(loss_lines, texts), []) == loss_lines((whole / "stdout.txt").read_text())
    assert logged(output) == logged(whole)
    assert read_all(output / "last_snapshot") == read_all(whole / "last_snapshot")
    assert read_all(output / "snapshot_20") == read_all(whole / "snapshot_20")


@needs_kernels
class TestExactly:
    def test_stopped_by_a_signal(self, data, whole, tmp_path):
        with start(data, tmp_path, resume=True) as training:
            training.wait_for("iter 6,")
            training.process.send_signal(signal.SIGTERM)
            assert training.wait() == 143
            assert f"Notice: {tmp_path} has no snapshot to resume from, so the run starts afresh." in training.stdout
            first = training.stdout
        done = int(re.search(r"after (\d+) of 24", training.stderr)[1])
        assert 6 < done < 24
        stdout = pretrain(data, tmp_path, resume=True)
        assert f"Restoring model from {tmp_path}/snapshot_{done}.\nResuming after {done} of 24 iterations.\n" in stdout
        assert "Notice" not in stdout
        assert_same_run(tmp_path, whole, first, stdout)

    def test_killed(self, data, whole, tmp_path, tmp_path_factory):
        """In the midst of a save. What was trained after the one before is trained again."""
        environment = slow_disk(tmp_path_factory.mktemp("disk"), "snapshot_15")
        with start(data, tmp_path, resume=True, environment=environment) as training:
            training.wait_for_file("../.snapshot_15.*.tmp/*")
            training.process.kill()
            training.wait()
        assert names(tmp_path) == ["snapshot_5", "snapshot_10"]
        assert "Resuming after 10 of 24" in pretrain(data, tmp_path, resume=True)
        assert logged(tmp_path) == logged(whole)
        assert read_all(tmp_path / "last_snapshot") == read_all(whole / "last_snapshot")
        assert not list(tmp_path.glob(".*.tmp"))

    def test_lamb_where_padding_is_computed(self, data, tmp_path):
        """LAMB's bias corrections go on; so does computing padding, which a state of an older version does not tell."""
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        flags = {"optimizer_type": "lamb", "iter_num": 8}
        pretrain(data, whole, skip_padding=False, **flags)
        shutil.copytree(whole / "snapshot_5", killed / "snapshot_5")
        state = run_state.read(killed / "snapshot_5")
        assert state["run"]["similar"].pop("--skip_padding") is False
        (killed / "snapshot_5" / STEP / run_state.FILE).write_bytes(run_state.encode(state))
        stdout = pretrain(data, killed, resume=True, **flags)
        assert "Resuming after 5 of 8" in stdout and "Notice" not in stdout.replace("Notice: --warmup", "")
        assert read_all(killed / "last_snapshot") == read_all(whole / "last_snapshot")

    def test_with_accumulation_and_activation_checkpointing(self, data, tmp_path):
        """From snapshot_5, which is all that a run has that is killed before the next one."""
        flags = {"iter_num": 12, "batch_size_per_device": 2, "num_accumulation_steps": 3}
        flags["activation_checkpointing"] = True
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        pretrain(data, whole, **flags)
        shutil.copytree(whole / "snapshot_5", killed / "snapshot_5")
        assert "Resuming after 5 of 12" in pretrain(data, killed, resume=True, **flags)
        assert logged(killed) == {iteration: logged(whole)[iteration] for iteration in range(5, 12)}
        for name in ("snapshot_10", "last_snapshot"):
            assert read_all(killed / name) == read_all(whole / name)

    def test_nothing_is_left_to_do(self, data, whole, tmp_path):
        """Also where it was stopped after the last iteration and before last_snapshot."""
        for path in whole.glob("*snapshot*"):
            shutil.copytree(path, tmp_path / path.name)
        stdout = pretrain(data, tmp_path, resume=True)
        assert stdout.endswith("All 24 iterations have run; nothing is left to do.\n")
        shutil.rmtree(tmp_path / "last_snapshot")
        shutil.copytree(tmp_path / "snapshot_20", tmp_path / "snapshot_24")
        state = run_state.read(whole / "last_snapshot")
        (tmp_path / "snapshot_24" / STEP / run_state.FILE).write_bytes(run_state.encode(state))
        assert "Copying" in pretrain(data, tmp_path, resume=True)
        assert read_all(tmp_path / "last_snapshot") == read_all(tmp_path / "snapshot_24")


@needs_kernels
@pytest.mark.parametrize("ranks", [1, 2])
class TestSlowDisk:
    """A save that takes seconds: signals come in the midst of it. Of two ranks the second has nothing to write."""

    @pytest.fixture
    def reference(self, request, ranks):
        """The output folder of the run that was never stopped, on a fast disk."""
        return request.getfixturevalue("whole" if ranks == 1 else "whole_on_two_ranks")

    @pytest.fixture
    def saving(self, data, ranks, reference, tmp_path, tmp_path_factory):
        """A run that is saving snapshot_10, in a time in which it could save hundreds."""
        environment = slow_disk(tmp_path_factory.mktemp("disk"), "snapshot_10")
        with start(data, tmp_path, environment=environment, gpu_num_per_node=ranks) as training:
            training.wait_for("snapshot_10.")
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(".snapshot_10.*.tmp/*")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert names(tmp_path) == ["snapshot_5"]
            yield training

    def test_a_signal_lets_it_be_completed(self, data, ranks, reference, saving, tmp_path):
        saving.process.send_signal(signal.SIGTERM)
        saving.assert_failed("stopped by SIGTERM after ", f"; --resume goes on from {tmp_path}", status=143)
        done = int(re.search(r"after (\d+) of 24", saving.stderr)[1])
        # Several ranks agree on where to stop in the iterations after it.
        assert done == 10 if ranks == 1 else 10 < done < 15
        assert names(tmp_path) == ["snapshot_5", "snapshot_10", f"snapshot_{done}"][: 2 + (done > 10)]
        assert read_all(tmp_path / "snapshot_10") == read_all(reference / "snapshot_10")
        if ranks == 2:
            # Equal to the byte, as two ranks add up in one order only. One goes on from the same bytes in test_killed.
            stdout = pretrain(data, tmp_path, resume=True, gpu_num_per_node=ranks)
            assert_same_run(tmp_path, reference, saving.stdout, stdout)

    def test_two_signals_end_it_at_once(self, reference, saving, tmp_path):
        """The older snapshot is what there is, whole."""
        saving.send_until_ended(signal.SIGTERM)
        saving.assert_failed("ended by SIGTERM", status=143, within=2)
        assert names(tmp_path) == ["snapshot_5"]
        assert read_all(tmp_path / "snapshot_5") == read_all(reference / "snapshot_5")

    def test_one_rank_is_killed(self, ranks, reference, saving, tmp_path):
        """The last, which of two only waits for the one that saves; that ends as well."""
        os.kill(saving.ranks()[1] if ranks == 2 else saving.children()[0], signal.SIGKILL)
        saving.assert_failed("rank 1: was killed by SIGKILL" if ranks == 2 else "the engine was killed by SIGKILL")
        assert names(tmp_path) == ["snapshot_5"]
        assert read_all(tmp_path / "snapshot_5") == read_all(reference / "snapshot_5")


def names(folder):
    return [path.name for path in series.complete_snapshots(folder)]


@pytest.fixture
def stopped(data, whole, tmp_path):
    """A folder with the snapshots of the run after 20 iterations."""
    for iteration in (10, 20):
        shutil.copytree(whole / f"snapshot_{iteration}", tmp_path / f"snapshot_{iteration}")
    return tmp_path


class TestNotExactly:
    """It says so."""

    def check(self, data, stopped, *fragments, **flags):
        stdout = pretrain(data, stopped, resume=True, **flags)
        assert "Resuming after 20 of" in stdout
        notices = " ".join(line for line in stdout.splitlines() if line.startswith("Notice: "))
        for fragment in fragments:
            assert fragment in notices, stdout
        assert [entry["train_step"] for entry in logged(stopped).values()][0] == 20

    @needs_kernels
    def test_more_iterations_at_another_rate(self, data, stopped):
        flags = {"iter_num": 26, "learning_rate": 1e-4}
        self.check(data, stopped, "--learning_rate was 0.001, is 0.0001, --iter_num was 24, is 26", **flags)

    @pytest.mark.engine
    def test_without_the_kernels(self, data, stopped, monkeypatch):
        monkeypatch.setenv("BERT_KERNELS", "none")
        self.check(data, stopped, "data and dropout begin anew in another order")

    @needs_kernels
    def test_another_number_of_ranks(self, data, stopped):
        reason = (
            "model, moments and step are exact, but data and dropout begin anew in another order, as it was saved "
            "with 1 as the number of ranks, not 2"
        )
        self.check(data, stopped, reason, gpu_num_per_node=2, batch_size_per_device=2)


class TestComparing:
    """What is compared with the run that was stopped, without one."""

    @pytest.fixture
    def run_of(self, tmp_path, monkeypatch):
        """run_of(paths, flag=value) is what resume knows of a run, with a model on a CPU."""
        monkeypatch.setattr(resume, "_BLOCK", 100)
        monkeypatch.setattr(resume, "_BLOCKS", 8)
        parameter = argparse.Namespace(placement=argparse.Namespace(type="cpu"))
        job = argparse.Namespace(parameters_of_model=lambda: [parameter])

        def run_of(paths, **flags):
            args = config.parse_pretraining_args([f"--data_dir={tmp_path}"])
            vars(args).update(flags)
            return resume._describe_run(job, args, DataSet(paths, {}, None))

        return run_of

    def notices(self, tmp_path, saved, run):
        """What resuming `run` from a snapshot of `saved` tells. Raises UserError if it is refused."""
        folder = tmp_path / "snapshot_5"
        (folder / STEP).mkdir(parents=True, exist_ok=True)
        state = {"run_number": 1, "iteration": 5, "losses": {}, "positions": [{"reader": None, "random": None}]}
        (folder / STEP / run_state.FILE).write_bytes(run_state.encode({**state, "run": saved}))
        return resume._read_state(folder, run)["notices"]

    def write_parts(self, tmp_path, size):
        paths = [tmp_path / f"part-{index}" for index in range(2)]
        for path in paths:
            path.write_bytes(b"x" * size)
            os.utime(path, (1e9, 1e9))
        return paths

    @pytest.mark.parametrize(
        ("size", "changed"), [(399, slice(398, 399)), (400, slice(250, 251)), (200000, slice(65536, None))]
    )
    def test_blocks_are_spread_over_each_part(self, tmp_path, run_of, size, changed):
        """Of a part that is no larger than its blocks any byte counts."""
        paths = self.write_parts(tmp_path, size)
        saved = run_of(paths)
        assert self.notices(tmp_path, saved, saved) == []
        content = bytearray(b"x" * size)
        content[changed] = b"y" * len(content[changed])
        paths[1].write_bytes(content)
        with pytest.raises(UserError, match="is of a run with blocks of the data = " if size > 65536 else "with data"):
            self.notices(tmp_path, saved, run_of(paths))

    def test_time_stamps(self, tmp_path, run_of):
        """Only where they tell more than what has been compared."""
        for size, expected in ((400, 0), (200000, 1)):
            paths = self.write_parts(tmp_path, size)
            saved = run_of(paths)
            os.utime(paths[1], (2e9, 2e9))
            notices = self.notices(tmp_path, saved, run_of(paths))
            assert len(notices) == expected
        assert "1 of 2 part(s) of the data, number 1 first" in notices[0]

    def test_a_flag_that_is_added_later(self, tmp_path, run_of):
        paths = self.write_parts(tmp_path, 10)
        with pytest.raises(UserError, match="is of a run with --label_smoothing = 0.1, not 0.2"):
            self.notices(tmp_path, run_of(paths, label_smoothing=0.1), run_of(paths, label_smoothing=0.2))
        # It is no difference to a snapshot that was saved before it came, unless it is known what the run did without.
        assert self.notices(tmp_path, run_of(paths), run_of(paths, label_smoothing=0.2)) == []
        saved = run_of(paths)
        del saved["same"]["--num_accumulation_steps"]
        assert self.notices(tmp_path, saved, run_of(paths)) == []
        with pytest.raises(UserError, match="is of a run with --num_accumulation_steps = 1, not 2"):
            self.notices(tmp_path, saved, run_of(paths, num_accumulation_steps=2))

    @pytest.mark.parametrize(
        ("before", "now", "message"),
        [
            ({"seed": 12345}, {"seed": 5}, "--seed = 12345, not 5"),
            ({"batch_size_per_device": 4}, {"batch_size_per_device": 2}, "global batch size = 4, not 2"),
            ({"num_hidden_layers": 2}, {"num_hidden_layers": 3}, "--num_hidden_layers = 2, not 3"),
        ],
    )
    def test_another_run(self, tmp_path, run_of, before, now, message):
        paths = self.write_parts(tmp_path, 10)
        with pytest.raises(UserError, match=f"is of a run with {message}"):
            self.notices(tmp_path, run_of(paths, **before), run_of(paths, **now))

    def test_another_optimizer(self, tmp_path, run_of):
        paths = self.write_parts(tmp_path, 10)
        adam, lamb = run_of(paths), run_of(paths, optimizer_type="lamb")
        with pytest.raises(UserError, match="is of a run with --optimizer_type = lamb, not adam"):
            self.notices(tmp_path, lamb, adam)
        # Older versions have saved runs of Adam without saying so.
        del adam["same"]["--optimizer_type"]
        with pytest.raises(UserError, match="is of a run with --optimizer_type = adam, not lamb"):
            self.notices(tmp_path, adam, lamb)

    def test_a_snapshot_of_a_version_that_compared_less(self, tmp_path, run_of):
        paths = self.write_parts(tmp_path, 10)
        run = run_of(paths)
        saved = {"same": {"--seed": 12345, "data": run["same"]["data"]}, "similar": {"--iter_num": 7}}
        assert self.notices(tmp_path, saved, run) == [
            "not quite the run that was stopped: --iter_num was 7, is 1144000"
        ]
        paths[0].write_bytes(b"y" * 10)
        with pytest.raises(UserError, match="is of a run with data"):
            self.notices(tmp_path, saved, run_of(paths))

    def test_every_exception_is_a_flag(self):
        """And no flag is in two lists."""
        parsed = [
            config.parse_pretraining_args(["--data_dir=x"]),
            config.parse_squad_args(["--data_dir=x"]),
            config.parse_squad_predict_args(["--data_dir=x", "--model_load_dir=x"]),
            config.parse_classifier_args(["--data_dir=x", "--do_train"]),
        ]
        listed = [*config._FLAGS_OF_A_NODE, *config._FLAGS_OF_A_START, *config._FLAGS_THAT_MAY_CHANGE]
        assert len(set(listed)) == len(listed)
        assert set(listed) <= set().union(*map(vars, parsed))


class TestRefused:
    def check(self, data, stopped, *fragments, **flags):
        flags = {**FLAGS, "data_part_num": 4, "log_dir": stopped, "model_save_dir": stopped, "resume": True, **flags}
        before = {path.name for path in stopped.glob("*snapshot*")}
        result = run("run_pretraining.py", data_dir=data, **flags)
        assert_fails_with_one_line(result, *fragments)
        assert {path.name for path in stopped.glob("*snapshot*")} == before

    def test_another_run(self, data, stopped):
        message = f"{stopped}/snapshot_20 is of a run with global batch size = 4, not 2"
        self.check(data, stopped, message, batch_size_per_device=2)

    @pytest.mark.engine
    def test_other_data(self, data, stopped, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(data, other)
        write_pretraining_part(other / "part-1", 6, seed=1)
        self.check(other, stopped, "data = 4 part(s), checksum ")

    @pytest.mark.parametrize("damage", [b"x", b""])
    def test_a_damaged_state(self, data, stopped, damage):
        path = stopped / "snapshot_20" / STEP / run_state.FILE
        path.write_bytes(damage + path.read_bytes()[1:])
        # It does not even tell any more when it was saved, so it does not count as the newest.
        assert series.complete_snapshots(stopped)[-1] == stopped / "snapshot_10"

    def test_a_snapshot_of_an_older_version(self, data, whole, tmp_path):
        shutil.copytree(whole / "snapshot_20", tmp_path / "snapshot_20")
        (tmp_path / "snapshot_20" / STEP / run_state.FILE).unlink()
        self.check(data, tmp_path, "does not tell what run it is of", "--model_load_dir=")

    def test_no_folder(self, data):
        assert_fails_with_one_line(
            run("run_pretraining.py", data_dir=data, resume=True), "--resume needs --model_save_dir"
        )


def test_older_readers_pass_over_the_state(whole):
    """OneFlow's, without a warning, and ours."""
    folder = whole / "last_snapshot"
    program = (
        "import warnings, sys; from engine.oneflow_loader import flow; warnings.simplefilter('error');"
        "print(len(flow.load(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) == len(layout.variable_names(folder))
