"""Notices, before the first step, about flags that may not do what the user meant."""

import itertools

from ranks.ranks import rank
from snapshots import series
from training.optimizer import learning_rate_at


def tell(args, start, evaluation=None):
    """Prints, on the first rank, a notice for each surprising consequence of the flags.

    `start` is the resume.StartingPoint of the run, `evaluation` its evaluation.Evaluation, if it evaluates.
    """
    if rank() == 0:
        for notice in (*_of_schedule(args, start), *_of_snapshots(args, start), *_of_evaluations(args, evaluation)):
            print(f"Notice: {notice}.", flush=True)


def _of_schedule(args, start):
    last = start.train_step + args.iter_num - start.iteration - 1
    if args.learning_rate > 0 and 0 < args.warmup_batches > last:
        yield (
            f"--warmup_batches={args.warmup_batches} is not shorter than the run: the learning rate rises to "
            f"{learning_rate_at(last, args):.3g} at its end, not to {args.learning_rate:g}"
        )


def _of_snapshots(args, start):
    saves = args.iter_num // args.model_save_every_n_iter - start.iteration // args.model_save_every_n_iter
    if saves == 0 and not args.save_last_snapshot and not args.do_eval:
        yield (
            "this run saves no snapshot: it ends before --model_save_every_n_iter="
            f"{args.model_save_every_n_iter} is due, and --save_last_snapshot is not given"
        )
    if not args.resume and (earlier := series.complete_snapshots(args.model_save_dir)):
        yield (
            f"{args.model_save_dir} holds snapshots of an earlier run, the newest {earlier[-1].name}: this run "
            "replaces those of the same name; --resume would go on from it"
        )
    if args.resume and not args.save_optimizer:
        yield (
            "--save_optimizer=False leaves out the moments that --resume needs, so a later --resume will refuse the "
            "snapshots of this run"
        )


def _of_evaluations(args, evaluation):
    if evaluation is None or args.early_stopping is None:
        return
    due = filter(evaluation.is_due, range(1, args.iter_num))
    count = len(list(itertools.islice(due, args.early_stopping + 1)))
    if count <= args.early_stopping:
        yield (
            f"--early_stopping={args.early_stopping} does not end this run early: there are {count} evaluations before "
            "its last iteration; a smaller --eval_every_n_iter makes more"
        )
