"""Runs the scripts on a terminal and records what the user sees."""

import contextlib
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

from running import ROOT

ROWS, COLUMNS = 60, 250


class Terminal:
    """A script's exit `status`, its `output` to a terminal, and the final `lines` of the screen.

    `seconds_to_end`: the time from the first Ctrl-C to the end.
    """

    def __init__(
        self, script, *arguments, press_ctrl_c_at=None, times=1, send=None, timeout=120, environment=None, **flags
    ):
        """Runs the script; presses Ctrl-C `times` times when its output contains `press_ctrl_c_at`.

        With `send`, sends that signal instead. `environment`: additional variables.
        """
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        command += [f"--{name}={value}" for name, value in flags.items()]
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # In its own session with this controlling terminal, so that Ctrl-C becomes a signal.
        process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, **(environment or {})},
        )
        os.close(slave)

        def press():
            if send is None:
                os.write(master, b"\x03")
            else:
                process.send_signal(send)

        try:
            self.output, pressed = _read(master, press_ctrl_c_at, press, times, time.monotonic() + timeout)
            self.status = process.wait(timeout)
            self.seconds_to_end = time.monotonic() - pressed
        finally:
            process.kill()
            process.wait()
            os.close(master)
        self._screen = pyte.Screen(COLUMNS, ROWS)
        pyte.Stream(self._screen).feed(self.output)
        self.lines = [line.rstrip() for line in self._screen.display]

    def is_left_clean(self):
        """Whether the cursor is visible at the beginning of an empty line."""
        cursor = self._screen.cursor
        return not cursor.hidden and cursor.x == 0 and self.lines[cursor.y] == ""

    def last_line(self):
        return self.lines[self._screen.cursor.y - 1]


def _take_terminal():
    ioctl(0, termios.TIOCSCTTY, 0)


def _read(master, press_ctrl_c_at, press, times, deadline):
    """Returns (all output, time of the first key press)."""
    output, pressed = b"", 0.0
    while True:
        assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], output
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed
            return output.decode(), pressed
        output += chunk
        if press_ctrl_c_at is not None and press_ctrl_c_at in output.decode(errors="replace"):
            pressed = time.monotonic()
            for index in range(times):
                if index:
                    time.sleep(0.1)
                with contextlib.suppress(OSError):
                    press()
            press_ctrl_c_at = None
