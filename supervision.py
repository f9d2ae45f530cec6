"""A parent process for a run on one device: it tells in one line that the engine has died, where only a dump would be.

The engine ends its process where it finds something wrong (SIGABRT, with a stack dump), a fault in it does (SIGSEGV),
or the system, for lack of memory (SIGKILL). What the engine says on stderr goes to a file in --log_dir.
"""

import ctypes
import os
import signal
import sys

from stopping import SIGNALS
from util import STATUS_FAILURE, RunError

# `0` in the environment: no parent, and no file for what the engine says. For a debugger that does not follow a fork.
_VARIABLE = "BERT_SUPERVISE"
_PR_SET_PDEATHSIG = 1

_is_child = False


def run_supervised(function, args):
    """Calls function(args) in a child of this process, and there returns what it returns, or raises what it raises.

    This process waits: it returns the child's exit status, or raises RunError if the child was killed. The first signal
    that ends a run is passed on to the child, the second ends both, and Ctrl-Z stops both. Under a debugger, and where
    OneFlow is loaded already, which does not survive a fork, it simply calls the function.
    """
    global _is_child
    if os.environ.get(_VARIABLE) == "0" or sys.gettrace() is not None or "oneflow" in sys.modules:
        return function(args)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
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
        return function(args)
    signals = _pass_on_signals(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        # The child has said what there is to say.
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    if signals and (number in SIGNALS or len(signals) > 1):
        signal.signal(signals[-1], signal.SIG_DFL)
        os.kill(parent, signals[-1])
    raise RunError(f"the engine {describe_death(number, _engine_log(args.log_dir))}")


def is_supervised():
    """Whether this process is such a child."""
    return _is_child


def start_engine_log(log_dir):
    """Sends what the engine says on stderr from now on, by file descriptor, to the file for it in `log_dir`.

    sys.stderr stays where it is. Does nothing where this process is not a supervised one.
    """
    if not _is_child:
        return
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    log = os.open(_engine_log(log_dir), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(log, 2)
    os.close(log)


def _engine_log(log_dir):
    return os.path.join(log_dir, "oneflow.log")


def describe_death(number, log_file):
    """`was killed by SIGABRT; its last words are in <log_file>`, for a process that the signal `number` has killed."""
    if number == signal.SIGKILL:
        return "was killed by SIGKILL, for lack of memory perhaps"
    last_words = f"; its last words are in {log_file}" if os.path.exists(log_file) else ""
    return f"was killed by {signal.Signals(number).name}{last_words}"


def die_with(parent):
    """Has this process killed when its parent, the process `parent`, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(STATUS_FAILURE)


def _pass_on_signals(child):
    """Makes this process heed signals as run_supervised says; returns a list that gets their numbers."""
    numbers = []

    def pass_on(number, frame):
        numbers.append(number)
        os.kill(child, number if len(numbers) == 1 else signal.SIGKILL)

    def stop_both(number, frame):
        os.kill(child, signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
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
