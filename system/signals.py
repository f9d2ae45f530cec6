"""How a run ends early: what SIGINT (Ctrl-C), SIGTERM and SIGHUP (a terminal that is closed) do to a process.

Every script begins with `raise_first`: a signal ends it with one line when it has cleaned up, undisturbed by others.
A rank that has nothing to save yet goes by `raised`; in training, `noted` only takes note, so that the step can be
finished and saved. In both a second signal kills at once; snapshots are whole at any moment. In a process that has a
launcher only the launcher kills: a signal may come to both, and the launcher passes it on.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# In which the main thread handles a signal, if it can.
_MOMENT_SECONDS = 0.3


class Signalled(BaseException):
    """A signal ends this run: one that this process was sent or, with a `text` that tells, another. Status 128 + it."""

    def __init__(self, number, text=None):
        super().__init__(text or f"ended by {signal.Signals(number).name}")
        self.number = number
        self.is_own = text is None


class StoppedTogether(Signalled):
    """All ranks have ended after the same step of training, which is saved."""


def raise_first():
    """Has the first signal raise Signalled in this process, and further ones do nothing."""
    terminals = _terminals()

    def raise_signalled(number, frame):
        ignore()
        if number == signal.SIGHUP:
            _write_to_nowhere(terminals)
        raise Signalled(number)

    for number in _heeded_signals():
        signal.signal(number, raise_signalled)


@contextlib.contextmanager
def raised(second_kills=True):
    """Raises Signalled at the first signal within the block; with `second_kills` a second one kills."""

    def raise_signalled(number, frame):
        if second_kills:
            _leave_to_the_system()
        else:
            ignore()
        raise Signalled(number)

    with _handled(raise_signalled, once=second_kills):
        yield


@contextlib.contextmanager
def killed():
    """Within the block a signal kills this process at once, whatever the engine is at: a parent is to tell."""
    with _handled(signal.SIG_DFL, once=False):
        yield


@contextlib.contextmanager
def noted(second_kills=True):
    """A list that gets the numbers of the signals within the block; with `second_kills` the second one kills."""
    numbers = []
    terminals = _terminals()

    def note(number, frame):
        if number == signal.SIGHUP:
            _write_to_nowhere(terminals)
        if second_kills:
            if numbers:
                os._exit(128 + number)
            _leave_to_the_system()
        numbers.append(int(number))

    with _handled(note, once=second_kills):
        yield numbers


def ignore():
    """Ignores them from now on, in a process that has nothing left to do but to end and to tell its status.

    Python, when it ends, would let one kill it. Within the blocks above: their ends leave it so.
    """
    for number in SIGNALS:
        set_action(number, signal.SIG_IGN)


def set_action(number, action):
    """Has the system itself do `action`, SIG_IGN or SIG_DFL, at the signal `number`.

    As signal.signal does, but first without it: a signal that comes when Python has looked for one, and has not yet
    changed what the system does, would be lost, and told with a traceback.
    """
    _libc().signal(number, ctypes.c_void_p(int(action)))
    signal.signal(number, action)


@contextlib.contextmanager
def _handled(handler, once=True):
    """Within the block `handler` gets the signals, but for those that this process ignores, as nohup has it do.

    With `once` the system itself then goes back to its default, which is to kill: Python's handlers run only when the
    engine returns to Python, and that may take long.
    """
    before = {number: signal.getsignal(number) for number in _heeded_signals()}
    for number in before:
        if handler == signal.SIG_DFL:
            set_action(number, handler)
        else:
            signal.signal(number, handler)
        if once:
            _reset_when_handled(number)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            # What the handler has made this process ignore stays ignored: it is ending.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler_before)


def _reset_when_handled(number):
    pythons_own = ctypes.c_void_p(_libc().signal(number, None))
    _libc().sysv_signal(number, pythons_own)


def _leave_to_the_system():
    for number in _heeded_signals():
        # Not by Python, which may have to call a handler yet for one that has come at the same time.
        _libc().signal(number, None)


@contextlib.contextmanager
def watched(end):
    """Has a signal call end(its number), which is to end the process, where the main thread does not get to handle it.

    For work of a library that keeps the main thread, but lets other threads of Python's run.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    over = threading.Event()

    def watch():
        while (number := os.read(read_end, 1)) and number[0] not in SIGNALS:
            pass
        if number and not over.wait(_MOMENT_SECONDS):
            end(number[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    # Python writes the number there as soon as the signal comes.
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(write_end)
        thread.join()
        os.close(read_end)


def _heeded_signals():
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _libc():
    libc = ctypes.CDLL(None)
    libc.signal.restype = libc.sysv_signal.restype = ctypes.c_void_p
    return libc


def _terminals():
    """The file descriptors of this process's output that are a terminal."""
    numbers = {1, 2}
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            numbers.add(stream.fileno())
    return [number for number in numbers if os.isatty(number)]


def _write_to_nowhere(descriptors):
    """Sends to nowhere what is written to terminals that have been closed, which would be an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in descriptors:
        os.dup2(nowhere, number)
    os.close(nowhere)
