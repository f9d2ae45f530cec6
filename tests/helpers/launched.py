"""Scripts that run in the background: waits for their output, kills them, and checks that nothing is left."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from running import ROOT, TINY_MODEL

# Tiny pre-training with batches divisible by 4. Without dropout, the number of ranks does not change the results.
PRETRAINING = {
    **TINY_MODEL,
    "data_part_num": 1,
    "seq_length": 32,
    "max_predictions_per_seq": 5,
    "learning_rate": 1e-3,
    "warmup_batches": 2,
    "iter_num": 10,
    "loss_print_every_n_iter": 1,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "device": "cpu",
}
SQUAD = {name: value for name, value in PRETRAINING.items() if name != "max_predictions_per_seq"}


class Launched:
    """A script started with `--flag=value` pairs. It is killed at the end of the with block if it still runs.

    Its output goes to files in `output`, which is also its default --log_dir and --model_save_dir. `prefix` precedes
    the command (for example ip netns exec).
    """

    def __init__(self, script, output, prefix=(), cwd=ROOT, environment=None, **flags):
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
        self.output = output
        flags = {"log_dir": output, "model_save_dir": output, **flags}
        self.command = [*prefix, sys.executable, str(ROOT / script)]
        self.command += [f"--{name}={value}" for name, value in flags.items() if value is not None]
        self._out, self._err = output / "stdout.txt", output / "stderr.txt"
        with open(self._out, "w") as out, open(self._err, "w") as err:
            self.process = subprocess.Popen(
                self.command,
                cwd=cwd,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    @property
    def stdout(self):
        return self._out.read_text()

    @property
    def stderr(self):
        return self._err.read_text()

    def wait_for(self, text, timeout=120):
        """Waits until stdout contains the text."""
        self._wait_until(lambda: text in self.stdout, timeout)

    def wait_for_file(self, pattern, timeout=120):
        """Waits until `output` has a file that matches the pattern."""
        self._wait_until(lambda: any(self.output.glob(pattern)), timeout)

    def wait_for_handler(self, number, timeout=120):
        """Waits until the process has a handler for the signal `number`."""
        self._wait_until(lambda: has_handler(self.process.pid, number), timeout)

    def _wait_until(self, happens, timeout):
        """Returns when `happens()` is true; fails if the script ends before, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not happens():
            assert self.process.poll() is None, (self.process.returncode, self.stdout, self.stderr)
            assert time.monotonic() < deadline, (self.stdout, self.stderr)
            time.sleep(0.01)

    def send_until_ended(self, number, timeout=120):
        """Sends a signal repeatedly: pending signals of the same kind are merged into one."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, (self.stdout, self.stderr)
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)

    def wait(self, timeout=120):
        """Waits for the script to end and returns its exit status."""
        return self.process.wait(timeout)

    def children(self):
        """Returns the ids of the script's child processes."""
        return children_of(self.process.pid)

    def ranks(self):
        """Returns rank -> process id of the ranks that run with this log_dir."""
        (log_dir,) = (argument for argument in self.command if argument.startswith("--log_dir="))
        found = {}
        for process_id in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                command = Path("/proc", process_id, "cmdline").read_bytes().decode(errors="replace").split("\0")
                environment = Path("/proc", process_id, "environ").read_bytes().decode(errors="replace").split("\0")
                values = dict(entry.split("=", 1) for entry in environment if "=" in entry)
                if log_dir in command and int(process_id) != self.process.pid and "RANK" in values:
                    found[int(values["RANK"])] = int(process_id)
        return found

    def assert_failed(self, *fragments, status=1, within=30):
        """Asserts that it ends `within` seconds with `status` and one line on stderr with all `fragments`."""
        start = time.monotonic()
        found = self.wait(within + 60)
        assert time.monotonic() - start < within, f"it took {time.monotonic() - start:.0f} seconds"
        assert found == status, (found, self.stdout, self.stderr)
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        for fragment in fragments:
            assert str(fragment) in lines[0], lines[0]
        assert self.ranks() == {}


def children_of(process_id):
    """Returns the ids of the children of a process."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def has_handler(process_id, number):
    """Whether a process has a handler for the signal `number`."""
    return _is_among(process_id, "SigCgt", number)


def ignores(process_id, number):
    """Whether a process ignores the signal `number`."""
    return _is_among(process_id, "SigIgn", number)


def _is_among(process_id, name, number):
    status = Path(f"/proc/{process_id}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def slow_disk(folder, name):
    """Returns environment variables that slow down a script's writing of the snapshot `name`.

    Each of its files takes a hundredth of a second; nothing waits for the disk itself (fsync). Writes a sitecustomize
    module to `folder`.
    """
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "os.fsync = lambda descriptor: None\n"
        "from snapshots import layout\n"
        "own = layout._write_file\n"
        "def write(path, data):\n"
        f"    time.sleep(0.01 if '.{name}.' in path else 0)\n"
        "    own(path, data)\n"
        "layout._write_file = write\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}
