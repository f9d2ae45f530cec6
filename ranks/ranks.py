"""The rank of this process, and small exchanges of values between ranks."""

import contextlib
import json
import os
import socket
import time

from engine import oneflow_loader
from ranks import supervision
from system import signals
from system.errors import RunError

# Set in a rank that launcher.py has started: the file descriptor of the pipe for its error message.
ERROR_PIPE_VARIABLE = "BERT_RANK_ERROR_PIPE"


def has_launcher():
    """Returns whether a launcher or supervisor of this suite has started this process, and reports its end."""
    return ERROR_PIPE_VARIABLE in os.environ or supervision.is_supervised()


def default_signals():
    """Returns a context in which a signal kills this rank at once, for work that leaves nothing to save.

    The launcher reports it; without a launcher the handlers stay as they are.
    """
    return signals.as_default() if has_launcher() else contextlib.nullcontext()


def rank():
    """Returns the rank of this process, 0 if it is the only one."""
    # OneFlow sets RANK=-1 in a process without a rank.
    return max(0, int(os.environ.get("RANK", 0)))


def wait_for_first_rank(timeout):
    """Returns when the first rank accepts connections; raises RunError after `timeout` seconds.

    OneFlow itself would retry only every 10 seconds.
    """
    if rank() > 0:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        connect(host, port, timeout, f"rank 0 does not answer at {host}, port {port}").close()


def connect(host, port, timeout, problem):
    """Returns a TCP connection; after `timeout` seconds without one raises RunError that tells the `problem`."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), timeout=2)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(f"after {timeout} seconds, {problem} ({error.strerror or 'no reply'})") from None
        time.sleep(0.05)


def from_first_rank(read):
    """Returns, on all ranks, what read() returns on the first (JSON types only). Requires OneFlow to be loaded."""
    flow = oneflow_loader.load()
    if flow.env.get_world_size() == 1:
        return read()
    data = json.dumps(read()).encode() if rank() == 0 else None
    return json.loads(flow._oneflow_internal.cpu_broadcast(data, 0))


def wait_for_all_ranks():
    """Waits until all ranks have called it. Requires OneFlow to be loaded."""
    flow = oneflow_loader.load()
    if flow.env.get_world_size() > 1:
        flow.comm.barrier()


def from_every_rank(value):
    """Returns, on all ranks, the list of every rank's `value` (JSON types only). Requires OneFlow to be loaded."""
    flow = oneflow_loader.load()
    world_size = flow.env.get_world_size()
    if world_size == 1:
        return [value]
    broadcast = flow._oneflow_internal.cpu_broadcast
    data = json.dumps(value).encode()
    return [json.loads(broadcast(data if rank() == source else None, source)) for source in range(world_size)]
