"""Notices, before the first step, about flags that may not do what the user meant."""

from ranks.ranks import rank
from snapshots import series
from training.optimizer import learning_rate_at


def tell(args, start):
    """Prints, on the first rank, a notice for each surprising consequence of the flags.

    `start` is the resume.StartingPoint of the run.
    """
    if rank() == 0:
        for notice in (*_of_schedule(args, start), *_of_snapshots(args, start)):
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
            "this run saves no snapshot: it has fewer iterations than --model_save_every_n_iter="
            f"{args.model_save_every_n_iter}, and --save_last_snapshot is not given"
        )
    if not args.resume and (earlier := series.complete_snapshots(args.model_save_dir)):
        yield (
            f"{args.model_save_dir} holds snapshots of an earlier run, the newest {earlier[-1].name}: this run "
            "replaces those of the same name; --resume would go on from it"
        )
