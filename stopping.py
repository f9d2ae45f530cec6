"""How a run ends early: what SIGINT (Ctrl-C), SIGTERM and SIGHUP (a terminal that is closed) do to a process.

Where there is nothing to save, `raised` ends it with one line. In training, `noted` only takes note, so that the step
can be finished and saved. A second signal kills either at once; snapshots are whole at any moment.
"""

import contextlib
import ctypes
import os
import signal
import sys

from util import Signalled

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedTogether(Signalled):
    """All ranks have ended after the same step of training."""


@contextlib.contextmanager
def raised():
    """Raises util.Signalled at the first signal within the block."""

    def raise_signalled(number, frame):
        _leave_to_the_system()
        raise Signalled(number)

    with _handled(raise_signalled):
        yield


@contextlib.contextmanager
def noted(second_kills=True):
    """A list that gets the number of the first signal within the block; a second one kills, if `second_kills`."""
    numbers = []
    terminals = [number for number in {1, 2, sys.stdout.fileno(), sys.stderr.fileno()} if os.isatty(number)]

    def note(number, frame):
        if number == signal.SIGHUP:
            # The terminal is gone: nothing can be written to it any more.
            _write_to_nowhere(terminals)
        if second_kills:
            if numbers:
                os._exit(128 + number)
            _leave_to_the_system()
        numbers.append(int(number))

    with _handled(note, once=second_kills):
        yield numbers


@contextlib.contextmanager
def _handled(handler, once=True):
    """Within the block `handler` gets the signals, but for those that this process ignores, as nohup has it do.

    With `once` the system itself then goes back to its default, which is to kill: Python's handlers run only when the
    engine returns to Python, and that may take long.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
        if once:
            _reset_when_handled(number)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _reset_when_handled(number):
    pythons_own = ctypes.c_void_p(_libc().signal(number, None))
    _libc().sysv_signal(number, pythons_own)


def _leave_to_the_system():
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            # Not by Python, which may have to call a handler yet for one that has come at the same time.
            _libc().signal(number, None)


def _libc():
    libc = ctypes.CDLL(None)
    libc.signal.restype = libc.sysv_signal.restype = ctypes.c_void_p
    return libc


def _write_to_nowhere(descriptors):
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in descriptors:
        os.dup2(nowhere, number)
    os.close(nowhere)
