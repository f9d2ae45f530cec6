"""Progress bars: when they appear, and how lines are printed while they do. The same for all scripts."""

import contextlib
import os
import sys

from tqdm import tqdm

from system.errors import end_at_once, warning_line

# Columns left free beside a bar, for the "^C" that the terminal itself shows: it must not begin a line of its own.
_MARGIN = 4
_ERASE_TO_END_OF_LINE = "\x1b[K"


class _Bar(tqdm):
    # No thread that looks after bars that stand still, as `miniters` of 1 does: signals might come to it.
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
            # What it was for has failed, or was interrupted.
            self.leave = False
        super().close()
        if is_shown and not self.leave:
            self._erase_beside()

    def _erase_beside(self):
        self.fp.write(_ERASE_TO_END_OF_LINE)
        self.fp.flush()


def progress_bar(*arguments, **settings):
    """A tqdm bar on stderr with the rate and the time left; takes tqdm's arguments.

    It appears only where stdout and stderr are both a terminal. Through a pipe, `| tee` say, lines come to the terminal
    at moments of their own, and would be mixed with the bar.
    """
    return _Bar(*arguments, **{"disable": not bars_are_shown(), "miniters": 1, **_size_of_terminal(), **settings})


def _size_of_terminal():
    """As arguments of tqdm, which shows nothing where a terminal does not know it, as a serial line, and says 0."""
    with contextlib.suppress(OSError):
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


def erase_abandoned_bar():
    """Erases what the bar of a process that was killed has left on the terminal: this one goes on in its line."""
    if bars_are_shown():
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{_ERASE_TO_END_OF_LINE}")
            sys.stderr.flush()


def end_in_place_of_bars(number):
    """Ends this process at the signal `number`, from any thread; another one that draws a bar waits for ever."""
    tqdm.get_lock().acquire()
    end_at_once(number)


def bars_are_shown():
    """Whether bars appear."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def print_line(line, file=None):
    """Prints a line on stdout, or on `file`, at once, above the bars that are shown."""
    with tqdm.external_write_mode(file):
        print(line, file=file, flush=True)


def print_warning(text):
    """Says on stderr, in a line above the bars, what is not as it should be, although the script goes on."""
    print_line(warning_line(text), sys.stderr)
