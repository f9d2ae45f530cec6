"""Several nodes, each a network namespace with an address of its own: the tutorial's flags, and nodes that fail."""

import contextlib
import json
import os
import signal

import numpy as np
import pytest

import namespaces
from conftest import run, write_pretraining_part, write_squad_parts
from launched import PRETRAINING, SQUAD, Launched

_REASON = namespaces.reason_for_none()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


@pytest.fixture(scope="module")
def network():
    """Three nodes."""
    with namespaces.Nodes(3) as network:
        yield network


@pytest.fixture
def start(network, tmp_path):
    """start(script, nodes, **flags) starts the script on so many nodes with the same command line.

    Each has a folder of its own, tmp_path/node_0 and so on, as its working directory. Returns the Launched scripts.
    """
    with contextlib.ExitStack() as stack:

        def start(script, count, only=None, **flags):
            node_list = ",".join(network.addresses[:count])
            flags = {"gpu_num_per_node": 1, "node_num": count, "node_list": node_list, **flags}
            started = []
            for index in range(count) if only is None else only:
                folder = tmp_path / f"node_{index}"
                folder.mkdir(exist_ok=True)
                node = Launched(script, folder / "output", prefix=network.prefix(index), cwd=folder, **flags)
                started.append(stack.enter_context(node))
            return started

        yield start


def logged(output):
    (path,) = output.glob("metrics-*.jsonl")
    return [json.loads(line)["total_loss"] for line in path.read_text().splitlines()]


def write_data_on_node(tmp_path, index, parts=1):
    """Parts of 24 pre-training records in the folder data of a node."""
    (tmp_path / f"node_{index}" / "data").mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        write_pretraining_part(tmp_path / f"node_{index}" / "data" / f"part-{part}", 24, seed=part)


def succeed(nodes):
    for node in nodes:
        assert node.wait() == 0, (node.stdout, node.stderr)
        assert node.stderr == ""


@pytest.mark.parametrize("count", [2, 3])
def test_pretraining(start, tmp_path, count):
    """The data are on the first node only, as it reads for all where they are in one part."""
    write_data_on_node(tmp_path, 0)
    flags = {**PRETRAINING, "data_dir": "./data", "save_last_snapshot": True, "batch_size_per_device": 2}
    nodes = start("run_pretraining.py", count, **flags)
    succeed(nodes)
    assert f"num_gpu_per_node = 1, num_nodes = {count}." in nodes[0].stdout
    assert nodes[1].stdout == "" and "Running bert" in (nodes[1].output / "rank_1.log").read_text()
    assert (nodes[0].output / "last_snapshot" / "snapshot_done").is_file()
    assert not (nodes[1].output / "last_snapshot").exists()

    flags = {**flags, "data_dir": tmp_path / "node_0" / "data", "batch_size_per_device": 2 * count}
    one = run("run_pretraining.py", **flags, log_dir=tmp_path / "one", model_save_dir=tmp_path / "one")
    assert one.returncode == 0, one.stderr
    assert len(logged(tmp_path / "one")) == 10
    np.testing.assert_allclose(logged(nodes[0].output), logged(tmp_path / "one"), rtol=1e-5)


def test_squad_training_and_prediction(start, tmp_path):
    """Training reads parts of both nodes; data and model for the prediction are on the first node only."""
    for index in range(2):
        (tmp_path / f"node_{index}").mkdir()
        write_squad_parts(tmp_path / f"node_{index}" / "train", 8, parts=2)
    write_squad_parts(tmp_path / "node_0" / "dev", 7, is_training=False)
    flags = {**SQUAD, "data_part_num": 2, "batch_size_per_device": 2, "save_last_snapshot": True}
    nodes = start("run_squad.py", 2, data_dir="./train", num_epochs=2, **{**flags, "iter_num": None})
    succeed(nodes)
    assert "iter_num = 4\n" in nodes[0].stdout

    flags = {**SQUAD, "iter_num": None, "batch_size_per_device": 2, "model_load_dir": "./output/last_snapshot"}
    nodes = start("run_squad_predict.py", 2, data_dir="./dev", **flags)
    succeed(nodes)
    assert not (tmp_path / "node_1" / "all_results.npy").exists()
    del flags["iter_num"]
    flags["model_load_dir"] = tmp_path / "node_0" / "output" / "last_snapshot"
    file = tmp_path / "one.npy"
    one = run(
        "run_squad_predict.py", data_dir=tmp_path / "node_0" / "dev", all_results_file=file, log_dir=tmp_path, **flags
    )
    assert one.returncode == 0, one.stderr
    assert len(np.load(file, allow_pickle=False)) == 7
    assert (tmp_path / "node_0" / "all_results.npy").read_bytes() == file.read_bytes()


class TestFailure:
    """All nodes end within 30 seconds, each with one line that says which rank or node and why."""

    @pytest.fixture
    def training(self, start, tmp_path):
        """Two nodes in the midst of an endless training."""
        write_data_on_node(tmp_path, 0)
        flags = {**PRETRAINING, "data_dir": "./data", "iter_num": 1000000, "batch_size_per_device": 4}
        nodes = start("run_pretraining.py", 2, **flags)
        nodes[0].wait_for("iter 2,")
        assert sorted({**nodes[0].ranks(), **nodes[1].ranks()}) == [0, 1]
        return nodes

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_is_killed(self, training, network, rank):
        os.kill(training[rank].ranks()[rank], signal.SIGKILL)
        for node in training:
            node.assert_failed(f"error: rank {rank} on node {network.addresses[rank]}: was killed by SIGKILL")

    def test_a_launcher_is_killed(self, training, network):
        training[1].process.kill()
        training[0].assert_failed(f"error: node {network.addresses[1]} has closed the connection")
        assert training[1].ranks() == {}

    def test_a_node_is_interrupted(self, training, network):
        training[1].process.send_signal(signal.SIGINT)
        training[1].assert_failed("ended by SIGINT", status=130)
        training[0].assert_failed(f"ended by SIGINT on node {network.addresses[1]}")

    def test_a_link_is_lost(self, training, network):
        network.take_down(1)
        try:
            training[0].assert_failed(f"node {network.addresses[1]} has not been heard of for 15 seconds")
            training[1].assert_failed(f"node {network.addresses[0]} has not been heard of for 15 seconds", within=10)
        finally:
            network.bring_up(1)

    def test_a_node_never_comes(self, start, network, tmp_path):
        write_data_on_node(tmp_path, 0)
        flags = {**PRETRAINING, "data_dir": "./data", "batch_size_per_device": 4, "rendezvous_timeout": 2}
        for node in start("run_pretraining.py", 3, only=[0, 1], **flags):
            node.assert_failed(f"after 2 seconds, node(s) {network.addresses[2]} have not come")

    def test_a_bad_part_on_one_node(self, start, network, tmp_path):
        for index in range(2):
            write_data_on_node(tmp_path, index, parts=2)
        os.truncate(tmp_path / "node_1" / "data" / "part-1", 1000)
        flags = {**PRETRAINING, "data_dir": "./data", "data_part_num": 2, "batch_size_per_device": 4}
        for node in start("run_pretraining.py", 2, **flags):
            node.assert_failed(f"rank 1 on node {network.addresses[1]}: data/part-1", status=2)

    def test_another_command_line(self, start, network, tmp_path):
        flags = {**PRETRAINING, "data_dir": "./data", "batch_size_per_device": 4, "node_num": 2}
        (first,) = start("run_pretraining.py", 2, only=[0], **flags)
        (second,) = start("run_pretraining.py", 2, only=[1], **{**flags, "seq_length": 16})
        for node in (first, second):
            node.assert_failed(f"node {network.addresses[1]} has --seq_length = 16", "has 32", status=2)

    def test_a_machine_that_is_not_in_the_list(self, start, network):
        node_list = ",".join(network.addresses[1:])
        (node,) = start("run_pretraining.py", 2, only=[0], node_list=node_list, data_dir="./data")
        node.assert_failed("none of these is an address of this machine", status=2)
