"""The first rank's reports on training: loss lines, a progress bar, JSON lines and TensorBoard events."""

import contextlib
import html
import json
import math
import re
import time
from datetime import datetime
from pathlib import Path

import config
from ranks.ranks import rank
from system.errors import describe_os_error
from system.progress import print_line, print_warning, progress_bar
from training.event_file import EventFile
from training.run_folder import open_run_folder

# The metrics of an evaluation that are losses of training -> the tags of these.
_TAGS_OF_EVALUATION = {
    "loss": "loss/total_loss",
    "masked_lm_loss": "loss/mlm_loss",
    "next_sentence_loss": "loss/nsp_loss",
}


class MetricLog:
    """Collects the scalars of iterations; prints means since the last line, writes JSON lines and events.

    Times are wall-clock seconds between the ends of iterations, including the time to save snapshots. If a line or
    event cannot be written, for example because the disk is full, the run continues after one warning.
    """

    def __init__(self, args, job_name, first_step, losses):
        """`first_step` is the train step of the first iteration; `losses` come from losses_since_line()."""
        self._closing = contextlib.ExitStack()
        self._log_dir = args.log_dir
        self._has_warned = False
        self._json_file = self._events = self._evaluation_events = None
        if rank() == 0:
            self._json_file = self._closing.enter_context(_open_json_file(args.log_dir))
            name = Path(self._json_file.name).name
            folder = open_run_folder(args, job_name, first_step, name)
            self._events = self._closing.enter_context(contextlib.closing(EventFile(folder, first_step)))
            if args.do_eval:
                # A run of its own to TensorBoard, which draws curves of one name into one chart.
                (folder / "eval").mkdir(exist_ok=True)
                self._evaluation_events = self._closing.enter_context(
                    contextlib.closing(EventFile(folder / "eval", first_step))
                )
            self._events.write_text(first_step, "parameters", _markdown_table(vars(args)))
        self._bar = self._closing.enter_context(progress_bar(total=args.iter_num, unit="batch", leave=False))
        self._batch_size = config.sequences_per_iteration(args)
        self._print_every = args.loss_print_every_n_iter
        self._log_every = args.log_every_n_iter
        self._losses = {name: list(values) for name, values in losses.items()}
        self._iterations = self._line_iterations = 0
        self._skipped_steps = 0
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._warning_of_losses():
            self._closing.close()

    def start(self):
        """Starts the clock; earlier time does not count."""
        self._run_start = self._line_start = self._iteration_end = time.perf_counter()
        self._bar.unpause()

    @contextlib.contextmanager
    def paused(self):
        """Stops the clock within the block."""
        begin = time.perf_counter()
        yield
        pause = time.perf_counter() - begin
        self._run_start += pause
        self._line_start += pause
        self._iteration_end += pause

    def add_evaluation(self, iteration, train_step, values):
        """Takes the metrics (name -> float) of an evaluation after the iteration of that number, and its train step.

        A JSON line has them as eval_<name>, those that are numbers. Among TensorBoard's curves the losses have the
        names that training gives them.
        """
        if self._json_file is None:
            return
        line = {"iter": iteration, "train_step": train_step}
        line |= {f"eval_{name}": value for name, value in values.items() if math.isfinite(value)}
        scalars = {_TAGS_OF_EVALUATION.get(name, f"eval/{name}"): value for name, value in values.items()}
        with self._warning_of_losses():
            self._json_file.write(json.dumps(line) + "\n")
            self._evaluation_events.write_scalars(train_step, scalars)

    def add(self, iteration, train_step, learning_rate, values):
        """Adds the numbers (name -> float) of an iteration that has just ended."""
        now = time.perf_counter()
        seconds = now - self._iteration_end
        self._iteration_end = now
        if self._iterations == 0:
            self._bar.initial = self._bar.n = iteration
        self._iterations += 1
        self._line_iterations += 1
        if self._json_file is not None and (iteration + 1) % self._log_every == 0:
            with self._warning_of_losses():
                self._write(iteration, train_step, learning_rate, values, seconds)
        for name, value in values.items():
            if name.endswith("_loss"):
                self._losses.setdefault(name, []).append(value)
        if (iteration + 1) % self._print_every == 0:
            self._print_line(iteration, now)
        self._bar.update(iteration + 1 - self._bar.n)

    def losses_since_line(self):
        """Returns name -> losses since the last printed line, for a run that resumes here."""
        return self._losses

    def skip_step(self, iteration):
        """Reports a step that the optimiser skipped because gradients overflowed in mixed precision."""
        self._skipped_steps += 1
        print_line(f"Notice: iter {iteration} was skipped, as its gradients overflow ({self._skipped_steps} so far).")

    @contextlib.contextmanager
    def _warning_of_losses(self):
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                print_warning(f"{self._log_dir}: numbers are lost ({describe_os_error(error)})")
            self._has_warned = True

    def _write(self, iteration, train_step, learning_rate, values, seconds):
        sentences_per_sec = self._batch_size / seconds
        line = {
            "iter": iteration,
            "train_step": train_step,
            **values,
            "learning_rate": learning_rate,
            "sec_per_batch": seconds,
            "sentences_per_sec": sentences_per_sec,
        }
        self._json_file.write(json.dumps(line) + "\n")
        scalars = {f"loss/{name}" if name.endswith("_loss") else name: value for name, value in values.items()}
        scalars["learning_rate"] = learning_rate
        scalars["speed/ms_per_step"] = 1000 * seconds
        scalars["speed/sentences_per_sec"] = sentences_per_sec
        self._events.write_scalars(train_step, scalars)

    def _print_line(self, iteration, now):
        seconds = (now - self._line_start) / self._line_iterations
        losses = ", ".join(f"{name}: {sum(values) / len(values):.3f}" for name, values in self._losses.items())
        speed = f"{seconds:.3f}(sec/batch), {self._batch_size / seconds:.3f}(sentences/sec)"
        print_line(f"iter {iteration}, {losses}, speed: {speed}")
        self._losses = {}
        self._line_iterations = 0
        self._line_start = now

    def print_average_speed(self):
        """The tutorial's last lines: sentences per second from the first iteration to the last, if any has run."""
        if self._iterations == 0:
            return
        seconds = self._iteration_end - self._run_start
        for line in (
            "-" * 66,
            f"average speed: {self._iterations * self._batch_size / seconds:.3f}(sentences/sec)",
            "-" * 66,
        ):
            print_line(line)


def _open_json_file(log_dir):
    """Opens a new file, named after the current second; waits if another run has taken that name."""
    while True:
        try:
            return open(Path(log_dir) / f"metrics-{datetime.now():%Y-%m-%d-%H-%M-%S}.jsonl", "x", buffering=1)
        except FileExistsError:
            time.sleep(0.1)


def _markdown_table(values):
    rows = [f"| {name} | {_escape_markdown(str(value))} |" for name, value in values.items()]
    return "\n".join(["| parameter | value |", "| --- | --- |", *rows])


def _escape_markdown(text):
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
