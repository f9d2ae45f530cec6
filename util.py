"""The frame of every script: signals, errors and exit status."""

import gc
import os
import sys

from system import signals
from system.errors import one_line, outcome_of, print_error


def run_script(main):
    """Runs `main()`, which returns None or an exit status, and exits.

    Errors are one line on stderr; the statuses are 0, 1 (failure), 2 (usage or input) and 128 + signal.
    """
    # Python looks for garbage after 700 new objects. Nearly all that OneFlow's import and a graph create stay.
    gc.set_threshold(100_000)
    _open_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        # File names and text may hold characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        signals.install_handlers()
        status, error = outcome_of(main)
        signals.ignore()
    except signals.StoppedTogether as stopped:
        status, error = 128 + stopped.number, None
        print_error(status, one_line(stopped), kind="")
    except signals.Signalled as signalled:
        status, error = 128 + signalled.number, one_line(signalled)
    if error is not None:
        print_error(status, error)
    sys.exit(status)


def _open_closed_streams():
    """Opens the null device for each standard stream that is closed (`>&-`).

    Otherwise the next file opened would get the stream's number, and libraries would write their messages into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # os.open returns the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))
