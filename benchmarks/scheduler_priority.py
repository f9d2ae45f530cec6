"""Measures how the priority of OneFlow's scheduler thread affects training speed, on an idle and on a busy machine.

    python benchmarks/scheduler_priority.py --turns=6

During one run of run_pretraining.py, the scheduler thread gets each priority in turn; the speed is the number of new
JSON lines. Lowering a priority needs no privileges, raising it again needs root.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# 2 layers of 128: steps are so short that waiting for the scheduler matters.
FLAGS = {
    "device": "cpu", "data_dir": ROOT / "dataset", "data_part_num": 1, "seq_length": 128, "max_predictions_per_seq": 20,
    "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size_per_head": 64, "batch_size_per_device": 4,
    "iter_num": 10**7, "model_save_every_n_iter": 10**7,
}  # fmt: skip

PRIORITIES = {
    "idle": lambda thread: os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0)),
    "nice 19": lambda thread: _set_nice(thread, 19),
    "normal": lambda thread: _set_nice(thread, os.getpriority(os.PRIO_PROCESS, 0)),
}


def _set_nice(thread, nice):
    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, thread, nice)


@contextlib.contextmanager
def running(folder):
    """Trains until the block ends. Yields (path of the JSON lines, id of the scheduler thread)."""
    command = [sys.executable, ROOT / "run_pretraining.py", *(f"--{name}={value}" for name, value in FLAGS.items())]
    command += [f"--log_dir={folder}", f"--model_save_dir={folder}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not (logs := list(folder.glob("metrics-*.jsonl"))) or count_lines(logs[0]) < 10:
                if process.poll() is not None:
                    raise SystemExit("the run has ended")
                time.sleep(0.1)
            own = os.getpriority(os.PRIO_PROCESS, process.pid)
            threads = [int(thread) for pid in tree_of(process.pid) for thread in os.listdir(f"/proc/{pid}/task")]
            (scheduler,) = (thread for thread in threads if os.getpriority(os.PRIO_PROCESS, thread) > own)
            yield logs[0], scheduler
        finally:
            process.kill()


def tree_of(process_id):
    """Returns the process and its children: a rank is a child of its launcher."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return [process_id, *(int(child) for task in tasks for child in (task / "children").read_text().split())]


@contextlib.contextmanager
def busy_processes(count):
    """Runs `count` busy processes within the block."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def _spin():
    while True:
        pass


def count_lines(path):
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def speed(log, seconds):
    """Returns the training steps per second, measured for `seconds`."""
    before, start = count_lines(log), time.perf_counter()
    time.sleep(seconds)
    return (count_lines(log) - before) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    print(f"{'busy processes a core':>22s}  " + "  ".join(f"{name:>8s}" for name in PRIORITIES) + "  steps a second")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (log, scheduler):
        for busy in (0, 2):
            with busy_processes(busy * len(os.sched_getaffinity(0))):
                speeds = {name: [] for name in PRIORITIES}
                for _ in range(args.turns):
                    for name, give in PRIORITIES.items():
                        give(scheduler)
                        speeds[name].append(speed(log, args.seconds))
            medians = (f"{statistics.median(values):8.1f}" for values in speeds.values())
            print(f"{busy:22d}  " + "  ".join(medians))


if __name__ == "__main__":
    main()
