"""Running a script's main within the test's own process, for the many cases that need no process of their own."""

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
    """What conftest.run gives for the script whose `main` this is: a CompletedProcess, with text."""
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
    """Within this block no file can grow beyond that many bytes, which fails as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
