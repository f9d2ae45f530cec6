"""Memory that the ranks of a machine share, for the native library to sum gradients in."""

import os
import secrets

from engine import native
from ranks.ranks import from_every_rank, rank

_TOKEN_SIZE = 32


def join(ranks):
    """Joins the `ranks` ranks of this node. All ranks of all nodes call it; requires OneFlow to be loaded.

    Returns None, or on all ranks the reason of one that cannot join.
    """
    first = rank() - rank() % ranks
    file = offer = problem = None
    try:
        if rank() == first:
            file, offer = _make(ranks)
    except OSError as error:
        problem = error.strerror
    offer = from_every_rank(offer)[first]
    try:
        if rank() != first and offer is not None:
            file = _open(*offer)
        if file is not None:
            native.join_ranks(file, ranks, rank() - first)
    except OSError as error:
        problem = error.strerror
    problems = from_every_rank(problem)
    # The first rank has to keep it open until here: the others open it through this process.
    if file is not None:
        os.close(file)
    return next(filter(None, problems), None)


def _make(ranks):
    """Returns new memory as (open file, (its path, token)) for `_open` on the other ranks."""
    file = native.make_rank_memory(ranks)
    token = secrets.token_hex(_TOKEN_SIZE // 2)
    os.pwrite(file, token.encode(), 0)
    # The file has no name. Only this user's processes may open it in this way.
    return file, (f"/proc/{os.getpid()}/fd/{file}", token)


def _open(path, token):
    """Returns the opened file of the first rank. Raises OSError if it cannot be opened, or is another file."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if os.pread(file, _TOKEN_SIZE, 0) == token.encode():
        return file
    os.close(file)
    raise FileNotFoundError(2, "the ranks see different processes")
