"""Running the scripts on a terminal, and what their user then sees there."""

import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pyte

from conftest import ROOT

ROWS, COLUMNS = 60, 250


class Terminal:
    """A script's exit `status`, all its `output` to a terminal, and the `lines` of the screen in the end."""

    def __init__(self, script, *arguments, press_ctrl_c_at=None, timeout=120, **flags):
        """Runs the script; presses Ctrl-C when its output holds `press_ctrl_c_at`."""
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        command += [f"--{name}={value}" for name, value in flags.items()]
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # In a session of its own whose terminal this is, so that Ctrl-C becomes a signal.
        process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        try:
            self.output = _read(master, press_ctrl_c_at, time.monotonic() + timeout)
            self.status = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
            os.close(master)
        self._screen = pyte.Screen(COLUMNS, ROWS)
        pyte.Stream(self._screen).feed(self.output)
        self.lines = [line.rstrip() for line in self._screen.display]

    def is_left_clean(self):
        """Whether the cursor is seen, at the beginning of a line on which nothing stands."""
        cursor = self._screen.cursor
        return not cursor.hidden and cursor.x == 0 and self.lines[cursor.y] == ""

    def last_line(self):
        return self.lines[self._screen.cursor.y - 1]


def _take_terminal():
    ioctl(0, termios.TIOCSCTTY, 0)


def _read(master, press_ctrl_c_at, deadline):
    output = b""
    while True:
        assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], output
        try:
            chunk = os.read(master, 65536)
        except OSError:  # nobody has the other end open any more
            return output.decode()
        output += chunk
        if press_ctrl_c_at is not None and press_ctrl_c_at in output.decode(errors="replace"):
            os.write(master, b"\x03")
            press_ctrl_c_at = None
