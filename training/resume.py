"""--resume: goes on from the newest complete snapshot of --model_save_dir as if the run had never been stopped.

What a snapshot keeps of its run (snapshots/run_state.py) tells where the run was, and whether this one can be the same.
"""

import dataclasses
import hashlib
import os

import config
from engine import native
from engine.oneflow_loader import nn
from ranks.ranks import from_every_rank, from_first_rank, rank
from snapshots import run_state, series
from system.errors import UserError, one_line
from system.output_files import remove_abandoned
from training import job_state, model_flags

# A run with another value of one of these flags is another run; so is one of another job, data set or batch size.
_FLAGS_OF_A_RUN = (
    "seq_length",
    "max_predictions_per_seq",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size_per_head",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "vocab_size",
    "seed",
)
# People change these on the way, knowing that the numbers then change too: a notice tells.
_FLAGS_THAT_MAY_CHANGE = (
    "iter_num",
    "learning_rate",
    "weight_decay_rate",
    "warmup_batches",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "use_fp16",
)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins."""

    iteration: int  # how many have run
    train_step: int
    run_number: int  # of the runs that save in --model_save_dir, from 1
    run: dict  # as _describe_run gives it, for whoever resumes this run
    losses: dict  # name -> the losses of the iterations since the last printed line
    files: dict  # name -> bytes of the files that describe the model in its snapshots
    folder: str | None = None  # the snapshot that the run goes on from, with --resume


def start(job, args, data_set):
    """Readies `job` for its first call: from a snapshot to resume, else from --model_load_dir or anew; returns a Start.

    Raises UserError if the newest snapshot cannot be one of this run.
    """
    files = model_flags.files_of_model(args, data_set)
    run = from_first_rank(lambda: _describe_run(job, args, data_set))
    folder = from_first_rank(lambda: _newest(args)) if args.resume else None
    if folder is None:
        if args.resume:
            print(
                f"Notice: {args.model_save_dir} has no snapshot to resume from, so the run starts afresh.", flush=True
            )
        number = from_first_rank(lambda: series.next_run_number(args.model_save_dir))
        train_step = job_state.initialise(job, args.model_load_dir, args.skip_checksums, args.reset_train_step)
        if train_step > 0:
            _tell_rest_of_schedule(job, args, train_step)
        return Start(0, train_step, number, run, {}, files)
    state = from_first_rank(lambda: _read_state(folder, run))
    train_step = job_state.initialise(job, folder, args.skip_checksums)
    notices = state["notices"] + _restore_position(job, args, state)
    print(f"Resuming after {state['iteration']} of {args.iter_num} iterations.", flush=True)
    for notice in notices:
        print(one_line(f"Notice: {notice}."), flush=True)
    return Start(state["iteration"], train_step, state["run_number"], run, state["losses"], files, folder)


def _tell_rest_of_schedule(job, args, train_step):
    """Says for how long a run that begins with a later `train_step` than 0 learns."""
    learning = max(0, args.iter_num - train_step)
    print(
        f"Notice: the train step of the snapshot is {train_step}, so the learning rate is 0 after {learning} of "
        f"{args.iter_num} iterations; give --reset_train_step to begin the schedule anew.",
        flush=True,
    )


def state_to_save(start, batches, iteration, losses):
    """What a snapshot is to keep of the run, for run_state.encode; all ranks call it, when no iteration is under way.

    `batches` have been read since the run began at `start`; `losses` are those that the next printed line will count.
    """
    position = {"reader": native.reader_state(batches), "random": native.random_state()}
    position = {name: run_state.encode_bytes(data) for name, data in position.items()}
    return {
        "run_number": start.run_number,
        "run": start.run,
        "iteration": iteration,
        "losses": losses,
        "positions": from_every_rank(position),
    }


def _newest(args):
    """The newest snapshot in --model_save_dir, or None. Removes what killed processes have left there."""
    remove_abandoned(args.model_save_dir, lambda name: "snapshot" in name)
    found = series.complete_snapshots(args.model_save_dir)
    return str(found[-1]) if found else None


def _describe_run(job, args, data_set):
    """What makes a run what it is: {"same": what must not differ, "similar": what a notice tells of if it does}."""
    values = vars(args)
    same = {"job": type(job).__name__, "global batch size": config.global_batch_size(args)}
    same |= {f"--{name}": values.get(name) for name in _FLAGS_OF_A_RUN}
    same["data"] = f"{len(data_set.paths)} part(s), checksum {_fingerprint(data_set.paths)}"
    similar = {f"--{name}": values.get(name) for name in _FLAGS_THAT_MAY_CHANGE}
    similar["device"] = next(iter(job.parameters_of_model())).placement.type
    similar["kernels"] = native.describe().split(",")[0]
    return {"same": same, "similar": similar}


def _fingerprint(paths):
    """A checksum of the sizes of files and of what they begin with: files of any size are told apart at once."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(f"{os.fstat(file.fileno()).st_size}\n".encode() + file.read(65536))
    return digest.hexdigest()[:16]


def _read_state(folder, run):
    """The state in the snapshot `folder`, checked, with `notices` in words on what will not be exact."""
    state = run_state.read(folder)
    if state is None:
        raise UserError(
            f"{folder}: does not tell what run it is of (an older version has saved it, or a converter), so --resume "
            f"cannot go on from it: start a run from it with --model_load_dir={folder}, saving elsewhere"
        )
    if not run_state.is_complete(state):
        raise UserError(f"{folder}: its {run_state.FILE} is not one of this version; resume from another snapshot")
    for name, value in run["same"].items():
        if state["run"]["same"].get(name) != value:
            raise UserError(
                f"--resume: {folder} is of a run with {name} = {state['run']['same'].get(name)}, not {value}; give the "
                "flags of that run, or start another one from it with --model_load_dir, saving elsewhere"
            )
    saved = state["run"]["similar"]
    changed = [name for name, value in run["similar"].items() if saved.get(name) != value]
    details = ", ".join(f"{name} was {saved.get(name)}, is {run['similar'][name]}" for name in changed)
    return {**state, "folder": folder, "notices": [f"not quite the run that was stopped: {details}"] if changed else []}


def _restore_position(job, args, state):
    """Sets this rank's reader and random state to where they were; returns in words what could not be, as a list."""
    positions = state["positions"]
    ranks = config.rank_count(args)
    if len(positions) != ranks:
        reason = f"it was saved with {len(positions)} as the number of ranks, not {ranks}"
    elif positions[0]["reader"] is None:
        reason = "it was saved without the native kernels"
    elif native.random_state() is None:
        reason = "the native kernels are not in use"
    else:
        own = positions[rank()]
        try:
            if own["reader"] is not None:
                native.restore_reader(run_state.decode_bytes(own["reader"]))
            native.restore_random_state(run_state.decode_bytes(own["random"]))
        except UserError as error:
            raise UserError(f"{state['folder']}: {error}; resume from another snapshot") from None
        on_gpu = state["run"]["similar"].get("device") == "cuda"
        return ["dropout draws other masks, as its state on GPUs is not saved"] if on_gpu else []
    # The same order again would show the model the same records again.
    job.loader.to(nn.Module).reader.seed += state["iteration"]
    return [f"model, moments and step are exact, but data and dropout begin anew in another order, as {reason}"]
