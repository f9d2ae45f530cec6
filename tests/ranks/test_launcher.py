"""Who starts which ranks: the flags of nodes and devices, the environment of other launchers, and the line of nodes."""

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from engine import device
from launched import PRETRAINING
from made_parts import write_pretraining_part
from ranks import cluster_secret, launcher, nodes, ranks
from running import ROOT, assert_fails_with_one_line, run
from system import signals
from system.errors import RunError, UserError
from system.signals import Signalled


def arguments(**flags):
    """The flags that ranks/launcher.py reads."""
    defaults = {
        "gpu_num_per_node": 1,
        "node_num": 1,
        "node_list": None,
        "node_rank": None,
        "master_port": None,
        "rendezvous_timeout": 1,
        "device": "cpu",
        "log_dir": os.devnull,
    }
    return argparse.Namespace(**{**defaults, **flags})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition):
    """Returns when the condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestNodeList:
    def test_a_node_finds_itself(self):
        assert nodes.find_node_rank("203.0.113.1, 127.0.0.1,203.0.113.3", 3, None) == (
            ["203.0.113.1", "127.0.0.1", "203.0.113.3"],
            1,
        )

    def test_node_rank_decides(self):
        assert nodes.find_node_rank("127.0.0.1,127.0.0.2", 2, 1) == (["127.0.0.1", "127.0.0.2"], 1)

    def test_names_beyond_node_num_do_not_count(self):
        assert nodes.find_node_rank("127.0.0.1,203.0.113.1,203.0.113.1", 2, None) == (["127.0.0.1", "203.0.113.1"], 0)

    def test_host_names(self, monkeypatch):
        known = {"first": "203.0.113.7", "second": "127.0.0.1"}
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda name, *rest: [(None, None, None, None, (known.get(name, name), 0))]
        )
        assert nodes.find_node_rank("first,127.0.0.1", 2, None) == (["203.0.113.7", "127.0.0.1"], 1)
        # As Debian's /etc/hosts has it for the machine's own name.
        with pytest.raises(UserError, match="second is 127.0.0.1 on this machine.*/etc/hosts"):
            nodes.find_node_rank("first,second", 2, None)

    @pytest.mark.parametrize(
        ("node_list", "node_rank", "message"),
        [
            (None, None, "--node_list has 0 names"),
            ("127.0.0.1", None, "has 1 names.*--node_num=2"),
            ("127.0.0.1,127.0.0.1", None, "127.0.0.1 twice"),
            ("203.0.113.1,203.0.113.2", None, "none of these is an address of this machine"),
            ("127.0.0.1,127.0.0.2", None, "both this machine.*--node_rank"),
            ("127.0.0.1,203.0.113.2", 2, "--node_rank=2 is not below --node_num=2"),
            ("127.0.0.1,no host..name", None, "nor a known host name"),
            ("127.0.0.1,::1", None, "neither an IPv4 address"),
        ],
    )
    def test_bad(self, node_list, node_rank, message):
        with pytest.raises(UserError, match=message):
            nodes.find_node_rank(node_list, 2, node_rank)


class TestBeforeAnythingStarts:
    """One line and status 2 from the script itself."""

    @pytest.fixture
    def data(self, tmp_path):
        (tmp_path / "data").mkdir()
        write_pretraining_part(tmp_path / "data" / "part-0", 4)
        return tmp_path / "data"

    def check(self, data, tmp_path, *fragments, **flags):
        settings = {**PRETRAINING, "data_dir": data, "log_dir": tmp_path / "log", "model_save_dir": tmp_path, **flags}
        result = run("run_pretraining.py", **settings)
        assert_fails_with_one_line(result, *fragments)
        assert result.stdout == "" and not (tmp_path / "log").exists()

    def test_no_node_list(self, data, tmp_path):
        self.check(data, tmp_path, "--node_list has 0 names, but --node_num=2", node_num=2)

    def test_not_a_port(self, data, tmp_path):
        self.check(data, tmp_path, "--master_port", gpu_num_per_node=2, master_port=80)

    @pytest.mark.parametrize("offset", [0, 1])
    def test_port_in_use_on_the_first_of_several_nodes(self, data, tmp_path, offset):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            flags = {"node_num": 2, "node_list": "127.0.0.1,203.0.113.1", "master_port": port - offset}
            self.check(data, tmp_path, f"port {port} of 127.0.0.1 is in use", "--master_port", **flags)

    def test_port_in_use_on_one_node(self, data, tmp_path):
        with socket.socket() as other:
            other.bind(("0.0.0.0", 0))
            other.listen()
            port = other.getsockname()[1]
            self.check(data, tmp_path, f"port {port}", "is in use", gpu_num_per_node=2, master_port=port)

    def test_node_rank_0_on_another_machine(self, data, tmp_path):
        flags = {"node_num": 2, "node_list": "203.0.113.1,127.0.0.1", "node_rank": 0}
        self.check(data, tmp_path, "--node_rank=0 is for 203.0.113.1", **flags)

    def test_more_ranks_than_gpus(self, monkeypatch):
        monkeypatch.setattr(device, "usable_gpus", lambda: (["A100"], None))
        with pytest.raises(UserError, match="--gpu_num_per_node=4, but of this machine's GPUs OneFlow can use 1;"):
            launcher.run_on_all_ranks(None, arguments(gpu_num_per_node=4, device="auto"))

    def test_a_node_list_without_node_num_is_not_passed_over_in_silence(self, capsys, monkeypatch):
        monkeypatch.setenv("BERT_SUPERVISE", "0")  # no fork of the tests
        assert launcher.run_on_all_ranks(lambda args: 0, arguments(node_list="127.0.0.1,203.0.113.1")) == 0
        assert capsys.readouterr().out == "Notice: --node_list has no effect, as --node_num is 1.\n"


class TestEnvironmentOfAnotherLauncher:
    COMPLETE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"WORLD_SIZE": "3"}, "WORLD_SIZE=3 .* give 4 ranks: --node_num=2 x --gpu_num_per_node=2"),
            ({"RANK": "4"}, "RANK=4 .* not below WORLD_SIZE=4"),
            ({"RANK": "\N{SUPERSCRIPT TWO}"}, "RANK=\N{SUPERSCRIPT TWO} .* not a number"),
            ({"RANK": "one"}, "RANK=one .* not a number"),
            ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 and RANK=1 .*--gpu_num_per_node=2"),
            ({"MASTER_PORT": "http"}, "MASTER_PORT=http .* not a number"),
            ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 .* not a port number"),
            ({"MASTER_ADDR": None, "WORLD_SIZE": None}, "not MASTER_ADDR, WORLD_SIZE"),
        ],
    )
    def test_does_not_fit(self, monkeypatch, variables, message):
        for name, value in {**self.COMPLETE, **variables}.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=message):
            launcher.run_on_all_ranks(None, arguments(node_num=2, gpu_num_per_node=2))

    def test_oneflow_sets_rank_minus_1_where_there_is_none(self, monkeypatch):
        for name, value in {**self.COMPLETE, "RANK": "-1", "BERT_SUPERVISE": "0"}.items():
            monkeypatch.setenv(name, value)
        assert launcher.run_on_all_ranks(lambda args: 7, arguments()) == 7
        assert ranks.rank() == 0


class Launcher(threading.Thread):
    """One end of a line, in a thread: waits for all, then until the others are done; keeps the error it met.

    Unless it `finishes`, it goes on until it is given a `reason` to fail.
    """

    def __init__(self, addresses, node_rank, port, flags, timeout=60, finishes=True, secret=None):
        super().__init__()
        self.line = nodes.Connections(addresses, node_rank, port, flags, secret)
        self.error = None
        self.started = threading.Event()
        self.reason = None
        self._timeout = timeout
        self._finishes = finishes
        self.start()

    def run(self):
        try:
            self.line.wait_for_all(self._timeout)
            self.started.set()
            if self._finishes:
                self.line.send_done()
            while not self.line.all_done():
                if self.reason:
                    raise RunError(self.reason)
                self.line.check(wait=0.05)
        except (UserError, RunError) as error:
            self.error = error
            self.line.send_stop(str(error), isinstance(error, UserError))


class TestLine:
    """The launchers' talk, without ranks."""

    ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]

    @pytest.fixture
    def port(self):
        return free_port()

    def finish(self, launchers):
        for thread in launchers:
            thread.join(60)
            assert not thread.is_alive()
        return [thread.error for thread in launchers]

    def test_all_come_and_finish(self, port):
        launchers = [Launcher(self.ADDRESSES, rank, port, {"--x": 1}) for rank in (1, 0, 2)]
        assert self.finish(launchers) == [None, None, None]
        assert all(launcher.started.is_set() for launcher in launchers)

    def test_all_name_who_has_not_come(self, port):
        launchers = [Launcher(self.ADDRESSES, rank, port, {}, timeout=1) for rank in (0, 1)]
        for error in self.finish(launchers):
            assert isinstance(error, RunError) and str(error).startswith("after 1 seconds, still missing: 127.0.0.3;")

    def test_the_master_does_not_come(self, port):
        (error,) = self.finish([Launcher(self.ADDRESSES, 1, port, {}, timeout=1)])
        assert f"the master node 127.0.0.1 does not answer at port {port} (Connection refused)" in str(error)

    def test_different_flags(self, port):
        flags = [{"--a": 1, "--b": 2}, {"--a": 1, "--b": 3}]
        for error in self.finish([Launcher(self.ADDRESSES[:2], rank, port, flags[rank]) for rank in (0, 1)]):
            assert isinstance(error, UserError)
            assert str(error).startswith("node 127.0.0.2 has --b = 3, but node 127.0.0.1 has 2; ")

    def test_a_node_twice(self, port):
        launchers = [Launcher(self.ADDRESSES, rank, port, {}) for rank in (0, 1)]
        wait_until(lambda: 1 in launchers[0].line._peers)
        (error,) = self.finish([Launcher(self.ADDRESSES, 1, port, {})])
        assert str(error) == "node 127.0.0.2 has been started twice"
        assert self.finish([*launchers, Launcher(self.ADDRESSES, 2, port, {})]) == [None, None, None]

    @pytest.mark.parametrize(
        "words",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"[" * 60000 + b"\n",
            b"x" * 200000,
            b'{"node": 9, "flags": {}}\n',
            b"1\n",
            b"",
            b'{"node": true, "flags": {}}\n',
            b'{"node": 1}\n',
            b'{"stop": "me"}\n',
        ],
    )
    def test_strangers_do_not_disturb(self, port, words):
        master = Launcher(self.ADDRESSES[:2], 0, port, {})
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            with contextlib.suppress(OSError):
                stranger.sendall(words)
            wait_until(lambda: not master.line._strangers or master.line._strangers[0].is_dismissed or not words)
            assert self.finish([master, Launcher(self.ADDRESSES[:2], 1, port, {})]) == [None, None]

    @pytest.mark.parametrize(
        ("number", "kind"), [(15, Signalled), (15.0, RunError), (True, RunError), ("15", RunError), (9, RunError)]
    )
    def test_a_stop_by_what_is_no_signal_is_a_failure(self, port, number, kind):
        """Also what only equals one: its text would be asked for by a number that is none."""
        line = nodes.Connections(self.ADDRESSES[:2], 0, port, {})
        with socket.create_connection(("127.0.0.1", port)) as node:
            for message in ({"node": 1, "flags": {}}, {"stop": "why", "signal": number}):
                node.sendall(json.dumps(message).encode() + b"\n")
            with pytest.raises((RunError, Signalled), match="^why$") as raised:
                line.wait_for_all(10)
        assert raised.type is kind

    def test_a_launcher_that_dies(self, port):
        master = Launcher(self.ADDRESSES[:2], 0, port, {})
        with socket.create_connection(("127.0.0.1", port)) as node:
            node.sendall(json.dumps({"node": 1, "flags": {}}).encode() + b"\n")
            assert master.started.wait(60)
        (error,) = self.finish([master])
        assert str(error) == "node 127.0.0.2 has closed the connection"

    def test_a_node_that_falls_silent(self, port, monkeypatch):
        monkeypatch.setattr(nodes, "SILENCE_SECONDS", 1)
        master = Launcher(self.ADDRESSES[:2], 0, port, {})
        with socket.create_connection(("127.0.0.1", port)) as node:
            node.sendall(json.dumps({"node": 1, "flags": {}}).encode() + b"\n")
            (error,) = self.finish([master])
        assert str(error) == "node 127.0.0.2 has not been heard of for 1 seconds"

    def test_a_stop_reaches_all_with_its_reason(self, port):
        launchers = [Launcher(self.ADDRESSES, rank, port, {}, finishes=False) for rank in range(3)]
        assert all(launcher.started.wait(60) for launcher in launchers)
        launchers[2].reason = "rank 5 on node 127.0.0.3: was killed by SIGKILL"
        assert {str(error) for error in self.finish(launchers)} == {launchers[2].reason}

    def test_who_says_nothing_is_sent_away(self, port, monkeypatch):
        """After seconds, or as soon as there are too many; nodes are not kept out."""
        monkeypatch.setattr(nodes, "MOST_STRANGERS", 3)
        monkeypatch.setattr(nodes, "STRANGER_SECONDS", 0.5)
        master = Launcher(self.ADDRESSES[:2], 0, port, {})
        with contextlib.ExitStack() as stack:
            begin = time.monotonic()
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
            for connection in silent:
                connection.settimeout(60)
                assert connection.recv(1) == b""
            assert time.monotonic() - begin > 0.4  # of the last three
            assert self.finish([master, Launcher(self.ADDRESSES[:2], 1, port, {})]) == [None, None]

    def test_a_message_is_sent_whole_or_the_connection_ends(self, monkeypatch):
        monkeypatch.setattr(nodes, "_SEND_SECONDS", 60)
        long = {"stop": "x" * 60000}
        ends = socket.socketpair()
        with ends[0], ends[1]:
            for end in ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                end.setblocking(False)
            sender, reader = (nodes._Peer(end, 1, "127.0.0.2") for end in ends)
            thread = threading.Thread(target=lambda: [sender.send(long) for _ in range(3)])
            thread.start()
            received = []
            while len(received) < 3:
                if select.select([ends[1]], [], [], 60)[0]:
                    received += reader.receive()
            thread.join()
            assert received == [long] * 3
            monkeypatch.setattr(nodes, "_SEND_SECONDS", 0.1)
            sender.send(long)  # which nobody reads
            with contextlib.suppress(ValueError):
                while reader.receive() is not None:
                    pass


class TestSecret:
    """Launchers with and without a secret."""

    ADDRESSES = TestLine.ADDRESSES[:2]
    finish = TestLine.finish

    def test_the_same_on_all_nodes(self):
        launchers = [Launcher(TestLine.ADDRESSES, rank, self.port, {"--x": 1}, secret=b"a") for rank in (2, 0, 1)]
        assert self.finish(launchers) == [None, None, None]

    @pytest.fixture(autouse=True)
    def choose_port(self):
        self.port = free_port()

    @pytest.mark.parametrize(
        ("of_master", "of_node", "message"),
        [
            (b"a", b"b", "the master 127.0.0.1 has another secret than this node"),
            (b"a", None, "node 127.0.0.2 has no secret, but the master one"),
            (None, b"a", "node 127.0.0.2 has a secret, but the master none"),
        ],
    )
    def test_different(self, of_master, of_node, message):
        """The node ends. The master waits for the right one, as it may have been anybody."""
        master = Launcher(self.ADDRESSES, 0, self.port, {}, secret=of_master)
        (error,) = self.finish([Launcher(self.ADDRESSES, 1, self.port, {}, secret=of_node)])
        assert isinstance(error, UserError) and str(error).startswith(f"{message}; give all nodes the same one in BERT")
        assert self.finish([master, Launcher(self.ADDRESSES, 1, self.port, {}, secret=of_master)]) == [None, None]

    def test_the_master_says_who_was_refused(self, capfd):
        master = Launcher(self.ADDRESSES, 0, self.port, {}, secret=b"a", timeout=2)
        node = Launcher(self.ADDRESSES, 1, self.port, {})
        errors = [str(error) for error in self.finish([master, node])]
        assert f"still missing: 127.0.0.2 ({errors[1]}); start" in errors[0]
        assert capfd.readouterr().out == f"Notice: {errors[1]}.\n"

    @pytest.mark.parametrize("proof", ["", "0" * 64, 7, None, "\N{DIGIT ONE}\udc80"])
    def test_a_wrong_proof(self, proof):
        """Neither start nor stop of who sends it counts, nor that of the master that is repeated to it."""
        master = Launcher(self.ADDRESSES, 0, self.port, {}, secret=b"a")
        with socket.create_connection(("127.0.0.1", self.port)) as stranger, stranger.makefile("rw") as file:
            for message in ({"node": 1, "challenge": "x"}, {"proof": proof, "flags": {}}, {"stop": "me"}):
                file.write(json.dumps(message) + "\n")
                file.flush()
            answers = [json.loads(line) for line in file]
        assert [sorted(answer) for answer in answers] == [["challenge", "proof"], ["bad_input", "stop"]]
        assert self.finish([master, Launcher(self.ADDRESSES, 1, self.port, {}, secret=b"a")]) == [None, None]

    @pytest.mark.parametrize("answer", [{"start": True}, {"challenge": "x", "proof": "0" * 64}, {"alive": True}])
    def test_a_false_master(self, answer):
        """It can repeat what it is sent, but not prove anything."""
        with socket.create_server(("127.0.0.1", self.port)) as server:
            node = Launcher(self.ADDRESSES, 1, self.port, {"--flag": "private"}, secret=b"a")
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as file:
                assert sorted(json.loads(file.readline())) == ["challenge", "node"]
                file.write(json.dumps(answer) + "\n")
                file.flush()
                (error,) = self.finish([node])
                node.line._peers[0].connection.close()
                assert "private" not in file.read()
        assert str(error).startswith("the master 127.0.0.1 has another secret than this node")

    def test_reading(self, tmp_path, monkeypatch):
        file = tmp_path / "secret"
        file.write_text("a secret\n")
        file.chmod(0o600)
        assert cluster_secret.read() is None
        monkeypatch.setenv("BERT_CLUSTER_SECRET_FILE", str(file))
        assert cluster_secret.read() == b"a secret"
        file.chmod(0o640)
        with pytest.raises(UserError, match="secret: others than its owner have access to the file; chmod 600 it"):
            cluster_secret.read()
        monkeypatch.setenv("BERT_CLUSTER_SECRET", "a secret")
        with pytest.raises(UserError, match="are both in the environment"):
            cluster_secret.read()
        monkeypatch.delenv("BERT_CLUSTER_SECRET_FILE")
        assert cluster_secret.read() == b"a secret"
        monkeypatch.setenv("BERT_CLUSTER_SECRET", " ")
        with pytest.raises(UserError, match="BERT_CLUSTER_SECRET: the secret is empty"):
            cluster_secret.read()
        monkeypatch.delenv("BERT_CLUSTER_SECRET")
        monkeypatch.setenv("BERT_CLUSTER_SECRET_FILE", str(tmp_path))
        with pytest.raises(UserError, match="BERT_CLUSTER_SECRET_FILE=.* is a folder"):
            cluster_secret.read()


class TestHeldPort:
    def test_only_who_shares_it_gets_it(self):
        with nodes.held_port("127.0.0.1", 0) as port:
            with (
                pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"),
                nodes.held_port("127.0.0.1", port),
            ):
                pass
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("0.0.0.0", port))
            with socket.socket() as of_rank_0:
                of_rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                of_rank_0.bind(("0.0.0.0", port))
                of_rank_0.listen()
                socket.create_connection(("127.0.0.1", port), timeout=60).close()
        with nodes.held_port("127.0.0.1", port) as again:
            assert again == port


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_the_first_ends_the_block(self, number):
        before = signal.getsignal(number)
        with pytest.raises(Signalled) as raised, signals.as_exception():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert raised.value.number == number and signal.getsignal(number) == before

    @pytest.mark.parametrize("context", [signals.as_exception, signals.recorded])
    def test_nohup(self, context):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with context():
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.1)
        finally:
            signal.signal(signal.SIGHUP, before)


class TestHostsFile:
    """What scripts/launch_cluster.sh makes of it, with a program in place of ssh that tells whom it is to call."""

    @staticmethod
    def launch(folder, hosts):
        (folder / "hosts").write_bytes(hosts)
        (folder / "ssh").write_text('#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done\necho "$2 ${3##*--node_num}"\n')
        (folder / "ssh").chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        command = [ROOT / "scripts/launch_cluster.sh", "hosts", "a command"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)

    @pytest.mark.parametrize(
        "host",
        [b"a,b", b"-oProxyCommand=touch x", b"-l", b"u@", b"@a", b"u@-a", b"a;touch", b"$(touch)", b"`touch`", b"a*"]
        + [b"\xff", b"\xc3\xa4", b"a\x1b[2J", b"'", b"u@b@c", b"fe80::1%eth0"],
    )
    def test_what_is_no_host(self, tmp_path, host):
        """Nobody is called."""
        result = self.launch(tmp_path, b"good\n" + host + b"\n")
        assert_fails_with_one_line(result, "launch_cluster.sh: error: hosts: ", "is no host; give an address")
        assert result.stderr.strip().isprintable() and result.stdout == ""

    def test_hosts(self, tmp_path):
        """Comments, blanks, ends of lines from elsewhere, NUL: each host is called once, by its own name."""
        result = self.launch(tmp_path, b"# all\n10.0.0.1 # first\r\n\n\troot@b.example\0\n  c_d-1\n#-x")
        calls = [
            f"{host} =3 --node_list=10.0.0.1\\,b.example\\,c_d-1" for host in ("10.0.0.1", "root@b.example", "c_d-1")
        ]
        assert (result.returncode, result.stderr, sorted(map(str.strip, result.stdout.splitlines()))) == (
            0,
            "",
            sorted(calls),
        )

    def test_a_second_column(self, tmp_path):
        """As MPI has it: slots=8 is no host, and nobody is called."""
        result = self.launch(tmp_path, b"\xef\xbb\xbfa\r\n\r\nb slots=8\n")
        message = "hosts, line 3: slots=8 after the host; give one address or host name a line"
        assert_fails_with_one_line(result, message)
        assert result.stdout == ""

    @pytest.mark.parametrize("hosts", [b"", b"\n# none\n"])
    def test_nobody(self, tmp_path, hosts):
        assert_fails_with_one_line(self.launch(tmp_path, hosts), "launch_cluster.sh: error: hosts: names no host")


def test_help_names_the_default_port():
    result = run("run_pretraining.py", "--help")
    assert f"(default: {launcher.DEFAULT_MASTER_PORT})" in " ".join(result.stdout.split())


def run_as_rank(folder, lines, **environment):
    """Runs `lines` of Python as the only rank of another launcher; `args` are what run_on_all_ranks() needs."""
    program = folder / "program.py"
    program.write_text(
        "import argparse, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import util\n"
        "from ranks import launcher\n"
        "from system import signals\n"
        f"args = argparse.Namespace(node_num=1, gpu_num_per_node=1, log_dir='.', device='cpu')\n{lines}\n"
    )
    environment = {**os.environ, **environment}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "1", "RANK": "0"}
    return subprocess.run([sys.executable, program], cwd=folder, env=environment, capture_output=True, text=True)


def test_proxies_are_not_for_ranks(tmp_path):
    """gRPC, by which ranks meet, would look for them there."""
    lines = "launcher.run_on_all_ranks(lambda args: print(sorted(n for n in os.environ if 'proxy' in n.lower())), args)"
    result = run_as_rank(tmp_path, lines, http_proxy="http://203.0.113.1:1", HTTPS_PROXY="http://203.0.113.1:1")
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_ranks_that_stop_together_end_as_after_a_whole_run(tmp_path):
    """OneFlow replaces sys.exit. A status other than 0 there makes ranks end without waiting for each other."""
    result = run_as_rank(
        tmp_path,
        "def stop(args):\n"
        "    raise signals.StoppedTogether(15, 'stopped')\n"
        "sys.exit = lambda status: os._exit(99)\n"
        "util.run_script(lambda: launcher.run_on_all_ranks(stop, args))",
    )
    assert (result.returncode, result.stdout, result.stderr) == (143, "", "rank 0: stopped\n")
