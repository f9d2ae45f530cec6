"""Runs a script on all ranks: one process a device, on one node or many.

`run_on_all_ranks` is called by every script of the suite. With one device in all it simply runs. With more, the
process becomes its node's launcher: it starts a process for each device of the node, with the same command line and
the variables by which OneFlow's ranks find each other (MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK), and
watches over them. Where these variables are set already (python -m oneflow.distributed.launch, Slurm), the process is
a rank that somebody else has started.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nodes
from util import STATUS_BAD_INPUT, RunError, UserError, outcome_of

DEFAULT_MASTER_PORT = 29500

_RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")
# Tells a rank that this suite has started it: the number of the pipe to its launcher, for its error.
_ERROR_PIPE_VARIABLE = "BERT_RANK_ERROR_PIPE"
# A rank that was asked to end has so long for it.
_GRACE_SECONDS = 10
# How long a launcher waits for another one's word before it takes an abort for a cause.
_NEWS_SECONDS = 3
_PR_SET_PDEATHSIG = 1


def run_on_all_ranks(function, args):
    """Calls function(args) in this process, or in a process for each device of this node; returns an exit status.

    Raises UserError before anything starts if the flags that name nodes and devices do not fit this machine.
    """
    world_size = args.node_num * args.gpu_num_per_node
    if _is_started_as_rank():
        return _run_rank(function, args, world_size)
    if args.node_num > 1:
        addresses, node_rank = nodes.find_node_rank(args.node_list, args.node_num, args.node_rank)
        port = args.master_port or DEFAULT_MASTER_PORT
        if node_rank == 0:
            nodes.check_port_is_free(addresses[0], port + 1)
        return _launch(args, nodes.Line(addresses, node_rank, port), addresses[0], port + 1, node_rank)
    if world_size == 1:
        return function(args)
    port = args.master_port or _free_port()
    nodes.check_port_is_free("127.0.0.1", port)
    return _launch(args, nodes.Lone(), "127.0.0.1", port, 0)


def rank():
    """The rank of this process, 0 if it is the only one."""
    # OneFlow sets RANK=-1 in a process that nobody has given a rank.
    return max(0, int(os.environ.get("RANK", 0)))


def _is_started_as_rank():
    return all(os.environ.get(name) for name in _RANK_VARIABLES) and os.environ["RANK"] != "-1"


def local_ranks():
    """How many ranks run on this node, as far as can be known."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_rank(function, args, world_size):
    """Calls function(args) as the rank that the environment says this process is; returns an exit status.

    Rank 0 prints; what others say goes to a file. What made a rank fail goes to its launcher, or else to stderr.
    """
    if int(os.environ["WORLD_SIZE"]) != world_size:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment, but the flags make {world_size} rank(s): "
            f"--node_num={args.node_num} x --gpu_num_per_node={args.gpu_num_per_node}"
        )
    pipe = os.environ.get(_ERROR_PIPE_VARIABLE)
    if pipe is not None:
        # Without its launcher, nobody would end a rank that waits for a lost one.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        error_file, prefix = os.fdopen(int(pipe), "w"), ""
    else:
        error_file, prefix = os.fdopen(os.dup(2), "w"), f"rank {rank()}: "
    _redirect_output(args.log_dir)
    status, error = outcome_of(lambda: function(args))
    if error is not None:
        print(f"{prefix}{error}", file=error_file, flush=True)
    return status


def _redirect_output(log_dir):
    """Sends what this rank says to log_dir/rank_<n>.log. What Python says on rank 0 stays on the terminal."""
    try:
        os.makedirs(log_dir, exist_ok=True)
        log = open(Path(log_dir) / f"rank_{rank()}.log", "ab")
    except OSError:
        return  # the checks of the run will tell
    with log:
        if rank() > 0:
            os.dup2(log.fileno(), 1)
        else:
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(log.fileno(), 2)


def _launch(args, line, master_address, master_port, node_rank):
    """Starts the ranks of this node when all nodes are there, and waits for them; returns an exit status."""
    with _signals_noted() as signals:
        try:
            line.wait_for_all(args.rendezvous_timeout)
        except RunError as error:
            if signals:
                return 128 + signals[0]
            raise error
        ranks = _Ranks(args, master_address, master_port, node_rank)
        try:
            return _watch(ranks, line, signals)
        finally:
            ranks.end()


@contextlib.contextmanager
def _signals_noted():
    """A list to which SIGINT and SIGTERM are added as they come, instead of their usual effect."""
    received = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(ranks, line, signals):
    """Waits for the ranks of all nodes; returns 0, or after ending them all the status of what went wrong."""
    told = False
    while True:
        if signals:
            name = signal.Signals(signals[0]).name
            line.say_stop(f"node {socket.gethostname()} was ended by {name}")
            ranks.end(signals[0])
            return 128 + signals[0]
        failure = ranks.failure()
        if failure:
            reason, status = failure
            if status == -signal.SIGABRT:
                # OneFlow aborts a rank whose peer is gone. If that was on another node, its launcher tells why.
                reason = _news_within(line, _NEWS_SECONDS) or reason
            line.say_stop(f"{reason} (on {socket.gethostname()})")
            ranks.end()
            raise (UserError if status == STATUS_BAD_INPUT else RunError)(reason)
        reason = line.news()
        if reason:
            ranks.end()
            raise RunError(reason)
        if ranks.finished():
            if not told:
                line.say_done()
                told = True
            if line.all_done():
                return 0
        time.sleep(0.1)


def _news_within(line, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        reason = line.news()
        if reason:
            return reason
        time.sleep(0.1)
    return None


class _Ranks:
    """The processes of this node's ranks."""

    def __init__(self, args, master_address, master_port, node_rank):
        self._first = node_rank * args.gpu_num_per_node
        self._processes = []
        self._pipes = []
        for local_rank in range(args.gpu_num_per_node):
            read_end, write_end = os.pipe()
            environment = {
                **os.environ,
                "MASTER_ADDR": master_address,
                "MASTER_PORT": str(master_port),
                "WORLD_SIZE": str(args.node_num * args.gpu_num_per_node),
                "RANK": str(self._first + local_rank),
                "LOCAL_RANK": str(local_rank),
                "LOCAL_WORLD_SIZE": str(args.gpu_num_per_node),
                _ERROR_PIPE_VARIABLE: str(write_end),
            }
            # A session of its own: Ctrl-C comes to the launcher only, which passes it on.
            process = subprocess.Popen(
                [sys.executable, *sys.argv],
                env=environment,
                pass_fds=[write_end],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
            os.close(write_end)
            self._processes.append(process)
            self._pipes.append(read_end)

    def finished(self):
        """Whether all have ended well."""
        return all(process.poll() == 0 for process in self._processes)

    def failure(self):
        """(which rank failed and why, its exit status), or None as long as none has failed.

        Of several it is the one that has not been aborted, which is what OneFlow does to the peers of a lost rank.
        """
        failed = [(rank, process.poll()) for rank, process in enumerate(self._processes) if process.poll()]
        if not failed:
            return None
        local_rank, status = min(failed, key=lambda rank_and_status: rank_and_status[1] == -signal.SIGABRT)
        return f"rank {self._first + local_rank}: {self._reason(local_rank, status)}", status

    def _reason(self, local_rank, status):
        os.set_blocking(self._pipes[local_rank], False)
        with contextlib.suppress(BlockingIOError):
            text = os.read(self._pipes[local_rank], 65536).decode(errors="replace").strip()
            if text:
                return text
        if status < 0:
            name = signal.Signals(-status).name
            return f"was killed by {name}" + (", for lack of memory perhaps" if -status == signal.SIGKILL else "")
        return f"ended with status {status}"

    def end(self, number=signal.SIGTERM):
        """Ends all that still run: by signal `number`, then by SIGKILL."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
