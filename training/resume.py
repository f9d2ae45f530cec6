"""--resume: continues from the newest complete snapshot of --model_save_dir as if the run had not been stopped.

The state of the run in a snapshot (snapshots/run_state.py) says where the run was, and with which flags and data.
"""

import dataclasses
import functools
import hashlib
import os

import config
from engine import native, operators
from engine.oneflow_loader import nn
from ranks.ranks import from_every_rank, from_first_rank, rank
from snapshots import layout, run_state, series
from system.errors import UserError, one_line
from system.output_files import remove_abandoned
from training import job_state, model_flags

# Parts are compared in blocks of this many bytes spread over them: 16 MiB over all parts, at least four blocks a part.
_BLOCK = 16384
_BLOCKS = 1024
_FEWEST_BLOCKS_OF_A_PART = 4

# The values of flags in runs of older versions, whose snapshots lack them.
_FLAGS_OF_OLDER_RUNS = {
    "--num_accumulation_steps": 1,
    "--activation_checkpointing": False,
    "--optimizer_type": "adam",
    "--skip_padding": False,
}


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The point where a run starts."""

    iteration: int  # completed iterations
    train_step: int
    run_number: int  # among the runs that save in --model_save_dir, from 1
    run: dict  # from _describe_run, to be compared by a later --resume
    losses: dict  # name -> losses since the last printed line
    files: dict  # name -> bytes of the files that describe the model in snapshots
    folder: str | None = None  # the snapshot that --resume continues from


def start(job, args, data_set):
    """Initialises `job` from the snapshot to resume, --model_load_dir or random values; returns a StartingPoint.

    Raises UserError if the newest snapshot is not of this run.
    """
    files = model_flags.files_of_model(args, data_set)
    folder = from_first_rank(lambda: _newest(args)) if args.resume else None
    if folder is not None and args.skip_padding is None:
        operators.skip_padding(operators.skips_padding() and from_first_rank(lambda: _skipped_padding(folder)))
    run = from_first_rank(lambda: _describe_run(job, args, data_set))
    if folder is None:
        if args.resume:
            print(
                f"Notice: {args.model_save_dir} has no snapshot to resume from, so the run starts afresh.", flush=True
            )
        number = from_first_rank(lambda: series.next_run_number(args.model_save_dir))
        train_step = job_state.initialise(job, args.model_load_dir, args.skip_checksums, args.reset_train_step)
        _tell_other_optimizer(args)
        if train_step > 0 and args.lr_schedule != "constant":
            _tell_rest_of_schedule(job, args, train_step)
        return StartingPoint(0, train_step, number, run, {}, files)
    state = from_first_rank(lambda: _read_state(folder, run))
    from_first_rank(lambda: job_state.check_has_moments(job, folder))
    train_step = job_state.initialise(job, folder, args.skip_checksums)
    notices = state["notices"] + _restore_position(job, args, state)
    print(f"Resuming after {state['iteration']} of {args.iter_num} iterations.", flush=True)
    for notice in notices:
        print(one_line(f"Notice: {notice}."), flush=True)
    return StartingPoint(state["iteration"], train_step, state["run_number"], run, state["losses"], files, folder)


def _skipped_padding(folder):
    """Returns whether the run that saved the snapshot `folder` skipped padding."""
    try:
        return run_state.read(folder)["run"]["similar"]["--skip_padding"] is True
    except (KeyError, TypeError):
        return False  # an older run; _read_state says what else may be wrong


def _tell_other_optimizer(args):
    """Reports moments in --model_load_dir of another optimiser, which the run goes on from all the same."""
    if args.model_load_dir is None:
        return
    saved = from_first_rank(lambda: _optimizer_of(args.model_load_dir))
    if saved not in (None, args.optimizer_type):
        print(
            f"Notice: {args.model_load_dir} has the moments of --optimizer_type={saved}; --optimizer_type="
            f"{args.optimizer_type} goes on from them.",
            flush=True,
        )


def _optimizer_of(folder):
    """Returns the optimiser whose moments the snapshot `folder` has; None without moments, or where it is not known."""
    if not any(name.endswith(layout.MOMENT_SUFFIXES) for name in layout.variable_names(folder)):
        return None
    try:
        state = run_state.read(folder)
    except UserError:
        return None
    try:
        return state["run"]["same"]["--optimizer_type"]
    except (KeyError, TypeError):
        # Older versions had no other, nor has TensorFlow's BERT.
        return _FLAGS_OF_OLDER_RUNS["--optimizer_type"]


def _tell_rest_of_schedule(job, args, train_step):
    """Reports the iterations left in the schedule of a run that starts at a `train_step` above 0."""
    learning = max(0, args.iter_num - train_step)
    print(
        f"Notice: the train step of the snapshot is {train_step}, so the learning rate is {args.end_learning_rate:g} "
        f"after {learning} of {args.iter_num} iterations; give --reset_train_step to begin the schedule anew.",
        flush=True,
    )


def state_to_save(start, batches, iteration, losses):
    """Returns the state of the run for run_state.encode. All ranks call it while no iteration is running.

    `batches` is the number read since `start`; `losses` are those since the last printed line.
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
    """Returns the newest snapshot in --model_save_dir, or None. Removes the temporary folders of killed processes."""
    remove_abandoned(args.model_save_dir, lambda name: "snapshot" in name)
    found = series.complete_snapshots(args.model_save_dir)
    return str(found[-1]) if found else None


def _describe_run(job, args, data_set):
    """Returns {"same": what must be equal to resume, "similar": what gives a notice if it differs, "times": time stamps
    of the parts, which only hint at other data}.
    """
    same, similar = config.flags_of_run(args)
    same |= {"job": type(job).__name__, "global batch size": config.global_batch_size(args)}
    same["data"] = f"{len(data_set.paths)} part(s), checksum {_checksum(data_set.paths, _first_bytes)}"
    blocks = max(_FEWEST_BLOCKS_OF_A_PART, _BLOCKS // len(data_set.paths))
    same["blocks of the data"] = _checksum(data_set.paths, functools.partial(_spread_blocks, count=blocks))
    similar["device"] = next(iter(job.parameters_of_model())).placement.type
    similar["kernels"] = native.describe().split(",")[0]
    similar["--skip_padding"] = operators.skips_padding()
    sizes_and_times = [(stat.st_size, stat.st_mtime) for stat in map(os.stat, data_set.paths)]
    # The time stamp of a part that is compared whole adds nothing.
    times = [int(time) if size > blocks * _BLOCK else 0 for size, time in sizes_and_times]
    return {"same": same, "similar": similar, "times": times}


def _checksum(paths, read):
    """Returns a checksum of what read(file, size in bytes) yields for each file."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            for data in read(file, os.fstat(file.fileno()).st_size):
                digest.update(data)
    return digest.hexdigest()[:16]


def _first_bytes(file, size):
    """Yields a file's size and its first 64 KiB."""
    yield f"{size}\n".encode() + file.read(65536)


def _spread_blocks(file, size, count):
    """Yields `count` blocks spread over a file, which cover it if it is small enough."""
    last = max(0, size - _BLOCK)
    for index in range(count):
        file.seek(last * index // (count - 1))
        yield file.read(_BLOCK)


def _read_state(folder, run):
    """Returns the checked state in the snapshot `folder`, with `notices` about what will not be exact."""
    state = run_state.read(folder)
    if state is None:
        raise UserError(
            f"{folder}: does not tell what run it is of (an older version has saved it, or a converter), so --resume "
            f"cannot go on from it: start a run from it with --model_load_dir={folder}, saving elsewhere"
        )
    if not run_state.is_complete(state):
        raise UserError(f"{folder}: its {run_state.FILE} is not one of this version; resume from another snapshot")
    # A snapshot of an older version lacks entries, which then count as equal.
    saved = {**_FLAGS_OF_OLDER_RUNS, **state["run"]["same"]}
    for name, value in run["same"].items():
        if saved.get(name, value) != value:
            raise UserError(
                f"--resume: {folder} is of a run with {name} = {saved[name]}, not {value}; give the flags and the "
                "data of that run, or start another one from it with --model_load_dir, saving elsewhere"
            )
    return {**state, "folder": folder, "notices": [*_changes(run, state["run"]), *_newer_parts(run, state["run"])]}


def _changes(run, saved):
    """Returns notices, a list, on the differences to the saved run that are allowed."""
    now, before = run["similar"], {**_FLAGS_OF_OLDER_RUNS, **saved["similar"]}
    changed = [name for name, value in now.items() if before.get(name, value) != value]
    details = ", ".join(f"{name} was {before[name]}, is {now[name]}" for name in changed)
    return [f"not quite the run that was stopped: {details}"] if changed else []


def _newer_parts(run, saved):
    """Returns notices, a list, on parts whose time stamps differ from the saved run's."""
    now, before = run["times"], saved.get("times", [])
    if not isinstance(before, list) or len(before) != len(now):
        return []
    changed = [index for index in range(len(now)) if now[index] != before[index]]
    if not changed:
        return []
    return [
        f"{len(changed)} of {len(now)} part(s) of the data, number {changed[0]} first, may not be what they were when "
        "the run was stopped: their time stamps differ; sizes and the blocks that have been compared do not"
    ]


def _restore_position(job, args, state):
    """Restores this rank's reader position and random state; returns notices, a list, on what could not be restored."""
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
    # Another seed: the same order would repeat the records already seen.
    job.loader.to(nn.Module).reader.seed += state["iteration"]
    return [f"model, moments and step are exact, but data and dropout begin anew in another order, as {reason}"]
