"""Several nodes, each a network namespace with an address of its own: the tutorial's flags, and nodes that fail."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import namespaces
from launched import PRETRAINING, SQUAD, Launched
from made_parts import write_pretraining_part, write_squad_parts
from running import ROOT, WITHOUT_FSYNC, assert_fails_with_one_line, run

_REASON = namespaces.reason_for_none()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]

GLOBAL_BATCH = 12


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


@pytest.fixture(scope="module")
def on_one_node(tmp_path_factory):
    """The losses of one rank that reads GLOBAL_BATCH records in an iteration."""
    folder = tmp_path_factory.mktemp("one")
    write_data_on_node(folder, 0)
    flags = {**PRETRAINING, "data_dir": folder / "node_0" / "data", "batch_size_per_device": GLOBAL_BATCH}
    result = run("run_pretraining.py", **flags, log_dir=folder)
    assert result.returncode == 0, result.stderr
    assert len(logged(folder)) == 10
    return logged(folder)


@pytest.mark.parametrize(("count", "ranks"), [(2, 2), (3, 1)])
def test_pretraining(start, on_one_node, tmp_path, monkeypatch, count, ranks):
    """The data are on the first node only, as it reads for all where they are in one part. The nodes share a secret."""
    monkeypatch.setenv("BERT_CLUSTER_SECRET", "of the test")
    write_data_on_node(tmp_path, 0)
    flags = {**PRETRAINING, "data_dir": "./data", "save_last_snapshot": True, "environment": WITHOUT_FSYNC}
    flags["batch_size_per_device"] = GLOBAL_BATCH // (count * ranks)
    nodes = start("run_pretraining.py", count, gpu_num_per_node=ranks, **flags)
    succeed(nodes)
    assert f"num_gpu_per_node = {ranks}, num_nodes = {count}." in nodes[0].stdout
    assert "Notice" not in nodes[0].stdout
    assert nodes[1].stdout == "" and "Running bert" in (nodes[1].output / f"rank_{ranks}.log").read_text()
    assert (nodes[0].output / "last_snapshot" / "snapshot_done").is_file()
    assert not (nodes[1].output / "last_snapshot").exists()
    np.testing.assert_allclose(logged(nodes[0].output), on_one_node, rtol=1e-5)


def test_squad_training_and_prediction(start, tmp_path):
    """Training reads parts of both nodes; data and model for the prediction are on the first node only."""
    for index in range(2):
        (tmp_path / f"node_{index}").mkdir()
        write_squad_parts(tmp_path / f"node_{index}" / "train", 8, parts=2)
    write_squad_parts(tmp_path / "node_0" / "dev", 7, is_training=False)
    flags = {**SQUAD, "data_part_num": 2, "batch_size_per_device": 2, "save_last_snapshot": True}
    flags["environment"] = WITHOUT_FSYNC
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


class TestScripts:
    """The launch scripts of scripts/, with stand-ins for ssh and Slurm that take a node for a host."""

    @pytest.fixture
    def folder(self, network, tmp_path):
        """A folder with the programs ssh, srun and scontrol in bin/, and two hosts in hosts.txt."""
        hosts = network.addresses[:2]
        first, second = (" ".join(network.prefix(index)) for index in range(2))
        programs = {
            "ssh": f"""
                while [ "$1" != -- ]; do shift; done
                case "$2" in
                    {hosts[0]}) exec {first} sh -c "$3" ;;
                    root@{hosts[1]}) exec {second} sh -c "$3" ;;
                    *) exit 255 ;;
                esac""",
            "scontrol": f"echo {hosts[0]}; echo {hosts[1]}",
            "srun": f"""
                while [ "${{1#--}}" != "$1" ]; do shift; done
                {first} "$@" &
                {second} "$@" &
                wait -n && wait -n""",
        }
        (tmp_path / "bin").mkdir()
        for name, text in programs.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        (tmp_path / "hosts.txt").write_text(f"# the cluster\n{hosts[0]}  # the master\n\nroot@{hosts[1]}\n")
        (tmp_path / "a secret").write_text("of the test")
        (tmp_path / "a secret").chmod(0o600)
        write_pretraining_part(tmp_path / "part-0", 8)
        return tmp_path

    def run(self, folder, *command, **flags):
        flags = {
            **PRETRAINING,
            "data_dir": folder,
            "batch_size_per_device": 2,
            "iter_num": 2,
            "log_dir": folder,
            **flags,
        }
        command = [*command, sys.executable, ROOT / "run_pretraining.py"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        environment["BERT_CLUSTER_SECRET_FILE"] = str(folder / "a secret")
        environment |= {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1"}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    def test_cluster(self, folder):
        result = self.run(folder, ROOT / "scripts" / "launch_cluster.sh", "hosts.txt", model_save_dir="a 'b'")
        assert (result.returncode, result.stderr) == (0, "")
        assert "num_nodes = 2." in result.stdout and "iter 1," in result.stdout
        assert "model_save_dir = a 'b'" in result.stdout

    def test_cluster_that_fails(self, folder):
        result = self.run(folder, ROOT / "scripts" / "launch_cluster.sh", "hosts.txt", seq_length=16)
        assert result.returncode in (1, 2)
        assert "--seq_length is 16" in result.stderr

    def test_cluster_with_a_host_that_cannot_be_reached(self, folder):
        with open(folder / "hosts.txt", "a") as hosts:
            # An address kept for documentation (RFC 5737): the other nodes wait for it, whatever its ssh has said.
            hosts.write("192.0.2.1\n")
        start = time.monotonic()
        result = self.run(folder, ROOT / "scripts" / "launch_cluster.sh", "hosts.txt")
        assert result.returncode == 255 and time.monotonic() - start < 30
        assert "a connection of ssh has failed" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give a file of hosts and a command"),
            (["x.txt", "true"], "x.txt: there is no such file"),
            (["bin/none", "x"], "names no host"),
        ],
    )
    def test_cluster_usage(self, folder, arguments, message):
        (folder / "bin" / "none").write_text("# nothing\n")
        script = ROOT / "scripts" / "launch_cluster.sh"
        result = subprocess.run([script, *arguments], cwd=folder, capture_output=True, text=True)
        assert_fails_with_one_line(result, "launch_cluster.sh: error: ", message)

    def test_cluster_does_not_show_the_secret(self, folder, monkeypatch):
        monkeypatch.setenv("BERT_CLUSTER_SECRET", "of the test")
        result = self.run(folder, ROOT / "scripts" / "launch_cluster.sh", "hosts.txt")
        assert_fails_with_one_line(result, "BERT_CLUSTER_SECRET is not passed on")

    def test_slurm(self, folder):
        result = self.run(folder, ROOT / "scripts" / "launch_slurm.sh")
        assert (result.returncode, result.stderr) == (0, "")
        assert "num_nodes = 2." in result.stdout and "iter 1," in result.stdout


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

    def test_a_node_is_sent_a_signal(self, training):
        """All stop after the same step, which is saved."""
        training[1].process.send_signal(signal.SIGTERM)
        for node in training:
            node.assert_failed("stopped by SIGTERM after ", "output/snapshot_", status=143)
        assert training[0].stderr.split("after")[1].split()[0] == training[1].stderr.split("after")[1].split()[0]
        assert len(list(training[0].output.glob("snapshot_*/snapshot_done"))) == 1
        assert not list(training[1].output.glob("snapshot_*"))

    def test_a_node_is_sent_a_signal_before_it_trains(self, start, network, tmp_path):
        write_data_on_node(tmp_path, 0)
        flags = {**PRETRAINING, "data_dir": "./data", "batch_size_per_device": 4}
        (node,) = start("run_pretraining.py", 2, only=[1], **flags)
        node.wait_for_handler(signal.SIGTERM)
        node.process.send_signal(signal.SIGTERM)
        node.assert_failed("ended by SIGTERM", status=143)

    def test_two_signals_to_a_node(self, training, network):
        training[1].send_until_ended(signal.SIGINT)
        training[1].assert_failed("by SIGINT", status=130, within=20)
        training[0].assert_failed("by SIGINT", status=130, within=20)

    def test_a_link_is_lost(self, training, network):
        network.take_down(1)
        try:
            training[0].assert_failed(f"node {network.addresses[1]} has not been heard of for 15 seconds")
            training[1].assert_failed(f"node {network.addresses[0]} has not been heard of for 15 seconds")
        finally:
            network.bring_up(1)

    def test_a_node_never_comes(self, start, network, tmp_path):
        write_data_on_node(tmp_path, 0)
        flags = {**PRETRAINING, "data_dir": "./data", "batch_size_per_device": 4, "rendezvous_timeout": 2}
        for node in start("run_pretraining.py", 3, only=[0, 1], **flags):
            node.assert_failed(f"after 2 seconds, still missing: {network.addresses[2]};")

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
