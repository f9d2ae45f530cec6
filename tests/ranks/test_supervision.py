"""The parent of a run on one device: what it makes of the end of its child, and of signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launched import PRETRAINING, Launched
from running import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import argparse, os, signal, sys, time
from ranks import launcher
from system.errors import RunError, UserError
from util import run_script

def wait():
    # Not by one long sleep: a signal that comes just before that begins is heeded when it ends.
    while True:
        time.sleep(0.02)

def run(args):
    print("child", os.getpid(), flush=True)
    {body}

args = argparse.Namespace(node_num=1, gpu_num_per_node=1, node_list=None, log_dir=".")
run_script(lambda: launcher.run_on_all_ranks(run, args))
"""


def start(body, folder, environment=None, program=PROGRAM, **settings):
    """A program that runs `body` supervised."""
    return subprocess.Popen(
        [sys.executable, "-c", program.format(body=body)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def child_of(process):
    return int(process.stdout.readline().split()[1])


def state_of(process_id):
    """The state of a process as a letter, Z if there is none."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def wait_for_state(process_id, states):
    deadline = time.monotonic() + 60
    while state_of(process_id) not in states:
        assert time.monotonic() < deadline, state_of(process_id)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("return", 0, ""),
        ("return 7", 7, ""),
        ("sys.exit(3)", 3, ""),
        ("raise UserError('not this')", 2, "-c: error: not this\n"),
        ("raise RunError('no more')", 1, "-c: error: no more\n"),
        ("os.abort()", 1, "-c: error: the engine was killed by SIGABRT\n"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "-c: error: the engine was killed by SIGSEGV\n"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 6)", 1, "-c: error: the engine was killed by signal 40\n"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            1,
            "-c: error: the engine was killed by SIGKILL, perhaps for lack of memory\n",
        ),
        (
            "from ranks import supervision; supervision.start_engine_log('.'); os.write(2, b'why');"
            " print('I', file=sys.stderr); os.abort()",
            1,
            "I\n-c: error: the engine was killed by SIGABRT; its last words are in ./oneflow.log\n",
        ),
    ],
)
def test_the_end_of_the_child(tmp_path, body, status, line):
    process = start(body, tmp_path)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (status, line)
    assert int(stdout.split()[1]) != process.pid
    if "why" in body:
        assert (tmp_path / "oneflow.log").read_text() == "why"


def test_what_the_child_prints_last_arrives_though_it_ends_at_once(tmp_path):
    body = "import atexit; atexit.register(print, 'Python cleans up')\n"
    body += "    print('the last words', end=''); print('and a warning', end='', file=sys.stderr)"
    stdout, stderr = start(body, tmp_path).communicate(timeout=30)
    assert (stdout.splitlines()[1:], stderr) == (["the last words"], "and a warning")


def test_what_cannot_be_printed_at_the_end_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body="print('the last words')").replace(", flush=True", "")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert (result.returncode, result.stderr) == (1, "-c: error: standard output: No space left on device\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_goes_to_the_child(tmp_path, number):
    process = start("wait()", tmp_path)
    child_of(process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (128 + number, f"-c: error: ended by {number.name}\n")


def test_a_signal_that_does_not_interrupt_the_main_thread(tmp_path):
    """As one that comes just before it begins to wait: of 1,000 such runs two hung."""
    program = """
import threading
taker = threading.Thread(target=lambda: (time.sleep(1), signal.pthread_kill(taker.ident, signal.SIGTERM)), daemon=True)
taker.start()
run_script("""
    process = start("wait()", tmp_path, program=PROGRAM.replace("\nrun_script(", program))
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "-c: error: ended by SIGTERM\n")


def test_the_second_signal_ends_both(tmp_path):
    body = "signal.signal(signal.SIGTERM, lambda *_: print('first', flush=True)); print('ready', flush=True); wait()"
    process = start(body, tmp_path)
    child = child_of(process)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "first\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "-c: error: ended by SIGINT\n")
    assert state_of(child) == "Z"


@pytest.mark.parametrize("pause", [0, 0.001, 0.01])
@pytest.mark.parametrize("parent_first", [True, False])
def test_a_signal_to_parent_and_child(tmp_path, parent_first, pause):
    """As Slurm sends it; the parent passes it on, too."""
    process = start("wait()", tmp_path)
    processes = [process.pid, child_of(process)]
    os.kill(processes[0 if parent_first else 1], signal.SIGTERM)
    time.sleep(pause)
    with contextlib.suppress(ProcessLookupError):
        os.kill(processes[1 if parent_first else 0], signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "-c: error: ended by SIGTERM\n")


def test_what_nohup_has_it_ignore(tmp_path):
    body = "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, flush=True); time.sleep(1)"
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    child_of(process)
    assert process.stdout.readline() == "True\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_ctrl_z_stops_both_and_fg_goes_on(tmp_path):
    # In a process group of its own, as a shell's job: one whose parents are all of other sessions does not stop.
    process = start("sys.stdin.read()", tmp_path, preexec_fn=os.setpgrp, stdin=subprocess.PIPE)
    child = child_of(process)
    process.send_signal(signal.SIGTSTP)
    wait_for_state(process.pid, "T")
    wait_for_state(child, "T")
    process.send_signal(signal.SIGCONT)
    wait_for_state(child, "SR")
    process.stdin.close()
    assert process.wait(60) == 0


def test_the_child_ends_with_its_parent(tmp_path):
    process = start("wait()", tmp_path)
    child = child_of(process)
    process.kill()
    wait_for_state(child, "Z")


def test_it_can_be_done_without(tmp_path):
    process = start("return 5", tmp_path, {"BERT_SUPERVISE": "0"})
    assert child_of(process) == process.pid
    assert process.wait(60) == 5


def test_an_abort_of_the_engine(tiny_data, tmp_path):
    """OneFlow's own reader, which the native kernels replace, aborts at a part that is damaged after the checks."""
    part = tiny_data / "part-0"
    flags = {**PRETRAINING, "data_dir": tiny_data, "batch_size_per_device": 4, "iter_num": 1000000}
    environment = {"BERT_KERNELS": "none"}
    with Launched("run_pretraining.py", tmp_path / "output", environment=environment, **flags) as training:
        training.wait_for("iter 0,")
        with open(part, "r+b") as file:
            file.write(b"\xff" * part.stat().st_size)
        log = training.output / "oneflow.log"
        training.assert_failed(f"the engine was killed by SIGABRT; its last words are in {log}", within=60)
        assert log.read_text()


# Both the ranks and who watches over them are sent a signal when nothing is left to do, before Python's own end.
ENDING = """
import argparse, atexit, os, signal
from ranks import launcher
from system.errors import RunError
from util import run_script

def run(args):
    {body}

atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGHUP)])
flags = {{"node_num": 1, "gpu_num_per_node": RANKS, "node_list": None, "node_rank": None, "master_port": None}}
flags |= {{"rendezvous_timeout": 60, "device": "cpu", "log_dir": "."}}
run_script(lambda: launcher.run_on_all_ranks(run, argparse.Namespace(**flags)))
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("body", "status"), [("return", 0), ("raise RunError('no more')", 1)])
def test_a_signal_while_python_ends_changes_nothing(tmp_path, ranks, body, status):
    process = start(body, tmp_path, program=ENDING.replace("RANKS", str(ranks)))
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == status, stderr
    assert [line.endswith("no more") for line in stderr.splitlines()] == [True] * status
