"""Runs a script's main within the test's process, which is faster than a process for each case."""

import contextlib
import io
import resource
import signal
import subprocess
import sys
from unittest import mock

import pytest

from system.signals import SIGNALS
from util import run_script


def run_in_process(main, script, *arguments, **flags):
    """Like running.run, but calls the script's `main` in this process. Returns a CompletedProcess with text."""
    command = [script, *map(str, arguments), *(f"--{name}={value}" for name, value in flags.items())]
    stdout, stderr = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as exit_,
    ):
        run_script(main)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return subprocess.CompletedProcess(command, exit_.value.code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def full_disk(largest_file):
    """Simulates a full disk: within this block, no file can grow beyond `largest_file` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
