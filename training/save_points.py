"""Saves the snapshots of a training run, removes old ones, and handles failures to save."""

import os
import signal

from ranks.ranks import rank
from snapshots import run_state, series
from system.errors import RunError, describe_os_error
from system.progress import print_warning
from system.signals import StoppedTogether
from training import job_state, resume

LAST, BEST = "last_snapshot", "best_snapshot"


class SavePoints:
    """The snapshots of a run of `job` in --model_save_dir. All ranks call the same methods.

    `iteration` is the number of completed iterations, as in the names of snapshots.
    """

    def __init__(self, job, args, start, log):
        """`start` is the resume.StartingPoint at which the run begins, `log` its MetricLog."""
        self._job = job
        self._args = args
        self._start = start
        self._log = log
        self._newest = start.folder
        self._saved = start.iteration  # that of the newest snapshot
        self._final_failures = []

    def is_due(self, iteration):
        """Returns whether a snapshot is due after `iteration` iterations."""
        return iteration % self._args.model_save_every_n_iter == 0

    def save(self, iteration):
        """Saves snapshot_<iteration>. On failure training continues; finish() reports it at the last iteration."""
        reason = self._save(f"snapshot_{iteration}", iteration)
        if reason is None:
            return
        if iteration == self._args.iter_num:
            self._final_failures.append(reason)
        else:
            _warn(f"{reason}; training goes on, {self.describe_newest()}")

    def save_best(self, iteration):
        """Saves best_snapshot. On failure prints a warning, and training continues."""
        reason = self._save(BEST, iteration)
        if reason is not None:
            _warn(f"{reason}; {self.describe_newest()}")

    def stop(self, iteration, number):
        """Saves snapshot_<iteration> unless it exists, and raises StoppedTogether for the signal `number`.

        Raises RunError if the snapshot cannot be saved.
        """
        name = signal.Signals(number).name
        if self._saved < iteration:
            reason = self._save(f"snapshot_{iteration}", iteration)
            if reason is not None:
                text = f"stopped by {name} after {iteration} iterations, but {reason}; {self.describe_newest()}"
                raise RunError(text)
        where = f"{self._newest} on the first node" if self._args.node_num > 1 else self._newest
        advice = f"--resume goes on from {where}"
        if not self._args.save_optimizer:
            advice = f"the model is in {where}, without the moments that --resume needs"
        raise StoppedTogether(
            number,
            f"stopped by {name} after {iteration} of {self._args.iter_num} iterations; {advice}",
        )

    def finish(self, iteration):
        """Saves last_snapshot if requested; `iteration` is the last one.

        Raises RunError if a snapshot of the last iteration could not be saved.
        """
        if self._args.save_last_snapshot:
            reason = self._save(LAST, iteration)
            if reason is not None:
                self._final_failures.append(reason)
        if self._final_failures:
            raise RunError(f"{'; '.join(self._final_failures)}; {self.describe_newest()}")

    def describe_newest(self):
        """Returns `the newest snapshot is X` for messages."""
        return f"the newest snapshot is {self._newest}" if self._newest else "no snapshot has been saved yet"

    def _save(self, name, iteration):
        """Saves a snapshot and removes old ones; returns None, or the reason why it was not saved."""
        folder = os.path.join(self._args.model_save_dir, name)
        batches = (iteration - self._start.iteration) * self._args.num_accumulation_steps
        state = resume.state_to_save(self._start, batches, iteration, self._log.losses_since_line())
        try:
            reason = job_state.save(self._job, folder, state, self._start.files, self._args.save_optimizer)
        except RunError as error:
            raise RunError(f"after {iteration} iterations {error}; {self.describe_newest()}") from None
        if reason is not None:
            return f"{folder} could not be saved ({reason})"
        self._newest, self._saved = folder, iteration
        if self._args.model_save_keep and rank() == 0:
            try:
                series.remove_oldest(self._args.model_save_dir, self._args.model_save_keep)
            except OSError as error:
                _warn(f"an old snapshot could not be removed ({describe_os_error(error)})")
        return None


def copy(start, args, name):
    """Copies the snapshot that the run was resumed from to --model_save_dir/`name`, unless it is there already."""
    folder = os.path.join(args.model_save_dir, name)
    if rank() == 0 and run_state.number_and_iteration(folder) != (start.run_number, start.iteration):
        print(f"Copying {start.folder} to {folder}.", flush=True)
        series.copy(start.folder, folder)


def _warn(text):
    if rank() == 0:
        print_warning(text)
