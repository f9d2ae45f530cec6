"""Runs a script on all ranks: one process per device, on one node or several.

Every script calls `run_on_all_ranks`. With a single device the script runs in a child of this process
(ranks/supervision.py). With several, this process becomes the launcher of its node: it starts one process per device
with the same command line and OneFlow's rendezvous variables (MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK),
and watches them. If these variables are already set (by python -m oneflow.distributed.launch or Slurm), this process is
a rank itself.
"""

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import config
from engine import device
from ranks import cluster_secret, nodes, supervision
from ranks.ranks import ERROR_PIPE_VARIABLE, has_launcher, rank
from system import signals
from system.errors import STATUS_BAD_INPUT, STATUS_FAILURE, RunError, UserError, one_line, outcome_of
from system.progress import erase_abandoned_bar

DEFAULT_MASTER_PORT = 29500

# The environment of a rank. A missing LOCAL_RANK is derived from the others.
_RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
# gRPC would send the ranks' connections through a proxy.
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
# The exit statuses of a rank that has finished, or has stopped at a signal together with all others.
_GOOD_STATUSES = (0, *(128 + number for number in signals.SIGNALS))
# OneFlow aborts a rank whose peer is lost. A launcher waits this long for the cause before it reports the abort.
_CAUSE_SECONDS = 3
# The exit status if a SIGINT reaches a thread of another library while OneFlow is being imported.
_STATUS_OF_ENGINE = 255


def run_on_all_ranks(function, args):
    """Calls function(args) in one process per device of this node; returns an exit status.

    Raises UserError, before any process starts, if the flags for nodes and devices do not fit this machine.
    """
    world_size = args.node_num * args.gpu_num_per_node
    if _is_started_as_rank():
        return _run_rank(function, args, world_size)
    if args.node_num == 1 and args.node_list:
        print("Notice: --node_list has no effect, as --node_num is 1.", flush=True)
    if world_size == 1:
        return supervision.run_supervised(functools.partial(_run_alone, function), args)
    device_type, _ = device.choose_device(args.device, args.gpu_num_per_node)
    if args.node_num == 1:
        with nodes.held_port("127.0.0.1", args.master_port or 0) as port:
            return _launch(args, nodes.Connections(["127.0.0.1"], 0, port, {}), "127.0.0.1", port, 0, "")
    addresses, node_rank = nodes.find_node_rank(args.node_list, args.node_num, args.node_rank)
    port = args.master_port or DEFAULT_MASTER_PORT
    secret = cluster_secret.read()
    with nodes.held_port(addresses[0], port + 1) if node_rank == 0 else contextlib.nullcontext():
        connections = nodes.Connections(addresses, node_rank, port, _common_flags(args, device_type), secret)
        return _launch(args, connections, addresses[0], port + 1, node_rank, f" on node {addresses[node_rank]}")


def _run_alone(function, args):
    with signals.as_exception(second_kills=not has_launcher()):
        try:
            return function(args)
        finally:
            if has_launcher():
                signals.ignore()


def _common_flags(args, device_type):
    """Returns name -> value for what must be equal on all nodes: flags, script and device type."""
    script = os.path.basename(sys.argv[0])
    return {"the script": script, "the device": device_type, **config.flags_of_all_nodes(args)}


# ---- a rank


def _is_started_as_rank():
    """Returns whether the environment gives this process a rank. Raises UserError if variables are missing."""
    if os.environ.get("RANK", "-1") == "-1":
        return False
    missing = [name for name in _RANK_VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"RANK is set in the environment, but not {', '.join(missing)}: a launcher must set all of "
            f"{', '.join(_RANK_VARIABLES)}; unset RANK to run without one"
        )
    return True


def _check_rank_variables(args, world_size):
    """Raises UserError if the rank variables in the environment do not fit the flags."""
    numbers = {}
    for name in ("MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if not os.environ[name].isdecimal():
            raise UserError(f"{name}={os.environ[name]} in the environment is not a number")
        numbers[name] = int(os.environ[name])
    if not 0 < numbers["MASTER_PORT"] < 65536:
        raise UserError(f"MASTER_PORT={numbers['MASTER_PORT']} in the environment is not a port number")
    if numbers["WORLD_SIZE"] != world_size:
        raise UserError(
            f"WORLD_SIZE={numbers['WORLD_SIZE']} in the environment, but the flags give {world_size} ranks: "
            f"--node_num={args.node_num} x --gpu_num_per_node={args.gpu_num_per_node}"
        )
    if numbers["RANK"] >= world_size:
        raise UserError(f"RANK={numbers['RANK']} in the environment is not below WORLD_SIZE={world_size}")
    if numbers["LOCAL_RANK"] != numbers["RANK"] % args.gpu_num_per_node:
        raise UserError(
            f"LOCAL_RANK={numbers['LOCAL_RANK']} and RANK={numbers['RANK']} in the environment do not fit "
            f"--gpu_num_per_node={args.gpu_num_per_node}: the ranks of a node must be consecutive"
        )


def _run_rank(function, args, world_size):
    """Calls function(args) in this process as the rank given by the environment; returns 0, or ends the process.

    Rank 0 prints to the terminal, other ranks to a log file. An error goes to the launcher if there is one, else to
    stderr.
    """
    if not os.environ.get("LOCAL_RANK") and os.environ["RANK"].isdecimal():
        os.environ["LOCAL_RANK"] = str(int(os.environ["RANK"]) % args.gpu_num_per_node)
    _check_rank_variables(args, world_size)
    for name in _PROXY_VARIABLES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    pipe = os.environ.get(ERROR_PIPE_VARIABLE)
    if pipe is not None:
        _die_with_launcher(int(pipe))
        error_file, prefix = os.fdopen(int(pipe), "w", encoding="utf-8", errors="backslashreplace"), ""
    else:
        error_file, prefix = os.fdopen(os.dup(2), "w", errors="backslashreplace"), f"rank {rank()}: "
    log = supervision.RunLog(_log_file(args.log_dir, rank()))
    _redirect_output(args.log_dir)
    raised = []

    def call():
        try:
            return supervision.call_with_memory(function, args, log)
        except BaseException as error:
            # Keeps the graph of the failed function alive: its destructor waits for the other ranks.
            raised.append(error)
            raise

    with signals.as_exception(second_kills=not has_launcher()):
        try:
            status, error = outcome_of(call)
        except signals.StoppedTogether as stopped:
            status, error = 128 + stopped.number, one_line(stopped)
            # All ranks have finished together: the graph can go as after a whole run.
            raised.clear()
        except Exception:
            traceback.print_exc()
            status, error = STATUS_FAILURE, f"has failed; its last words are in {_log_file(args.log_dir, rank())}"
        if has_launcher():
            signals.ignore()
    if status == 0:
        return 0
    print(f"{prefix}{error or 'nobody reads what it prints any more'}", file=error_file, flush=True)
    if not raised:
        # OneFlow's sys.exit takes a status other than 0 for a failure: its shutdown would then end this process while
        # others still wait for its answer, and they would abort.
        raise SystemExit(status)
    # sys.exit would run OneFlow's shutdown, which waits for the other ranks, which wait for this one.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if isinstance(raised[0], signals.Signalled):
        # The status tells the launcher that only this rank has ended, unlike a StoppedTogether.
        signal.signal(raised[0].number, signal.SIG_DFL)
        os.kill(os.getpid(), raised[0].number)
    os._exit(status)


def _die_with_launcher(pipe):
    """Makes the kernel kill this process when its launcher ends: a rank that waits for a lost peer waits forever."""
    supervision.die_with_parent()
    poll = select.poll()
    poll.register(pipe, 0)
    if poll.poll(0):  # the launcher has ended already
        os._exit(STATUS_FAILURE)


def _log_file(log_dir, rank):
    return Path(log_dir) / f"rank_{rank}.log"


def _redirect_output(log_dir):
    """Redirects the output of this rank to log_dir/rank_<n>.log, except what Python prints on rank 0."""
    try:
        os.makedirs(log_dir, exist_ok=True)
        log = open(_log_file(log_dir, rank()), "ab")
    except OSError:
        return  # the run's own checks report it
    with log:
        if rank() > 0:
            os.dup2(log.fileno(), 1)
        else:
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        os.dup2(log.fileno(), 2)


# ---- a launcher


def _launch(args, connections, master_address, master_port, node_rank, where):
    """Starts the ranks of this node once all nodes are connected, and waits for them; returns an exit status.

    `where` names the node in messages.
    """
    ranks = None
    try:
        with signals.as_exception():
            connections.wait_for_all(args.rendezvous_timeout)
        with signals.recorded(second_kills=False) as received:
            ranks = _Ranks(args, master_address, master_port, node_rank, where)
            try:
                stopped = _watch(ranks, connections, received)
            finally:
                signals.ignore()
    except (UserError, RunError) as error:
        connections.send_stop(str(error), bad_input=isinstance(error, UserError))
        raise
    except signals.Signalled as signalled:
        connections.send_stop(f"{signalled}{where}" if signalled.is_own else str(signalled), number=signalled.number)
        raise
    finally:
        if ranks is not None and ranks.kill():
            erase_abandoned_bar()
    if stopped is not None:
        raise stopped
    return 0


def _watch(ranks, connections, received):
    """Waits for the ranks of all nodes; raises UserError, RunError or Signalled if one fails.

    Forwards the first of the signals `received` to the ranks, which save a snapshot and stop together; then returns a
    StoppedTogether, else None. A second signal ends the run at once.
    """
    has_sent_done = False
    aborted = None
    passed_on = False
    while not (has_sent_done and connections.all_done()):
        connections.check()
        if len(received) > 1:
            raise signals.Signalled(received[1])
        if received and not passed_on:
            ranks.send_signal(received[0])
            passed_on = True
        failure = ranks.failure()
        if failure is not None:
            reason, status = failure
            if received and status in (-received[0], -signal.SIGABRT, _STATUS_OF_ENGINE):
                # The rank had nothing to save yet.
                raise signals.Signalled(received[0])
            aborted = aborted or time.monotonic()
            # OneFlow aborts a rank whose peer is lost; the cause may still come from that peer or its node.
            if status != -signal.SIGABRT or time.monotonic() - aborted > _CAUSE_SECONDS:
                raise (UserError if status == STATUS_BAD_INPUT else RunError)(reason)
        elif not has_sent_done and ranks.finished():
            connections.send_done()
            has_sent_done = True
        time.sleep(0.1)
    return ranks.stopped()


class _Ranks:
    """The rank processes of this node."""

    def __init__(self, args, master_address, master_port, node_rank, where):
        self._first = node_rank * args.gpu_num_per_node
        self._args = args
        self._where = where
        self._processes = []
        self._pipes = []
        self._errors = [""] * args.gpu_num_per_node
        self._failed = {}  # local rank -> exit status, in order of detection
        self._logs = [
            supervision.RunLog(_log_file(args.log_dir, self._first + local_rank))
            for local_rank in range(args.gpu_num_per_node)
        ]
        for local_rank in range(args.gpu_num_per_node):
            read_end, write_end = os.pipe()
            os.set_blocking(read_end, False)
            environment = {
                **os.environ,
                "MASTER_ADDR": master_address,
                "MASTER_PORT": str(master_port),
                "WORLD_SIZE": str(args.node_num * args.gpu_num_per_node),
                "RANK": str(self._first + local_rank),
                "LOCAL_RANK": str(local_rank),
                ERROR_PIPE_VARIABLE: str(write_end),
            }
            # In a session of its own: Ctrl-C reaches only the launcher.
            process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=environment,
                pass_fds=[write_end],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
            os.close(write_end)
            self._processes.append(process)
            self._pipes.append(read_end)

    def send_signal(self, number):
        """Sends `number` to every rank that is still running."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def finished(self):
        """Returns whether all ranks have finished, or have stopped together at a signal."""
        return all(process.poll() in _GOOD_STATUSES for process in self._processes)

    def stopped(self):
        """Returns a StoppedTogether with the message of the ranks if they have stopped at a signal, else None."""
        status = self._processes[0].returncode
        return signals.StoppedTogether(status - 128, self._reason(0, status)) if status else None

    def failure(self):
        """Returns (which rank failed and why, its exit status), or None if no rank has failed.

        Of several, the first that was not aborted: OneFlow aborts the peers of a lost rank.
        """
        for local_rank, process in enumerate(self._processes):
            if process.poll() not in (None, *_GOOD_STATUSES) and local_rank not in self._failed:
                self._failed[local_rank] = process.returncode
        if not self._failed:
            return None
        local_rank, status = min(self._failed.items(), key=lambda item: item[1] == -signal.SIGABRT)
        return f"rank {self._first + local_rank}{self._where}: {self._reason(local_rank, status)}", status

    def _reason(self, local_rank, status):
        with contextlib.suppress(BlockingIOError):
            self._errors[local_rank] += os.read(self._pipes[local_rank], 65536).decode(errors="replace")
        if self._errors[local_rank]:
            return self._errors[local_rank].strip()
        log = self._logs[local_rank]
        if status < 0:
            return supervision.describe_death(-status, log, self._args)
        return f"ended with status {status}; its last words are in {log.path}"

    def kill(self):
        """Kills every rank that is still running, as it may wait for a lost peer. Returns whether it killed any."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        return any([process.wait() < 0 for process in self._processes])
