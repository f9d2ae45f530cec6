"""Several ranks on this machine, on its CPU: they compute what one computes, and none is left behind when one fails."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import small_models
from engine import native
from launched import PRETRAINING, SQUAD, Launched
from made_parts import write_pretraining_part, write_squad_parts
from records import ofrecord
from running import ROOT, needs_kernels, run
from snapshots import layout, run_state

pytestmark = pytest.mark.slow

GLOBAL_BATCH = 12
ENDLESS = {"iter_num": 1000000, "batch_size_per_device": GLOBAL_BATCH // 2}
LOSSES = ("total_loss", "mlm_loss", "nsp_loss")


def logged(output, name):
    """The numbers called `name` in the JSON lines of the one run that logged into `output`."""
    (path,) = output.glob("metrics-*.jsonl")
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


def pretrain(data, output, ranks, **flags):
    """A run of GLOBAL_BATCH on so many ranks, which succeeds; returns its stdout."""
    flags = {**PRETRAINING, "data_dir": data, "save_last_snapshot": True, **flags}
    batch = GLOBAL_BATCH // ranks
    result = run(
        "run_pretraining.py",
        **flags,
        gpu_num_per_node=ranks,
        batch_size_per_device=batch,
        log_dir=output,
        model_save_dir=output,
    )
    assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one part of 24 pre-training records."""
    folder = tmp_path_factory.mktemp("data")
    write_pretraining_part(folder / "part-0", 24)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Number of ranks -> output folder of the same 10 iterations on 1, 2 and 3 ranks, with snapshot_5."""
    folder = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2, 3):
        stdout = pretrain(data, folder / str(ranks), ranks, model_save_every_n_iter=5)
        (folder / str(ranks) / "stdout.txt").write_text(stdout)
    return {ranks: folder / str(ranks) for ranks in (1, 2, 3)}


@pytest.fixture(scope="module")
def resumed(data, runs, tmp_path_factory):
    """Number of ranks -> output folder of 10 more iterations from the snapshot_5 of 3; 2 divide the state (ZeRO)."""
    folder = tmp_path_factory.mktemp("resumed")
    for ranks in (1, 2):
        flags = {"model_load_dir": runs[3] / "snapshot_5", "zero_stage": ranks - 1}
        pretrain(data, folder / str(ranks), ranks, **flags)
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def assert_same_snapshot(folder, expected):
    names = layout.variable_names(folder)
    assert names == layout.variable_names(expected)
    for name in names:
        value, reference = layout.read_variable(folder, name), layout.read_variable(expected, name)
        # Adam turns a gradient that is all rounding into a step of full size, so sizes count, not single values.
        assert np.linalg.norm(value - reference) <= 1e-4 * np.linalg.norm(reference) + 1e-7, name


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [2, 3])
def test_losses_are_those_of_one_rank(runs, ranks):
    for name in (*LOSSES, "gradient_norm"):
        expected = logged(runs[1], name)
        assert len(expected) == 10
        np.testing.assert_allclose(logged(runs[ranks], name), expected, rtol=1e-5)
    assert logged(runs[ranks], "total_loss")[-1] < logged(runs[ranks], "total_loss")[0] - 0.1


@pytest.mark.parametrize("ranks", [2, 3])
def test_rank_0_prints_and_the_others_write_to_files(runs, ranks):
    lines = (runs[ranks] / "stdout.txt").read_text().splitlines()
    assert lines[1] == f"Running bert: num_gpu_per_node = {ranks}, num_nodes = 1."
    assert len([line for line in lines if line.startswith("iter ")]) == 10
    assert {path.name for path in runs[ranks].glob("rank_*.log")} == {f"rank_{n}.log" for n in range(ranks)}
    log = (runs[ranks] / "rank_1.log").read_text()
    assert "Running bert" in log
    assert "LoadServer" not in log, "it has tried to reach rank 0 too early, which costs 10 seconds"


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [2, 3])
def test_snapshots_are_whole_and_do_not_tell_the_number_of_ranks(runs, ranks):
    assert_same_snapshot(runs[ranks] / "snapshot_5", runs[1] / "snapshot_5")
    assert_same_snapshot(runs[ranks] / "last_snapshot", runs[1] / "last_snapshot")


def test_trained_on_3_goes_on_with_1_and_2(runs, resumed):
    """ZeRO on two changes neither losses nor snapshots."""
    assert logged(resumed[2], "train_step") == list(range(5, 15))
    for name in LOSSES:
        np.testing.assert_allclose(logged(resumed[2], name), logged(resumed[1], name), rtol=1e-5)
    assert_same_snapshot(resumed[2] / "last_snapshot", resumed[1] / "last_snapshot")


def test_zero_divides_the_state(seen):
    for name in ("weight", "m", "v"):
        assert seen[f"zero_0_1_{name}"].shape == (64, 64)
        assert seen[f"zero_1_1_{name}"].shape == (32, 64)
        np.testing.assert_array_equal(seen[f"zero_1_1_{name}"], seen[f"zero_0_1_{name}"][:32])


def test_accumulation_over_equal_batches_changes_nothing(seen):
    for name in ("weight", "m", "v"):
        np.testing.assert_array_equal(seen[f"zero_1_2_{name}"], seen[f"zero_1_1_{name}"])


@needs_kernels
def test_lamb_goes_on_from_adams_snapshot(data, runs, tmp_path):
    """On 2 ranks as on 1, which it tells."""
    start = runs[1] / "snapshot_5"
    for ranks in (1, 2):
        flags = {"iter_num": 8, "optimizer_type": "lamb", "model_load_dir": start, "reset_train_step": True}
        stdout = pretrain(data, tmp_path / str(ranks), ranks, **flags)
        notice = f"Notice: {start} has the moments of --optimizer_type=adam; --optimizer_type=lamb goes on from them."
        assert notice in stdout.splitlines()
    for name in (*LOSSES, "gradient_norm"):
        np.testing.assert_allclose(logged(tmp_path / "2", name), logged(tmp_path / "1", name), rtol=1e-5)
    assert_same_snapshot(tmp_path / "2" / "last_snapshot", tmp_path / "1" / "last_snapshot")
    assert layout.variable_names(tmp_path / "1" / "last_snapshot") == layout.variable_names(start)


def test_squad_predictions_are_the_same_to_the_byte(tmp_path):
    write_squad_parts(tmp_path / "dev", 13, parts=2, is_training=False)
    flags = {**SQUAD, "batch_size_per_device": 2, "log_dir": tmp_path}
    model = small_models.write_tiny_squad_snapshot(tmp_path / "model")
    files = {}
    for ranks in (1, 2, 3):
        settings = {name: value for name, value in flags.items() if name != "iter_num"} | {"data_part_num": 2}
        file = tmp_path / f"results_{ranks}.npy"
        result = run(
            "run_squad_predict.py",
            data_dir=tmp_path / "dev",
            model_load_dir=model,
            gpu_num_per_node=ranks,
            all_results_file=file,
            **settings,
        )
        assert result.returncode == 0, result.stderr
        files[ranks] = file.read_bytes()
    results = np.load(tmp_path / "results_1.npy", allow_pickle=False)
    assert results["unique_id"].tolist() == list(range(1000000000, 1000000013))
    assert files[2] == files[1]
    assert files[3] == files[1]


@pytest.fixture(scope="module", params=["", "none"], ids=["native_kernels", "oneflows_kernels"])
def seen(request, tmp_path_factory):
    """What rank_program.py sees on 2 ranks."""
    folder = tmp_path_factory.mktemp("seen")
    for part in range(4):
        with ofrecord.open_writer(folder / f"part-{part}") as write:
            for number in range(4096 * part, 4096 * (part + 1)):
                write(ofrecord.serialize({"id": np.array([number], dtype=np.int32)}))
    flags = {"data_dir": folder, "gpu_num_per_node": 2, "iter_num": 1, "log_dir": folder, "model_save_dir": folder}
    environment = {"BERT_KERNELS": request.param, "PYTHONPATH": str(ROOT)}
    with Launched("tests/helpers/rank_program.py", folder / "output", environment=environment, **flags) as program:
        assert program.wait() == 0, program.stderr
    return {**np.load(folder / "seen.npz"), "native": request.param == "" and native.is_built()}


def test_unshuffled_records_come_in_order(seen):
    assert seen["in_order"].ravel().tolist() == list(range(seen["in_order"].size))


@pytest.mark.parametrize(("name", "readers"), [("one_part", 1), ("three_parts", 1), ("four_parts", 2)])
def test_a_record_is_used_once_an_epoch(seen, name, readers):
    """Of an epoch OneFlow's readers hold back the 1,024 records of their shuffling buffers, for as many of the next."""
    ids = seen[name].ravel()
    counts = np.bincount(ids, minlength=len(ids))
    if seen["native"]:
        assert (counts == 1).all() and len(counts) == len(ids)
        return
    assert len(counts) == len(ids) and counts.max() == 2
    assert 0 < np.count_nonzero(counts == 0) == np.count_nonzero(counts == 2) <= 1024 * readers


def test_each_rank_reads_parts_of_its_own(seen):
    """Where they can be shared out: rank 0 gives the first half of a batch, from the first half of the parts."""
    first_epoch = seen["four_parts"][:28]  # 28 x 256 records, and 1,024 in the buffer, of the 8,192 of a rank
    first, second = first_epoch[:, :256], first_epoch[:, 256:]
    assert first.max() < 8192 <= second.min()


@pytest.mark.parametrize("operator", ["dropout", "residual_norm", "attention"])
def test_ranks_draw_different_dropout_masks(seen, operator):
    """Four equal sequences on two ranks, twice: all come out differently."""
    outputs = np.concatenate([seen[f"{operator}_0"], seen[f"{operator}_1"]])
    assert len(np.unique(outputs, axis=0)) == len(outputs) == 8


def test_oneflows_own_launcher(data, runs, tmp_path):
    flags = {**PRETRAINING, "data_dir": data, "gpu_num_per_node": 2, "log_dir": tmp_path}
    flags["batch_size_per_device"] = GLOBAL_BATCH // 2
    command = [sys.executable, "tools/oneflow_launch.py", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["run_pretraining.py", *(f"--{name}={value}" for name, value in flags.items())]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(logged(tmp_path, "total_loss"), logged(runs[1], "total_loss"), rtol=1e-5)


def test_ranks_of_another_launcher_end_with_one_that_fails(data, tmp_path):
    """Slurm's way: the environment says who one is. Nothing is started, and nobody waits for a rank that has failed."""
    flags = {**PRETRAINING, "data_dir": data, "gpu_num_per_node": 2, "batch_size_per_device": 4}
    model = tmp_path / "damaged"  # only the first rank reads it
    (model / "bert-pooler-dense-bias").mkdir(parents=True)
    (model / "bert-pooler-dense-bias" / "out").write_bytes(b"cut")
    (model / "snapshot_done").touch()
    flags["model_load_dir"] = model
    port = str(free_port())
    processes = []
    for rank in range(2):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
        processes.append(Launched("run_pretraining.py", tmp_path / str(rank), environment=environment, **flags))
    with processes[0], processes[1]:
        assert processes[0].wait(60) == 2
        assert processes[0].stderr.startswith("rank 0: ") and "has 3 bytes" in processes[0].stderr
        assert len(processes[0].stderr.splitlines()) == 1
        # OneFlow itself ends the other one, when it misses the first.
        assert processes[1].wait(60) != 0


def test_a_rank_of_another_launcher_whose_first_never_comes(data, tmp_path):
    port = free_port()
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "1"}
    flags = {**PRETRAINING, "data_dir": data, "gpu_num_per_node": 2, "batch_size_per_device": 4}
    with Launched("run_pretraining.py", tmp_path, environment=environment, rendezvous_timeout=1, **flags) as rank:
        rank.assert_failed(f"rank 1: after 1 seconds, rank 0 does not answer at 127.0.0.1, port {port}")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_rank_that_is_sent_something_while_it_connects(data, tmp_path):
    """OneFlow, left to itself, lets it die of SIGSEGV if another is done with its own start and sends a message."""
    library = tmp_path / "slow_to_connect.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests" / "helpers" / "slow_to_connect.c", "-ldl"], check=True
    )
    flags = {**PRETRAINING, "data_dir": data, "iter_num": 2, "gpu_num_per_node": 2, "batch_size_per_device": 4}
    environment = {"LD_PRELOAD": str(library)}
    with Launched("run_pretraining.py", tmp_path / "output", environment=environment, **flags) as training:
        assert (training.wait(), training.stderr) == (0, "")
        assert "rank 1 is slow to connect" in (training.output / "rank_1.log").read_text()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def copy_of_snapshot_5(runs, folder):
    """A snapshot that 2 ranks have saved, alone in a folder within `folder`."""
    copied = folder / "model" / "snapshot_5"
    shutil.copytree(runs[2] / "snapshot_5", copied)
    return copied


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestFailure:
    """Each ends within 30 seconds, with one line, and leaves no process behind."""

    @pytest.fixture
    def training(self, data, tmp_path):
        """Two ranks in the midst of an endless run."""
        flags = {**PRETRAINING, **ENDLESS, "gpu_num_per_node": 2, "data_dir": data}
        with Launched("run_pretraining.py", tmp_path / "output", **flags) as training:
            training.wait_for("iter 2,")
            assert sorted(training.ranks()) == [0, 1]
            yield training
        assert training.ranks() == {}

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_is_killed(self, training, rank):
        ranks = training.ranks()
        if native.is_built():
            # Memory without a name: it is gone with the last process that has it.
            for process in ranks.values():
                assert "/memfd:bert-rank-sums (deleted)" in Path("/proc", str(process), "maps").read_text()
        os.kill(ranks[rank], signal.SIGKILL)
        training.assert_failed(f"rank {rank}: was killed by SIGKILL")

    def test_the_launcher_is_killed(self, training):
        training.process.kill()
        training.wait()
        deadline = time.monotonic() + 10
        while training.ranks():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_a_rank_is_aborted_by_the_engine(self, training):
        os.kill(training.ranks()[1], signal.SIGABRT)
        # Its peer is aborted as well, and either may be found first.
        training.assert_failed("was killed by SIGABRT", training.output / "rank_")

    def test_a_bad_part(self, data, tmp_path):
        (tmp_path / "part-0").write_bytes((data / "part-0").read_bytes())
        (tmp_path / "part-1").write_bytes((data / "part-0").read_bytes()[:-9])
        flags = {**PRETRAINING, **ENDLESS, "gpu_num_per_node": 2, "data_dir": tmp_path, "data_part_num": 2}
        with Launched("run_pretraining.py", tmp_path / "output", **flags) as training:
            training.assert_failed("rank ", tmp_path / "part-1", "truncated", status=2)

    @pytest.mark.parametrize(
        ("resume", "damage", "message"),
        [
            (True, lambda variable: flip_a_bit(variable / "out"), "the values are not those that were saved"),
            (False, lambda variable: os.truncate(variable / "out", 100), "out: has 100 bytes, the model needs 128"),
            (False, lambda variable: (variable / "out").unlink(), "out: there is no such file"),
        ],
        ids=["resume-flipped_bit", "load-truncated", "load-missing"],
    )
    def test_a_damaged_snapshot(self, data, runs, tmp_path, resume, damage, message):
        """Found by rank 0, when the others wait for what it reads."""
        snapshot_5 = copy_of_snapshot_5(runs, tmp_path)
        damage(snapshot_5 / "bert-pooler-dense-bias")
        load = {"resume": True, "model_save_dir": snapshot_5.parent} if resume else {"model_load_dir": snapshot_5}
        flags = {**PRETRAINING, **ENDLESS, "gpu_num_per_node": 2, "data_dir": data, **load}
        with Launched("run_pretraining.py", tmp_path / "output", **flags) as training:
            training.assert_failed(f"rank 0: {snapshot_5}/bert-pooler-dense-bias", message, status=2)
        assert not list(tmp_path.glob("*/snapshot_[!5]*"))

    @needs_kernels
    def test_a_damaged_state_of_one_rank(self, data, runs, tmp_path):
        """The checksum of the file is right; only the rank whose state it is can tell."""
        snapshot_5 = copy_of_snapshot_5(runs, tmp_path)
        (path,) = snapshot_5.glob(f"*/{run_state.FILE}")
        state = run_state.read(snapshot_5)
        state["positions"][1]["random"] = run_state.encode_bytes(b"{}")
        path.write_bytes(run_state.encode(state))
        flags = {**PRETRAINING, **ENDLESS, "gpu_num_per_node": 2, "data_dir": data, "resume": True}
        with Launched("run_pretraining.py", tmp_path / "output", model_save_dir=snapshot_5.parent, **flags) as training:
            training.assert_failed(f"rank 1: {snapshot_5}: the saved random state is damaged", status=2)

    def test_no_state(self, data, runs, tmp_path):
        snapshot_5 = copy_of_snapshot_5(runs, tmp_path)
        (path,) = snapshot_5.glob(f"*/{run_state.FILE}")
        path.unlink()
        flags = {**PRETRAINING, **ENDLESS, "gpu_num_per_node": 2, "data_dir": data, "resume": True}
        with Launched("run_pretraining.py", tmp_path / "output", model_save_dir=snapshot_5.parent, **flags) as training:
            training.assert_failed(f"rank 0: {snapshot_5}: does not tell what run it is of", status=2)

    def test_an_error_of_the_program(self, data, tmp_path):
        """One that nobody has foreseen: only the log has its traceback."""
        flags = {**PRETRAINING, **ENDLESS, "gpu_num_per_node": 2, "data_dir": data}
        (tmp_path / "sitecustomize.py").write_text(
            "import os, sys\n"
            "if os.environ.get('RANK') == '1':\n"
            "    from training import metrics\n"
            "    metrics.MetricLog.add = lambda *arguments: 1 / 0\n"
        )
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with Launched("run_pretraining.py", tmp_path / "output", environment=environment, **flags) as training:
            training.assert_failed("rank 1: has failed", training.output / "rank_1.log")
            assert "ZeroDivisionError" in (training.output / "rank_1.log").read_text()
