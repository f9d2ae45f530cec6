"""What a training run tells: loss lines on stdout, and every n-th iteration as a JSON line in a file (of rank 0)."""

import json
import os
import time
from datetime import datetime
from pathlib import Path

import config
from launch import rank


class MetricLog:
    """Collects the scalars of each iteration; prints means since the last line and writes JSON lines.

    Times are wall-clock seconds between the ends of iterations; time spent saving snapshots counts.
    """

    def __init__(self, args):
        name = f"metrics-{datetime.now():%Y-%m-%d-%H:%M:%S}.jsonl" if rank() == 0 else os.devnull
        self._file = open(Path(args.log_dir) / name, "a", buffering=1)
        self._batch_size = config.global_batch_size(args)
        self._print_every = args.loss_print_every_n_iter
        self._log_every = args.log_every_n_iter
        self._sums = {}
        self._iterations = 0
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def start(self):
        """Starts the clock: what went before counts as no iteration's time."""
        self._run_start = self._line_start = self._iteration_end = time.perf_counter()

    def add(self, iteration, train_step, learning_rate, metrics):
        """Takes the scalar tensors of an iteration as they come out of the graph, waiting for them."""
        values = {name: metric.to_local().item() for name, metric in metrics.items()}
        now = time.perf_counter()
        seconds = now - self._iteration_end
        self._iteration_end = now
        self._iterations += 1
        if (iteration + 1) % self._log_every == 0:
            self._write_json(iteration, train_step, learning_rate, values, seconds)
        for name, value in values.items():
            if name.endswith("_loss"):
                self._sums.setdefault(name, []).append(value)
        if (iteration + 1) % self._print_every == 0:
            self._print_line(iteration, now)

    def _write_json(self, iteration, train_step, learning_rate, values, seconds):
        line = {
            "iter": iteration,
            "train_step": train_step,
            **values,
            "learning_rate": learning_rate,
            "sec_per_batch": seconds,
            "sentences_per_sec": self._batch_size / seconds,
        }
        self._file.write(json.dumps(line) + "\n")

    def _print_line(self, iteration, now):
        count = len(next(iter(self._sums.values())))
        seconds = (now - self._line_start) / count
        losses = ", ".join(f"{name}: {sum(values) / count:.3f}" for name, values in self._sums.items())
        speed = f"{seconds:.3f}(sec/batch), {self._batch_size / seconds:.3f}(sentences/sec)"
        print(f"iter {iteration}, {losses}, speed: {speed}", flush=True)
        self._sums = {}
        self._line_start = now

    def print_average_speed(self):
        """The tutorial's last lines: sentences per second from the first iteration to the last."""
        seconds = self._iteration_end - self._run_start
        print("-" * 66)
        print(f"average speed: {self._iterations * self._batch_size / seconds:.3f}(sentences/sec)")
        print("-" * 66, flush=True)
