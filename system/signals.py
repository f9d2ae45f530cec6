"""Handling of SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal), which end a run early.

Every script starts with `install_handlers`: the first signal raises an exception, and the script cleans up and ends
with one line. Ranks use `as_exception` until they train; in training `recorded` only records signals, so that the step
can be finished and saved. A second signal kills at once, which snapshots survive. A process with a launcher is killed
only by the launcher, since both may receive the signal and the launcher forwards it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The main thread handles a signal within this time unless a library keeps it.
_MOMENT_SECONDS = 0.3


class Signalled(BaseException):
    """A signal that ends this run, received here or, if `text` is given, elsewhere. The exit status is 128 + number."""

    def __init__(self, number, text=None):
        super().__init__(text or f"ended by {signal.Signals(number).name}")
        self.number = number
        self.is_own = text is None


class StoppedTogether(Signalled):
    """All ranks have stopped after the same training step and have saved it."""


def install_handlers():
    """Makes the first signal raise Signalled in this process; further signals are ignored."""
    terminals = _terminals()

    def raise_signalled(number, frame):
        ignore()
        if number == signal.SIGHUP:
            _write_to_nowhere(terminals)
        raise Signalled(number)

    for number in _heeded_signals():
        signal.signal(number, raise_signalled)


@contextlib.contextmanager
def as_exception(second_kills=True):
    """Raises Signalled at the first signal within the block; with `second_kills`, the second kills the process."""

    def raise_signalled(number, frame):
        if second_kills:
            _leave_to_the_system()
        else:
            ignore()
        raise Signalled(number)

    with _handled(raise_signalled, once=second_kills):
        yield


@contextlib.contextmanager
def as_default():
    """Restores the default within the block: a signal kills this process at once. Its parent reports that."""
    with _handled(signal.SIG_DFL, once=False):
        yield


@contextlib.contextmanager
def recorded(second_kills=True):
    """Yields a list of the signals received within the block; with `second_kills`, the second kills the process."""
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
    """Ignores the signals from now on, in a process that is about to exit with its status.

    Python restores default actions when it exits, and a signal would then kill it. The end of a block above keeps this.
    """
    for number in SIGNALS:
        set_action(number, signal.SIG_IGN)


def set_action(number, action):
    """Sets the kernel's action for the signal `number` to SIG_IGN or SIG_DFL, like signal.signal.

    libc comes first: a signal that arrives within signal.signal, after it has checked for pending signals, would be
    lost with a traceback.
    """
    _libc().signal(number, ctypes.c_void_p(int(action)))
    signal.signal(number, action)


@contextlib.contextmanager
def _handled(handler, once=True):
    """Installs `handler` within the block, except for signals that are ignored, as under nohup.

    With `once` the kernel restores the default action, which kills, after the first signal: Python runs a handler only
    when the engine returns to Python, which may take long.
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
            # A signal that ignore() has disabled stays ignored: the process is ending.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler_before)


def _reset_when_handled(number):
    pythons_own = ctypes.c_void_p(_libc().signal(number, None))
    _libc().sysv_signal(number, pythons_own)


def _leave_to_the_system():
    for number in _heeded_signals():
        # By libc: Python may still have to call the handler for a signal that arrived at the same time.
        _libc().signal(number, None)


@contextlib.contextmanager
def end_from_thread(end):
    """Calls end(number), which must end the process, for a signal that the main thread does not handle in time.

    For a library that keeps the main thread busy but releases Python's lock.
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
    # Python writes the number of each signal there at once.
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
    """Returns the file descriptors of stdout and stderr that are terminals."""
    numbers = {1, 2}
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            numbers.add(stream.fileno())
    return [number for number in numbers if os.isatty(number)]


def _write_to_nowhere(descriptors):
    """Redirects closed terminals to the null device, since writing to them would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in descriptors:
        os.dup2(nowhere, number)
    os.close(nowhere)
