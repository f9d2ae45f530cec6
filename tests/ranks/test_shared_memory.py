"""The memory that ranks of a machine share: where it cannot be had, they say why and go on without."""

import errno
import os
from types import SimpleNamespace

import pytest

from engine import native
from ranks import shared_memory
from training import run_setup


@pytest.fixture
def of_two_ranks(monkeypatch):
    """Returns a function that calls shared_memory.join as one of two ranks; the other one says what is given."""

    def join(rank, said_by_other):
        answers = iter(said_by_other)
        monkeypatch.setattr(shared_memory, "rank", lambda: rank)
        monkeypatch.setattr(
            shared_memory,
            "from_every_rank",
            lambda value: [value, next(answers)] if rank == 0 else [next(answers), value],
        )
        return shared_memory.join(2)

    return join


def test_no_such_memory(of_two_ranks, monkeypatch):
    def fail(ranks):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(native, "make_rank_memory", fail)
    assert of_two_ranks(0, [None, None]) == "Cannot allocate memory"
    assert of_two_ranks(1, [None, "Cannot allocate memory"]) == "Cannot allocate memory"


def test_the_first_rank_is_out_of_sight(of_two_ranks, tmp_path):
    """In containers of their own, for example: what has the first rank's number there is another process."""
    assert of_two_ranks(1, [(str(tmp_path / "fd"), "token"), None]) == "No such file or directory"
    (tmp_path / "fd").write_text("another file")
    assert of_two_ranks(1, [(str(tmp_path / "fd"), "token"), None]) == "the ranks see different processes"


def test_a_notice_tells_that_there_is_none(monkeypatch, capsys):
    args = SimpleNamespace(node_num=1, gpu_num_per_node=2)
    monkeypatch.setattr(shared_memory, "join", lambda ranks: "of another machine")
    monkeypatch.setattr(native, "is_loaded", lambda: True)
    run_setup.share_memory(args)
    assert capsys.readouterr().out == (
        "Notice: the ranks share no memory (of another machine), so their gradients take slow connections.\n"
    )
