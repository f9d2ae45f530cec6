"""Which rank this process is, and what the ranks tell each other. It brings no launcher with it."""

import contextlib
import json
import os
import socket
import time

from engine import oneflow_loader
from ranks import supervision
from system import signals
from system.errors import RunError

# Tells a rank that this suite has started it: the number of the pipe to its launcher, for its error.
ERROR_PIPE_VARIABLE = "BERT_RANK_ERROR_PIPE"


def has_launcher():
    """Whether this process is a rank that a process of this suite has started, and ends if need be."""
    return ERROR_PIPE_VARIABLE in os.environ or supervision.is_supervised()


def expendable():
    """A context for work of which nothing is to be kept: a signal ends this rank in the midst of it, and is told."""
    # Without a launcher nobody would tell.
    return signals.killed() if has_launcher() else contextlib.nullcontext()


def rank():
    """The rank of this process, 0 if it is the only one."""
    # OneFlow sets RANK=-1 in a process that nobody has given a rank.
    return max(0, int(os.environ.get("RANK", 0)))


def wait_for_first_rank(timeout):
    """Returns when OneFlow can reach the first rank; raises RunError after `timeout` seconds.

    Left to itself OneFlow tries at once, and if it has come too early again after 10 seconds.
    """
    if rank() == 0:
        return
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(address, timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"after {timeout} seconds, rank 0 does not answer at {address[0]}, port {address[1]} "
                    f"({error.strerror or 'no reply'})"
                ) from None
        time.sleep(0.05)


def from_first_rank(read):
    """What read() gives on the first rank (anything JSON can carry), on all ranks. Needs OneFlow loaded."""
    flow = oneflow_loader.load()
    if flow.env.get_world_size() == 1:
        return read()
    data = json.dumps(read()).encode() if rank() == 0 else None
    return json.loads(flow._oneflow_internal.cpu_broadcast(data, 0))


def wait_for_all_ranks():
    """Returns when all ranks have got here. Needs OneFlow loaded."""
    flow = oneflow_loader.load()
    if flow.env.get_world_size() > 1:
        flow.comm.barrier()


def from_every_rank(value):
    """The `value` (anything JSON can carry) of each rank, as a list, on all ranks. Needs OneFlow loaded."""
    flow = oneflow_loader.load()
    world_size = flow.env.get_world_size()
    if world_size == 1:
        return [value]
    broadcast = flow._oneflow_internal.cpu_broadcast
    data = json.dumps(value).encode()
    return [json.loads(broadcast(data if rank() == source else None, source)) for source in range(world_size)]
