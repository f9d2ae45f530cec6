"""Progress bars: when they appear, and how lines are printed while they do. The same for all scripts."""

import sys

from tqdm import tqdm

# Columns left free beside a bar, for the "^C" that the terminal itself shows: it must not begin a line of its own.
_MARGIN = 4
_ERASE_TO_END_OF_LINE = "\x1b[K"


class _Bar(tqdm):
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
    is_shown = sys.stdout.isatty() and sys.stderr.isatty()
    return _Bar(*arguments, **{"disable": not is_shown, "dynamic_ncols": True, **settings})


def print_line(line, file=None):
    """Prints a line on stdout, or on `file`, at once, above the bars that are shown."""
    with tqdm.external_write_mode(file):
        print(line, file=file, flush=True)
