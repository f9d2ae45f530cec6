"""Measures the gain from a second rank, and the cost of communication, when pre-training BERT-base on two cores.

    python benchmarks/scaling.py

Each rank has one core, one thread and its own batch. Four set-ups take turns; the table has medians over all rounds,
without the first steps of each run:

1. one rank on one core;
2. two independent runs of one rank, each on its own core: they share memory and caches, but do not communicate;
3. two ranks: the additional time of a step over 2 is the cost of communication;
4. one rank with two threads and a batch twice as large: the other way to use two cores.

Bytes sent are those of the loopback interface, so no other program should use it.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from system.command_line import ArgumentParser, add_number, positive_int  # noqa: E402

# The first steps are slower: they touch new memory.
_SKIPPED_STEPS = 2


def main():
    args = parse_arguments()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("scaling.py: error: there is only one core to run on")
    ways = {
        "one rank": [Run(args, cores=cores[:1])],
        "two runs that do not talk": [Run(args, cores=[core]) for core in cores],
        "two ranks": [Run(args, cores=cores, ranks=2)],
        "one rank, two threads, twice the batch": [Run(args, cores=cores, threads=2, batch=2)],
    }
    for _ in range(args.rounds):
        for runs in ways.values():
            with contextlib.ExitStack() as stack:
                processes = [stack.enter_context(run.start()) for run in runs]
                for run, process in zip(runs, processes, strict=True):
                    run.watch(process)
    print_table(args, ways)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_number(parser, "--rounds", positive_int, 3, "runs of each set-up")
    add_number(parser, "--steps", positive_int, 6, "timed steps per run")
    add_number(parser, "--batch_size_per_device", positive_int, 8, "sequences per rank")
    add_number(parser, "--num_hidden_layers", positive_int, 12, "layers")
    return parser.parse_args()


class Run:
    """A set-up, or one of its two processes, and the times of its steps."""

    def __init__(self, args, cores, ranks=1, threads=1, batch=1):
        self.sentences = args.batch_size_per_device * ranks * batch
        self.seconds = []
        self.bytes_sent = []  # per rank and step
        self._cores = cores
        self._ranks = ranks
        self._threads = threads
        self._flags = {
            "gpu_num_per_node": ranks,
            "batch_size_per_device": args.batch_size_per_device * batch,
            "num_hidden_layers": args.num_hidden_layers,
            "iter_num": _SKIPPED_STEPS + args.steps,
            "device": "cpu",
            "data_dir": ROOT / "dataset",
            "data_part_num": 1,
            "num_attention_heads": 12,
            "seq_length": 128,
            "max_predictions_per_seq": 20,
            "model_save_every_n_iter": 10**6,
        }

    @contextlib.contextmanager
    def start(self):
        """Starts the run; yields the process and the folder of its log."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "run_pretraining.py"), f"--log_dir={folder}"]
            command += [f"--{name}={value}" for name, value in self._flags.items()]
            with subprocess.Popen(
                ["taskset", "--cpu-list", ",".join(map(str, self._cores)), *command],
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
                stdout=subprocess.DEVNULL,
            ) as process:
                try:
                    yield process, Path(folder)
                finally:
                    process.terminate()

    def watch(self, process_and_folder):
        """Records the steps until the run ends."""
        process, folder = process_and_folder
        begin = end = None
        while process.poll() is None:
            lines = read_log(folder)
            if len(lines) > _SKIPPED_STEPS:
                end = (len(lines), loopback_bytes()) if end is None or len(lines) > end[0] else end
                begin = begin or end
            time.sleep(0.02)
        if process.returncode != 0:
            sys.exit("scaling.py: error: the training has failed; its message is above")
        self.seconds += [line["sec_per_batch"] for line in read_log(folder)[_SKIPPED_STEPS:]]
        if begin is not None and end[0] > begin[0]:
            self.bytes_sent.append((end[1] - begin[1]) / (end[0] - begin[0]) / self._ranks)


def read_log(folder):
    """Returns the JSON lines of a run, without an incomplete last one."""
    text = "".join(path.read_text() for path in folder.glob("metrics-*.jsonl"))
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def loopback_bytes():
    """Returns the number of bytes sent over the loopback interface since boot."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def print_table(args, ways):
    seconds = {name: statistics.median(step for run in runs for step in run.seconds) for name, runs in ways.items()}
    one = ways["one rank"][0].sentences / seconds["one rank"]
    print(
        f"BERT, {args.num_hidden_layers} layers, {args.batch_size_per_device} sequences of 128 tokens a rank; "
        f"medians of {args.rounds} x {args.steps} steps"
    )
    print("| | seconds a step | sentences a second | times one rank |")
    print("| --- | --- | --- | --- |")
    for name, runs in ways.items():
        speed = sum(run.sentences for run in runs) / seconds[name]
        print(f"| {name} | {seconds[name]:.2f} | {speed:.2f} | {speed / one:.2f} |")
    talk = seconds["two ranks"] - seconds["two runs that do not talk"]
    sent = statistics.median(ways["two ranks"][0].bytes_sent)
    print(
        f"The ranks' talk costs {talk:.2f} s a step ({talk / seconds['two ranks']:.0%} of it), "
        f"in which each sends {sent / 1e6:.0f} MB."
    )


if __name__ == "__main__":
    main()
