"""The loop around a train job: it runs the job, logs what comes out, saves snapshots and stops at signals."""

import math
from collections.abc import Callable
from typing import NamedTuple

from engine.oneflow_loader import nn
from ranks.ranks import from_every_rank, has_launcher
from system import signals
from system.errors import RunError
from training import notices, save_points
from training.job import GRADIENT_NORM, SIGNALS
from training.metrics import MetricLog
from training.optimizer import learning_rate_at


class _Iteration(NamedTuple):
    """One that runs, or has run."""

    number: int  # counted from 0
    train_step: int
    learning_rate: float
    outputs: dict  # of the graph


class Hook(NamedTuple):
    """What is to be done in the midst of training, on all ranks, while no iteration is under way.

    Iterations are counted as in the names of snapshots. `call` gives numbers by name, for the curves of the run; its
    time counts as no iteration's.
    """

    is_due: Callable[[int], bool]  # after so many iterations; it always is after the last one
    call: Callable[[int], dict[str, float]]


def train(job, args, start, hook=None):
    """Runs `job` up to args.iter_num iterations, printing losses and saving snapshots as the flags say.

    It begins where `start`, a resume.Start, says; `hook` is a Hook. The result of an iteration is fetched while the
    next one runs, so that the engine never waits for Python. At a signal it saves a snapshot and raises StoppedTogether
    on all ranks. Raises RunError where a loss or the gradients are not finite, or the last snapshot cannot be saved.
    """
    if start.iteration >= args.iter_num:
        save_points.complete(start, args)
        if hook is not None:
            hook.call(args.iter_num)
        return
    notices.tell(args, start)
    # The signals first: from here on one that comes is saved for, and the log's file tells that this is so.
    with (
        signals.recorded(second_kills=not has_launcher()) as received,
        MetricLog(args, type(job).__name__, start.train_step, start.losses) as log,
    ):
        saves = save_points.SavePoints(job, args, start, log)
        done = start.iteration
        running = None
        stop = 0
        while done < args.iter_num and not stop:
            if received and job.signals is not None:
                job.signals.to(nn.Module).note(received[0])
            outputs = job()
            if done == start.iteration:
                # The first call has compiled the graph, which is no part of a batch's time.
                log.start()
            if running is not None:
                stop = _finish(job, running, log, saves)
            step = start.train_step + done - start.iteration
            running = _Iteration(done, step, learning_rate_at(step, args), outputs)
            done += 1
            is_hook_due = hook is not None and done < args.iter_num and hook.is_due(done)
            if saves.is_due(done) or is_hook_due:
                stop = _finish(job, running, log, saves) or stop
                running = None
            if saves.is_due(done):
                saves.save(done)
            if is_hook_due and not stop:
                _call(hook, done, step, log)
            if job.signals is None:
                stop = next(iter(received), 0)
        if running is not None:
            _finish(job, running, log, saves)
        if done < args.iter_num:
            saves.stop(done, stop)
        saves.finish()
        if hook is not None:
            _call(hook, done, start.train_step + done - start.iteration - 1, log)
            stop = max(from_every_rank(next(iter(received), 0)))
            if stop:
                saves.stop(done, stop)
        log.print_average_speed()


def _call(hook, iteration, train_step, log):
    with log.paused():
        log.add_scalars(train_step, hook.call(iteration))


def _finish(job, iteration, log, saves):
    """Waits for the result of an iteration and logs it; returns the signal at which all ranks are to stop, or 0.

    Raises RunError if it has come out as something else than finite numbers, UserError if its batch could not be read.
    """
    outputs = {name: output.to_local() for name, output in iteration.outputs.items()}
    sent = outputs.pop(SIGNALS).numpy() if SIGNALS in outputs else [0]
    values = {name: output.item() for name, output in outputs.items()}
    job.loader.to(nn.Module).check_batch()
    skipped = job.scales_loss and not math.isfinite(values[GRADIENT_NORM])
    if skipped:
        del values[GRADIENT_NORM]
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        place = f"iter {iteration.number} (learning rate {iteration.learning_rate:g})"
        numbers = ", ".join(f"{name} is {values[name]}" for name in bad)
        raise RunError(f"{place}: {numbers}; training stops, {saves.tell_newest()}")
    if skipped:
        log.skip_step(iteration.number)
    log.add(iteration.number, iteration.train_step, iteration.learning_rate, values)
    return int(max(sent))
