"""Evaluation during and without training: schedule, reports, best model and early stopping.

The results are stored in --model_save_dir and not in snapshots, which are therefore equal with and without evaluation:

    <model_save_dir>/evaluations.json    {"run_number": n, "evaluations": [{"iteration": i, <metric>: value, ...}, ...]}
"""

import json
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import config
from ranks.ranks import from_first_rank, rank
from records import checks
from system.errors import UserError, describe_os_error
from system.input_files import read_json
from system.lazy import LazyModule
from system.output_files import atomic_file
from system.progress import print_line, print_warning

scoring = LazyModule("training.scoring")

RESULTS_FILE = "eval_results.txt"
HISTORY_FILE = "evaluations.json"


class Task(NamedTuple):
    """The task-specific part of an evaluation."""

    data_set: checks.DataSet | None  # on the first rank, else None
    # Takes the fields and outputs that scoring.score_records returns. Called on the first rank.
    metrics: Callable[[dict, list], dict[str, float]]
    fields: tuple[str, ...] = ()  # the record fields that `metrics` needs
    prefix: str = ""  # of the metrics' names in eval_results.txt
    each_epoch: bool = False  # whether a run without --eval_every_n_iter evaluates at the end of each epoch


def settle_metric(args, names):
    """Sets --metric_for_best_model to the first of the task's metrics `names`, unless it is given or unused.

    Raises UserError if it is not one of them.
    """
    if not (args.do_train and args.do_eval):
        return
    if args.metric_for_best_model is None:
        args.metric_for_best_model = names[0]
    if args.metric_for_best_model.removeprefix("eval_") not in names:
        raise UserError(
            f"--metric_for_best_model={args.metric_for_best_model}: the metrics of this task are {', '.join(names)}"
        )


def _is_better(name, value, other):
    """Returns whether `value` of the metric `name` is better than `other`; None stands for NaN."""
    if value is None or other is None:
        return value is not None
    return value < other if name.endswith("loss") or name == "perplexity" else value > other


class Evaluation:
    """The evaluations of one run. All ranks call the same methods.

    `iteration` is the number of completed iterations, as in the names of snapshots.
    """

    def __init__(self, scorer, task, args, train_set=None):
        """`scorer` is a scoring.Scorer of the model, `train_set` the training data or None."""
        self._scorer = scorer
        self._task = task
        self._args = args
        self._metric = from_first_rank(lambda: (args.metric_for_best_model or "").removeprefix("eval_"))
        self._run_number = None
        self._history = []  # of dicts
        self.is_due = _when_due(args, train_set, task.each_epoch) if train_set is not None else None

    def begin(self, start):
        """Loads the evaluations before `start`, a resume.StartingPoint. Raises UserError if their file is damaged."""
        self._run_number = start.run_number
        if start.iteration > 0:
            history = from_first_rank(lambda: _read_history(self._args.model_save_dir, start.run_number))
            self._history = [entry for entry in history if entry["iteration"] <= start.iteration]

    def is_missing(self, iteration):
        """Returns whether the run was stopped after this iteration, before the evaluation that was due."""
        return 0 < iteration < self._args.iter_num and self.is_due(iteration) and not self._has(iteration)

    def _has(self, iteration):
        return any(entry["iteration"] == iteration for entry in self._history)

    def run(self, iteration=None):
        """Evaluates the model and reports the metrics; returns them, on all ranks, as name -> float.

        `iteration` is None without training. Raises RunError if an output of the model is not finite.
        """
        fields, outputs = scoring.score_records(
            self._scorer,
            self._task.data_set,
            config.evaluation_batch_size(self._args),
            self._args.seq_length,
            self._task.fields,
            self._args.eval_iter_num,
        )
        values = from_first_rank(lambda: self._task.metrics(fields, outputs))
        if rank() == 0:
            self._tell(values, len(outputs[0]), iteration)
        return values

    def _tell(self, values, count, iteration):
        when = "" if iteration is None else f" after {iteration} iterations"
        numbers = ", ".join(f"{name}: {value:.4f}" for name, value in values.items())
        print_line(f"Evaluation{when}: {numbers}, examples: {count}")
        lines = {f"{self._task.prefix}{name}": value for name, value in values.items()}
        if iteration is not None:
            lines["global_step"] = iteration
        path = os.path.join(self._args.output_dir, RESULTS_FILE)
        try:
            with atomic_file(path, "w") as file:
                file.writelines(f"{name} = {value}\n" for name, value in sorted(lines.items()))
        except OSError as error:
            if iteration in (None, self._args.iter_num):
                raise
            print_warning(f"{path}: could not be written ({describe_os_error(error)}); training goes on")

    def is_best(self, values):
        """Returns whether `values` are better by --metric_for_best_model than all noted evaluations."""
        best = self._best()
        return _is_better(self._metric, _finite(values).get(self._metric), best and best[self._metric])

    def _best(self):
        """Returns the first of the best evaluations, or None."""
        best = None
        for entry in self._history:
            if _is_better(self._metric, entry.get(self._metric), best and best[self._metric]):
                best = entry
        return best

    def note(self, iteration, values):
        """Stores the metrics after `iteration` iterations, for is_best, is_over and --resume."""
        self._history = [entry for entry in self._history if entry["iteration"] != iteration]
        self._history.append({"iteration": iteration, **_finite(values)})
        if rank() > 0:
            return
        path = os.path.join(self._args.model_save_dir, HISTORY_FILE)
        try:
            with atomic_file(path, "w") as file:
                file.write(json.dumps({"run_number": self._run_number, "evaluations": self._history}, indent=1) + "\n")
        except OSError as error:
            print_warning(f"{path}: could not be written ({describe_os_error(error)}); --resume will not know of it")

    def is_over(self):
        """Returns whether there have been --early_stopping evaluations since the best one."""
        return self._args.early_stopping is not None and self._since_best() >= self._args.early_stopping

    def _since_best(self):
        best = self._best()
        after = 0 if best is None else best["iteration"]
        return sum(entry["iteration"] > after for entry in self._history)

    def describe_end(self):
        """Returns in words why is_over() is true."""
        best = self._best()
        found = f"{best[self._metric]:.4f} after {best['iteration']} iterations" if best else "a number"
        return f"{self._since_best()} evaluations have not found a better {self._metric} than {found}"

    def tell_other_best(self):
        """Prints a notice if the model, as it is after training, is not the best one that an evaluation has found."""
        best = self._best()
        if rank() == 0 and best is not None and best is not self._history[-1]:
            print_line(
                f"Notice: the model is that after {self._history[-1]['iteration']} iterations; the best by "
                f"{self._metric} is that after {best['iteration']}, in {self._args.model_save_dir}/best_snapshot."
            )


def _finite(values):
    """Returns the metrics without NaN, which a correlation may be and JSON cannot hold."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _when_due(args, train_set, each_epoch):
    """Returns a function: number of iterations -> whether an evaluation is due.

    With `each_epoch` the first rank must have counted the records of `train_set`.
    """
    if args.eval_every_n_iter is not None or not each_epoch:
        every = args.eval_every_n_iter or args.model_save_every_n_iter
        return lambda iteration: iteration % every == 0
    records, batch_size = from_first_rank(lambda: train_set.record_count), config.sequences_per_iteration(args)
    return lambda iteration: iteration * batch_size // records > (iteration - 1) * batch_size // records


def _read_history(folder, run_number):
    """Returns the evaluations of the run as a list of dicts, empty if the file is missing or of another run.

    Raises UserError if the file is damaged.
    """
    path = os.path.join(folder, HISTORY_FILE)
    if not os.path.lexists(path):
        return []
    content = read_json(path)
    history = content.get("evaluations") if isinstance(content, dict) else None
    if not isinstance(history, list) or not all(map(_is_entry, history)):
        raise UserError(f"{path}: damaged: not the evaluations of a run; remove it, and --resume begins without them")
    return history if content.get("run_number") == run_number else []


def _is_entry(entry):
    return (
        isinstance(entry, dict)
        and type(entry.get("iteration")) is int
        and all(type(value) is float and math.isfinite(value) for name, value in entry.items() if name != "iteration")
    )
