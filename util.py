"""How every script of the suite begins and ends."""

import os
import sys

from system import signals
from system.errors import one_line, outcome_of, print_error


def run_script(main):
    """Runs `main()` and exits: 0, 1 or 2 as CONTRIBUTING says, with one line on stderr if it failed.

    `main` returns None or an exit status.
    """
    _open_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files, and text of the data, may hold what the terminal's encoding has no characters for.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        signals.raise_first()
        status, error = outcome_of(main)
        # What there was to do is done.
        signals.ignore()
    except signals.StoppedTogether as stopped:
        # All that was done is saved.
        status, error = 128 + stopped.number, None
        print_error(status, one_line(stopped), kind="")
    except signals.Signalled as signalled:
        status, error = 128 + signalled.number, one_line(signalled)
    if error is not None:
        print_error(status, error)
    sys.exit(status)


def _open_closed_streams():
    """Opens the null device where this process was started without a standard input, output or error (`>&-`).

    The next file that is opened would get the number, and what libraries say would be written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number is this one, since those before it are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))
