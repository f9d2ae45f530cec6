"""Progress bars of all scripts, and lines printed above them."""

import contextlib
import os
import sys

from tqdm import tqdm

from system.errors import end_at_once, one_line

# Columns left free beside a bar for the terminal's "^C", which would otherwise start a new line.
_MARGIN = 4
_ERASE_TO_END_OF_LINE = "\x1b[K"


class _Bar(tqdm):
    # Disables tqdm's monitor thread, which could receive signals; `miniters` of 1 makes it unnecessary.
    monitor_interval = 0

    @property
    def format_dict(self):
        settings = super().format_dict
        if settings["ncols"]:
            settings["ncols"] = max(1, settings["ncols"] - _MARGIN)
        return settings

    def clear(self, nolock=False):
        super().clear(nolock)
        if not self.disable:
            self._erase_beside()

    def close(self):
        is_shown = not self.disable
        if self.total is not None and self.n < self.total:
            # The work has failed or was interrupted.
            self.leave = False
        super().close()
        if is_shown and not self.leave:
            self._erase_beside()

    def _erase_beside(self):
        self.fp.write(_ERASE_TO_END_OF_LINE)
        self.fp.flush()


def progress_bar(*arguments, **settings):
    """Returns a tqdm bar on stderr; takes tqdm's arguments.

    The bar is shown only if stdout and stderr are both terminals: lines that reach the terminal through a pipe, such as
    `| tee`, would mix with the bar.
    """
    return _Bar(*arguments, **{"disable": not bars_are_shown(), "miniters": 1, **_size_of_terminal(), **settings})


def _size_of_terminal():
    """Returns tqdm arguments for the terminal's size; a terminal of unknown size (0 columns) counts as 80 x 24."""
    with contextlib.suppress(OSError):
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


def erase_abandoned_bar():
    """Erases the bar that a killed process has left on the current line of the terminal."""
    if bars_are_shown():
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{_ERASE_TO_END_OF_LINE}")
            sys.stderr.flush()


def end_in_place_of_bars(number):
    """Ends this process because of the signal `number`, from any thread; no other thread draws a bar any more."""
    tqdm.get_lock().acquire()
    end_at_once(number)


def bars_are_shown():
    """Returns whether bars are shown."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def print_line(line, file=None):
    """Prints a line to stdout or `file`, flushed, above any bar."""
    with tqdm.external_write_mode(file):
        print(line, file=file, flush=True)


def print_warning(text):
    """Prints the line `script.py: warning: text` to stderr, above any bar."""
    print_line(one_line(f"{os.path.basename(sys.argv[0])}: warning: {text}"), sys.stderr)
