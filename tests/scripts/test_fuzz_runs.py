"""What runs leave behind, what tools show, and what names the nodes of a run, damaged in every way: see fuzzing.py."""

import json
import os
import re
import socket
import subprocess
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
import plot_log
import show_squad
import squad_questions
from engine import native
from fuzzing import Victim, changed_json, changes, fuzz, fuzz_slowly, json_values, replace
from ranks import nodes
from record_readers import Reader, library, write_parts  # noqa: F401
from running import ROOT
from snapshots import run_state, series
from system.errors import RunError, UserError
from system.signals import Signalled
from training import run_folder

pytestmark = pytest.mark.slow

# ---- predictions in a browser


@pytest.fixture(scope="module")
def page_victim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    content = squad_questions.one_paragraph("The old lighthouse.", ("Which?", "old", 4), ("What?", "lighthouse", 8))
    n_best = {"q0": [{"text": "old", "probability": 0.75}, {"text": "The", "probability": 0.25}]}
    for name, value in {"dev": content, "predictions": {"q0": "old", "q1": "The"}, "nbest": n_best}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))

    def arguments(folder):
        flags = {"input_file": "dev.json", "prediction_file": "predictions.json", "nbest_file": "nbest.json"}
        return ["-o", folder / "output/page.html", *(f"--{name}={folder / path}" for name, path in flags.items())]

    return Victim(show_squad.main, "show_squad.py", folder, arguments)


def check_page(path):
    """Whatever texts are in it, they are in the one element for data, which holds no `<`; no other element is added."""
    if not path.exists():
        return
    page = path.read_text(encoding="ascii")
    pattern = re.escape((ROOT / "tools/page.html").read_text())
    pattern = re.sub(r"@[A-Z]+@", lambda part: "([^<]*)" if part[0] == "@DATA@" else "([^\x00]*)", pattern)
    found = re.fullmatch(pattern, page)
    assert found, page
    parts = re.findall(r"@[A-Z]+@", (ROOT / "tools/page.html").read_text())
    values = dict(zip(parts, found.groups(), strict=True))
    assert values["@STYLE@"] == (ROOT / "tools/page.css").read_text()
    scripts = [(ROOT / "tools" / name).read_text() for name in ("elements.js", "page.js", "squad_page.js")]
    assert values["@SCRIPT@"] == "\n".join(scripts)
    # As JavaScript reads it: NaN and Infinity are no JSON.
    json.loads(values["@DATA@"], parse_constant=pytest.fail)


@fuzz
@given(changes=changes())
def test_page(page_victim, changes):
    page_victim.suffers(changes)


HOSTILE_TEXTS = st.sampled_from(
    ["</script><script>alert(1)</script>", "<!--<script>", "@SCRIPT@", "]]>", "\u2028", "&lt;", "'\"><img src=x>", "\\"]
)


@fuzz
@given(data=st.data(), text=HOSTILE_TEXTS, name=st.sampled_from(["dev.json", "predictions.json", "nbest.json"]))
def test_page_of_other_values(page_victim, data, text, name):
    with page_victim.copy() as folder:
        for path in folder.glob("*.json"):
            # The text stands in questions, contexts, answers, predictions and ids alike.
            replace(path, path.read_text().replace("old", json.dumps(text)[1:-1]).replace("q1", json.dumps(text)[1:-1]))
        path = folder / name
        replace(path, json.dumps(data.draw(changed_json(json.loads(path.read_text())))))
        page_victim.check(folder, {path, folder / "dev.json", folder / "predictions.json"})
        check_page(folder / "output/page.html")


# ---- logs and curves

LINE = {"iter": 0, "train_step": 0, "total_loss": 9.5, "mlm_loss": 9.0, "learning_rate": 1e-4, "sentences_per_sec": 3.5}


@pytest.fixture(scope="module")
def log_victim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    for name in ("metrics-1.jsonl", "metrics-2.jsonl"):
        lines = [json.dumps({**LINE, "iter": step, "train_step": step}) + "\n" for step in range(4)]
        (folder / name).write_text("".join(lines))
    (folder / "PretrainJob-1").mkdir()
    run = {"job": "PretrainJob", "model_save_dir": "/x", "metrics": ["metrics-1.jsonl"], "parameters": {}}
    (folder / "PretrainJob-1" / run_folder.RUN_FILE).write_text(json.dumps(run))
    return Victim(plot_log.main, "plot_log.py", folder, lambda folder: [folder, "-o", folder / "output/curves.svg"])


@fuzz_slowly
@given(changes=changes())
def test_logs(log_victim, changes):
    log_victim.suffers(changes)


numbers = st.floats() | st.integers() | st.sampled_from([1e308, -1e308, 5e-324, 2**53, 2**53 - 1, 2**64])


@fuzz_slowly
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(list(LINE)), numbers).flatmap(
            lambda line: st.integers(0, 9).map(lambda step: {**line, "train_step": step})
        )
        | st.dictionaries(st.sampled_from(list(LINE)) | st.text(max_size=5).map("{}_loss".format), numbers)
        | json_values,
        max_size=60,
    ),
    repeat=st.sampled_from([1, 1, 50]),
)
def test_lines_of_logs(log_victim, lines, repeat):
    with log_victim.copy() as folder:
        path = folder / "metrics-2.jsonl"
        replace(path, "".join(json.dumps(line) + "\n" for line in lines) * repeat)
        log_victim.check(folder, {path, folder})


@fuzz
@given(data=st.data(), changes=changes(), damages=st.booleans())
def test_folders_of_runs(log_victim, data, changes, damages):
    """A run that logs there passes over what is no such file."""
    with log_victim.copy() as folder:
        path = folder / "PretrainJob-1" / run_folder.RUN_FILE
        content = json.loads(path.read_text())
        replace(path, json.dumps(data.draw(changed_json(content))))
        args = config.parse_pretraining_args(
            [f"--data_dir={folder}", f"--log_dir={folder}", "--model_save_dir=/x", f"--model_load_dir={folder}"]
        )
        opened = run_folder.open_run_folder(args, "PretrainJob", 3, "metrics-3.jsonl")
        assert opened.parent == folder
        assert json.loads((opened / run_folder.RUN_FILE).read_text())["metrics"][-1] == "metrics-3.jsonl"


# ---- what --resume reads

STEP = "snapshot_5/System-Train-TrainStep-PretrainJob"
STATE = {
    "run_number": 1,
    "iteration": 5,
    "run": {"same": {"--seed": 5}, "similar": {"device": "cpu"}},
    "losses": {"total_loss": [9.5]},
    "positions": [
        {
            "reader": run_state.encode_bytes(b"position"),
            "random": run_state.encode_bytes(json.dumps({"seed": 1, "dropout_calls": {"a": 3}}).encode()),
        }
    ],
}


def read_state():
    """What a run does with --resume, but for the engine's part."""
    args = config.parse_pretraining_args()
    series.next_run_number(args.model_save_dir)
    folder = series.complete_snapshots(args.model_save_dir)[-1]
    state = run_state.read(folder)
    if not run_state.is_complete(state):
        raise UserError(f"{folder}: not complete")
    assert all(sum(losses) / len(losses) is not None for losses in state["losses"].values())
    for position in state["positions"]:
        data = run_state.decode_bytes(position["random"])
        if data is not None:
            try:
                native.restore_random_state(data)
            except UserError as error:
                raise UserError(f"{folder}: {error}") from None
        assert isinstance(run_state.decode_bytes(position["reader"]), bytes | None)


@pytest.fixture(scope="module")
def resume_victim(tmp_path_factory):
    if native.preload() is None:
        pytest.skip("no native kernels (make kernels)")
    folder = tmp_path_factory.mktemp("template")
    (folder / STEP).mkdir(parents=True)
    (folder / STEP / run_state.FILE).write_bytes(run_state.encode(STATE))
    (folder / "snapshot_5" / "snapshot_done").write_text("")
    yield Victim(
        read_state,
        "run_pretraining.py",
        folder,
        lambda folder: ["--data_dir=x", "--resume", f"--model_save_dir={folder}"],
        [f"{STEP}/{run_state.FILE}"],
    )
    native.restore_random_state(b'{"seed": 12345, "dropout_calls": {}}')


@fuzz
@given(changes=changes())
def test_states_of_runs(resume_victim, changes):
    resume_victim.suffers(changes)


@fuzz
@given(data=st.data())
def test_states_of_runs_with_checksums_that_are_right(resume_victim, data):
    with resume_victim.copy() as folder:
        path = folder / STEP / run_state.FILE
        replace(path, run_state.encode(data.draw(changed_json(STATE))))
        resume_victim.check(folder, {path, folder / "snapshot_5" / "x"})


@fuzz
@given(data=st.data())
def test_random_states(resume_victim, data):
    text = run_state.decode_bytes(STATE["positions"][0]["random"])
    changed = json.dumps(data.draw(changed_json(json.loads(text)))).encode()
    with resume_victim.copy() as folder:
        path = folder / STEP / run_state.FILE
        positions = [{**STATE["positions"][0], "random": run_state.encode_bytes(changed)}]
        replace(path, run_state.encode({**STATE, "positions": positions}))
        resume_victim.check(folder, {path})


@fuzz
@given(
    place=st.integers(0, 25),
    number=st.sampled_from([0, 1, 2, 7, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    tail=st.binary(max_size=40),
)
def test_positions_of_readers(library, tmp_path_factory, place, number, tail):  # noqa: F811
    """With the right checksum: the reader goes on from somewhere, or says what is wrong."""
    folder = tmp_path_factory.mktemp("parts", numbered=True)
    paths = write_parts(folder, [5, 4])
    reader = Reader(library, paths, buffer_size=4)
    reader.take(3)
    state = bytearray(reader.save()[:-8])
    at = min(8 * place, len(state) - 8)
    state[at : at + 8] = number.to_bytes(8, "little")
    state += tail
    checksum = 0xCBF29CE484222325
    for byte in state:
        checksum = (checksum ^ byte) * 0x100000001B3 % 2**64
    restored = Reader(library, paths, buffer_size=4, state=bytes(state) + checksum.to_bytes(8, "little"))
    records = restored.take(20)
    text, part, offset = restored.error()
    assert (None in records) == bool(text)
    assert text.isprintable() and (part == -1 or 0 <= part < 2 and offset >= 0)


# ---- nodes

NAMES = st.lists(
    st.sampled_from(
        ["127.0.0.1", "10.0.0.1", "localhost", "", " ", "a" * 70, "::1", "1.2.3.4.5", "-h", "\udcff", "ß", "٣"]
    )
    | st.text(max_size=10).filter(lambda text: "\x00" not in text),
    max_size=4,
).map(",".join)


def find_nodes():
    args = config.parse_pretraining_args()
    addresses, node_rank = nodes.find_node_rank(args.node_list, args.node_num, args.node_rank)
    assert len(set(addresses)) == args.node_num and 0 <= node_rank < args.node_num


@pytest.fixture(scope="module")
def no_name_server():
    """Names are encoded, but nobody is asked for them."""
    resolve = socket.getaddrinfo

    def resolve_numbers(name, port, family=0, type=0):
        return resolve(name, port, family, type, 0, socket.AI_NUMERICHOST)

    with mock.patch.object(socket, "getaddrinfo", resolve_numbers):
        yield


@pytest.fixture(scope="module")
def node_victim(tmp_path_factory, no_name_server):
    def arguments(folder):
        return ["--data_dir=x", "--node_list=127.0.0.1"]

    return Victim(find_nodes, "run_pretraining.py", tmp_path_factory.mktemp("template"), arguments)


@fuzz
@given(names=NAMES, count=st.integers(1, 4) | st.integers(), rank=st.none() | st.integers(-1, 4) | st.integers())
def test_node_lists(node_victim, names, count, rank):
    flags = ["--data_dir=x", f"--node_list={names}", f"--node_num={count}"]
    flags += [] if rank is None else [f"--node_rank={rank}"]
    node_victim.arguments = lambda folder: flags
    with node_victim.copy() as folder:
        node_victim.check(folder, set())


messages = st.dictionaries(
    st.sampled_from(["node", "flags", "start", "alive", "done", "stop", "bad_input", "signal"]),
    st.sampled_from([0, 1, 2, 15, 1.0, 2.0, True, -1, 2**64, "why", {}, {"--seed": 1}, [], None]) | json_values,
    max_size=4,
).map(lambda message: json.dumps(message).encode() + b"\n")


@fuzz
@given(sent=st.lists(messages | st.binary(max_size=50) | st.sampled_from([b"[" * 70000, b"x" * 200000]), max_size=5))
def test_strangers_at_the_port_of_the_first_node(sent):
    """They may end the run, as docs/reliability.md says, but not break the launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = nodes.Connections(["127.0.0.1", "127.0.0.2"], 0, port, {"--seed": 1})
    try:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.setblocking(False)
            for data in sent:
                try:
                    stranger.sendall(data)
                except OSError:
                    break
                line.check(wait=0.01)
        for _ in range(3):
            line.check(wait=0.01)
    except (UserError, RunError):
        pass
    except Signalled as signalled:
        assert type(signalled.number) is int
    finally:
        for key in list(line._selector.get_map().values()):
            key.fileobj.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A folder with a program ssh in bin/ that writes its arguments to ssh.log."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text("#!/bin/bash\nprintf '%s\\0' \"$@\" $'\\n' >>\"$SSH_LOG\"\n")
    (folder / "bin" / "ssh").chmod(0o755)
    return folder


HOSTS = st.lists(
    st.sampled_from([b"a", b"b.example", b"user@c", b"10.0.0.1", b"# none", b"d # one", b"", b" e ", b"\r"])
    | st.sampled_from([b"-oProxyCommand=touch x", b"$(touch x)", b"`touch x`", b"a;touch x", b"a,b", b"u@", b"@", b"'"])
    | st.binary(max_size=8),
    max_size=4,
).map(b"\n".join)


@fuzz_slowly
@given(hosts=HOSTS, name=st.sampled_from(["hosts", "a b", "-i", "$(touch x)"]))
def test_hosts_files(cluster, tmp_path_factory, hosts, name):
    """Each host is called once, by its own name, and the list names as many as --node_num says."""
    folder = tmp_path_factory.mktemp("hosts", numbered=True)
    (folder / name).write_bytes(hosts)
    log = cluster / "ssh.log"
    log.write_bytes(b"")
    environment = {**os.environ, "PATH": f"{cluster}/bin:{os.environ['PATH']}", "SSH_LOG": str(log)}
    command = [ROOT / "scripts" / "launch_cluster.sh", name, "a command"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
    assert os.listdir(folder) == [name]
    assert result.returncode in (0, 2), result.stderr
    if result.returncode == 2:
        (line,) = result.stderr.decode().splitlines()
        assert line.startswith("launch_cluster.sh: error: ") and line.isprintable() and name in line
        assert log.read_bytes() == b""
        return
    assert result.stderr == b""
    calls = [call.split(b"\0") for call in log.read_bytes().split(b"\0\n\0")[:-1]]
    assert calls
    called = []
    for call in calls:
        assert call[-3] == b"--" and re.fullmatch(rb"[!-~]+", call[-2]) and not call[-2].startswith(b"-")
        called.append(call[-2].rpartition(b"@")[2])
        assert b"--node_num=%d " % len(calls) in call[-1]
    for call in calls:
        node_list = re.search(rb"--node_list=(\S+)", call[-1])[1].replace(b"\\", b"").split(b",")
        assert sorted(node_list) == sorted(called)
