"""The training loop: runs a train job, logs its losses, saves snapshots, evaluates, and stops at signals."""

import math
from typing import NamedTuple

import config
from engine.oneflow_loader import nn
from ranks.ranks import default_signals, from_every_rank, has_launcher
from records import loader
from system import signals
from system.errors import RunError
from system.progress import print_line
from training import job_state, notices, resume, save_points
from training.job import GRADIENT_NORM, SIGNALS
from training.metrics import MetricLog
from training.optimizer import learning_rate_at
from training.scoring import BatchJob


class _Iteration(NamedTuple):
    """A running or finished iteration."""

    number: int  # from 0
    train_step: int
    learning_rate: float
    outputs: dict  # of the graph


def train_and_evaluate(job_class, model, train_set, evaluation, placement, args):
    """Trains and evaluates as --do_train and --do_eval say; without --do_train evaluates the model of --model_load_dir.

    `job_class` is the task's TrainJob, `train_set` its checks.DataSet, `evaluation` an evaluation.Evaluation, or None
    without --do_eval.
    """
    if args.do_train:
        batch_size = config.global_batch_size(args)
        data = loader.OFRecordLoader(train_set, batch_size, placement, shuffle=True, seed=args.seed)
        job = job_class(model, data, args)
        train(job, args, resume.start(job, args, train_set), evaluation)
        return
    job_state.restore_for_prediction(BatchJob(model), args.model_load_dir, args.skip_checksums)
    if evaluation is not None:
        with default_signals():
            evaluation.run()


def train(job, args, start, evaluation=None):
    """Runs `job` from `start`, a resume.StartingPoint, to args.iter_num iterations; prints losses and saves snapshots.

    `evaluation`, an evaluation.Evaluation, runs when it is due and at the end, and may stop training early. The result
    of an iteration is fetched while the next one runs, so that the engine never waits for Python. After a signal, saves
    a snapshot and raises StoppedTogether on all ranks. Raises RunError if a loss or the gradients are not finite, or
    the last snapshot cannot be saved.
    """
    if evaluation is not None:
        evaluation.begin(start)
    if start.iteration >= args.iter_num or (evaluation is not None and evaluation.is_over()):
        _end_at_once(args, start, evaluation)
        return
    notices.tell(args, start, evaluation)
    # Signals come first: once the log's file exists, a signal leads to a saved snapshot.
    with (
        signals.recorded(second_kills=not has_launcher()) as received,
        MetricLog(args, type(job).__name__, start.train_step, start.losses) as log,
    ):
        saves = save_points.SavePoints(job, args, start, log)
        if evaluation is not None and evaluation.is_missing(start.iteration):
            # The train job is compiled first, as ZeRO may divide the parameters among the ranks.
            job._compile()
            _evaluate(evaluation, start.iteration, start.train_step - 1, log, saves)
        done = start.iteration
        running = None
        stop = 0
        is_over = evaluation is not None and evaluation.is_over()
        while done < args.iter_num and not stop and not is_over:
            if received and job.signals is not None:
                job.signals.to(nn.Module).note(received[0])
            outputs = job()
            if done == start.iteration:
                # The first call has compiled the graph; that time does not count.
                log.start()
            if running is not None:
                stop = _finish(job, running, log, saves)
            step = start.train_step + done - start.iteration
            running = _Iteration(done, step, learning_rate_at(step, args), outputs)
            done += 1
            is_evaluation_due = evaluation is not None and done < args.iter_num and evaluation.is_due(done)
            if saves.is_due(done) or is_evaluation_due:
                stop = _finish(job, running, log, saves) or stop
                running = None
            if saves.is_due(done):
                saves.save(done)
            if is_evaluation_due and not stop:
                _evaluate(evaluation, done, step, log, saves)
                is_over = evaluation.is_over()
            if job.signals is None:
                stop = next(iter(received), 0)
        if running is not None:
            _finish(job, running, log, saves)
        if done < args.iter_num and not is_over:
            saves.stop(done, stop)
        saves.finish(done)
        if is_over:
            print_line(f"Training stops after {done} iterations: {evaluation.describe_end()}.")
        elif evaluation is not None:
            _evaluate(evaluation, done, step, log, saves)
            stop = max(from_every_rank(next(iter(received), 0)))
            if stop:
                saves.stop(done, stop)
        log.print_average_speed()


def _end_at_once(args, start, evaluation):
    """Completes a resumed run that has no iteration left, or that its evaluations had stopped early."""
    if start.iteration < args.iter_num:
        print(f"Nothing is left to do: {evaluation.describe_end()}.", flush=True)
    else:
        print(f"All {args.iter_num} iterations have run; nothing is left to do.", flush=True)
    if args.save_last_snapshot:
        save_points.copy(start, args, save_points.LAST)
    if evaluation is not None and start.iteration >= args.iter_num:
        values = evaluation.run(start.iteration)
        if evaluation.is_best(values):
            save_points.copy(start, args, save_points.BEST)
        evaluation.note(start.iteration, values)


def _evaluate(evaluation, iteration, train_step, log, saves):
    """Evaluates after `iteration` iterations, the last of them `train_step`, and saves the model if it is the best."""
    with log.paused():
        values = evaluation.run(iteration)
        log.add_evaluation(iteration - 1, train_step, values)
        if evaluation.is_best(values):
            saves.save_best(iteration)
        evaluation.note(iteration, values)


def _finish(job, iteration, log, saves):
    """Waits for the result of an iteration and logs it; returns the signal at which all ranks must stop, or 0.

    Raises RunError if a number is not finite, UserError if the batch could not be read.
    """
    outputs = {name: output.to_local() for name, output in iteration.outputs.items()}
    sent = outputs.pop(SIGNALS).numpy() if SIGNALS in outputs else [0]
    values = {name: float(output.numpy().mean()) for name, output in outputs.items()}
    for _ in range(job.batches_per_iteration):
        job.loader.to(nn.Module).check_batch()
    skipped = job.scales_loss and not math.isfinite(values[GRADIENT_NORM])
    if skipped:
        del values[GRADIENT_NORM]
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        place = f"iter {iteration.number} (learning rate {iteration.learning_rate:g})"
        numbers = ", ".join(f"{name} is {values[name]}" for name in bad)
        raise RunError(f"{place}: {numbers}; training stops, {saves.describe_newest()}")
    if skipped:
        log.skip_step(iteration.number)
    log.add(iteration.number, iteration.train_step, iteration.learning_rate, values)
    return int(max(sent))
