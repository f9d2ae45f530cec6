"""A parent process for a run on one device: it tells in one line that the engine has died, where only a dump would be.

The engine ends its process where it finds something wrong (SIGABRT, with a stack dump), a fault in it does (SIGSEGV),
or the system, for lack of memory (SIGKILL). What the engine says on stderr goes to a file in --log_dir.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys

from engine import device
from system import signals
from system.errors import STATUS_FAILURE, RunError
from system.progress import erase_abandoned_bar
from system.signals import SIGNALS, Signalled

# `0` in the environment: no parent, and no file for what the engine says. For a debugger that does not follow a fork.
_VARIABLE = "BERT_SUPERVISE"
_PR_SET_PDEATHSIG = 1

_is_child = False


def run_supervised(function, args):
    """Calls function(args) in a child of this process, and there returns what it returns, or raises what it raises.

    This process waits: it returns the child's exit status, or raises RunError if the child was killed, but Signalled if
    signals have done it. The first that ends a run is passed on to the child, the second ends both, and Ctrl-Z stops
    both. Under a debugger, and where OneFlow is loaded already, which does not survive a fork, it simply calls the
    function.
    """
    global _is_child
    if os.environ.get(_VARIABLE) == "0" or sys.gettrace() is not None or "oneflow" in sys.modules:
        return function(args)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    log = RunLog(engine_log(args.log_dir))
    # Until both know what to do with them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _is_child = True
        # A session of its own: Ctrl-C comes to the parent only.
        os.setsid()
        die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return call_with_memory(function, args, log)
    received = _pass_on_signals(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = _wait_for(child)
    signals.ignore()
    if os.WIFEXITED(status):
        # The child has said what there is to say.
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    erase_abandoned_bar()
    if received and (number in SIGNALS or len(received) > 1):
        raise Signalled(received[-1])
    raise RunError(f"the engine {describe_death(number, log, args)}")


class RunLog:
    """A log file, and what one run adds to it from now on."""

    def __init__(self, path):
        self.path = path
        self._begin = os.path.getsize(path) if os.path.exists(path) else 0

    def added(self):
        """What the run has added, as text."""
        with contextlib.suppress(OSError), open(self.path, "rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")
        return ""


def call_with_memory(function, args, log):
    """function(args); raises RunError, where memory does not suffice, that says so."""
    try:
        return function(args)
    except RuntimeError as error:
        lack = device.lack_of_memory(str(error), log.added(), args)
        if lack is None:
            raise
        raise RunError(lack) from None


def _wait_for(child):
    """The status of the child, when it has ended.

    Not by a plain os.waitpid: a signal that comes just before that begins to wait would find its handler called only
    when it ends. Python writes to the pipe for every signal, in whichever thread it comes.
    """
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # What Python has no handler for, it does not write of.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        select.select([read_end], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(read_end, 4096)


def is_supervised():
    """Whether this process is such a child."""
    return _is_child


def start_engine_log(log_dir):
    """Sends what the engine says on stderr from now on, by file descriptor, to the file for it in `log_dir`.

    sys.stderr stays where it is. Does nothing where this process is not a supervised one.
    """
    if not _is_child:
        return
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = os.open(engine_log(log_dir), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(log, 2)
    os.close(log)


def engine_log(log_dir):
    """The path of the file for what the engine says, on one device."""
    return os.path.join(log_dir, "oneflow.log")


def describe_death(number, log, args):
    """`was killed by SIGABRT; its last words are in <log>`, for a process that the signal `number` has killed.

    `log` is its RunLog.
    """
    lack = device.lack_of_memory(log.added(), log.added(), args) if number == signal.SIGABRT else None
    if lack:
        return f"was killed by SIGABRT, {lack}"
    if number == signal.SIGKILL:
        needed = device.likely_lack_of_memory(log.added(), args)
        return f"was killed by SIGKILL, for lack of memory perhaps{f': {needed}' if needed else ''}"
    last_words = f"; its last words are in {log.path}" if os.path.exists(log.path) else ""
    names = {known.value: known.name for known in signal.Signals}  # most real-time signals have numbers only
    return f"was killed by {names.get(number, f'signal {number}')}{last_words}"


def die_with(parent):
    """Has this process killed when its parent, the process `parent`, ends."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(STATUS_FAILURE)


def die_with_parent():
    """Has this process killed when its parent ends; one that has ended before it is for the caller to find out."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on_signals(child):
    """Makes this process heed signals as run_supervised says; returns a list that gets their numbers."""
    numbers = []

    def pass_on(number, frame):
        numbers.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number if len(numbers) == 1 else signal.SIGKILL)

    def stop_both(number, frame):
        os.kill(child, signal.SIGSTOP)
        signals.set_action(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here it goes on after a SIGCONT.
        signal.signal(signal.SIGTSTP, stop_both)
        os.kill(child, signal.SIGCONT)

    for number in SIGNALS:
        # What this process ignores, under nohup say, the child does too.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, stop_both)
    return numbers
