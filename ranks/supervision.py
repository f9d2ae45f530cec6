"""A parent process for a run on one device: it reports a crash of the engine in one line.

The engine aborts on errors (SIGABRT, with a stack dump), may crash (SIGSEGV), or is killed when memory runs out
(SIGKILL). Its messages on stderr go to a file in --log_dir.
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

# `0` disables the parent process and the engine's log file, for debuggers that do not follow a fork.
_VARIABLE = "BERT_SUPERVISE"
_PR_SET_PDEATHSIG = 1

_is_child = False


def run_supervised(function, args):
    """Calls function(args) in a forked child; in the child, raises what the function does, or ends the process.

    The parent returns the child's exit status. If the child was killed, it raises Signalled for a signal that this
    process received, else RunError. The first signal is forwarded to the child, the second ends both, and Ctrl-Z
    suspends both. Under a debugger, or if OneFlow is already loaded (it does not survive a fork), the function is
    called directly.
    """
    global _is_child
    if os.environ.get(_VARIABLE) == "0" or sys.gettrace() is not None or "oneflow" in sys.modules:
        return function(args)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    log = RunLog(engine_log(args.log_dir))
    # Signals wait until both processes have their handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _is_child = True
        # In a session of its own: Ctrl-C reaches only the parent.
        os.setsid()
        die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = call_with_memory(function, args, log) or 0
        sys.stdout.flush()
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        # Memory is left to the system: Python would take up to a second to free a model and OneFlow's modules.
        os._exit(status)
    received = _pass_on_signals(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = _wait_for(child)
    signals.ignore()
    if os.WIFEXITED(status):
        # The child has reported its own errors.
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    erase_abandoned_bar()
    if received and (number in SIGNALS or len(received) > 1):
        raise Signalled(received[-1])
    raise RunError(f"the engine {describe_death(number, log, args)}")


class RunLog:
    """A log file that several runs append to; remembers where this run starts."""

    def __init__(self, path):
        self.path = path
        self._begin = os.path.getsize(path) if os.path.exists(path) else 0

    def added(self):
        """Returns the text that this run has appended."""
        with contextlib.suppress(OSError), open(self.path, "rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")
        return ""


def call_with_memory(function, args, log):
    """Returns function(args). Turns the engine's error for too little memory into a RunError."""
    try:
        return function(args)
    except RuntimeError as error:
        lack = device.lack_of_memory(str(error), log.added(), args)
        if lack is None:
            raise
        raise RunError(lack) from None


def _wait_for(child):
    """Waits for the child; returns its wait status.

    os.waitpid alone is not enough: for a signal that arrives just before it blocks, Python would run the handler only
    after the child has ended. The wakeup pipe ends the wait at every signal.
    """
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # Python writes to the wakeup pipe only for signals that have a Python handler.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        select.select([read_end], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(read_end, 4096)


def is_supervised():
    """Returns whether this process is a child of run_supervised."""
    return _is_child


def start_engine_log(log_dir):
    """Redirects file descriptor 2, to which the engine writes, to the engine's log file in `log_dir`.

    sys.stderr still writes to the terminal. Does nothing in a process that is not supervised.
    """
    if not _is_child:
        return
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = os.open(engine_log(log_dir), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(log, 2)
    os.close(log)


def engine_log(log_dir):
    """Returns the path of the engine's log file for a run on one device."""
    return os.path.join(log_dir, "oneflow.log")


def describe_death(number, log, args):
    """Returns `was killed by SIGABRT; its last words are in <log>` for a process killed by the signal `number`.

    `log` is the RunLog of the process.
    """
    lack = device.lack_of_memory(log.added(), log.added(), args) if number == signal.SIGABRT else None
    if lack:
        return f"was killed by SIGABRT, {lack}"
    if number == signal.SIGKILL:
        needed = device.likely_lack_of_memory(log.added(), args)
        return f"was killed by SIGKILL, perhaps for lack of memory{f': {needed}' if needed else ''}"
    last_words = f"; its last words are in {log.path}" if os.path.exists(log.path) else ""
    names = {known.value: known.name for known in signal.Signals}  # most real-time signals have numbers only
    return f"was killed by {names.get(number, f'signal {number}')}{last_words}"


def die_with(parent):
    """Makes the kernel kill this process when its parent, the process `parent`, ends."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(STATUS_FAILURE)


def die_with_parent():
    """Makes the kernel kill this process when its parent ends. The caller must check that it has not ended yet."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on_signals(child):
    """Installs the handlers that run_supervised describes; returns a list to which they append signal numbers."""
    numbers = []

    def pass_on(number, frame):
        numbers.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number if len(numbers) == 1 else signal.SIGKILL)

    def stop_both(number, frame):
        os.kill(child, signal.SIGSTOP)
        signals.set_action(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # A SIGCONT resumes here.
        signal.signal(signal.SIGTSTP, stop_both)
        os.kill(child, signal.SIGCONT)

    for number in SIGNALS:
        # A signal ignored here, as under nohup, is ignored in the child too.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, stop_both)
    return numbers
