"""Saves and restores a job's parameters, Adam moments and train step as a snapshot."""

import os

import numpy as np

from engine.oneflow_loader import flow
from ranks.ranks import from_first_rank, rank, wait_for_all_ranks
from snapshots import checksums, layout, run_state, variables
from system.errors import RunError, UserError, describe_os_error
from system.progress import print_line

_TRAIN_STEP = "System-Train-TrainStep"  # OneFlow's name for it within a graph
_STEP_LIMIT = 2**53  # far beyond any run
_MODEL = "model."  # the prefix of the optimiser's variables: the graph's attribute that holds the model


def save(job, folder, state, files, with_optimizer=True):
    """Writes `job` after its last step as the snapshot `folder`, with `state` for snapshots/run_state.py.

    `files`, name -> bytes, describe the model (snapshots/model_files.py). Without the optimiser's moments, nothing can
    be resumed from it.

    All ranks take part, the first writes. Where that fails, the snapshot that stood there stays; returns in words what
    has failed, on all ranks, or None. Raises RunError, on all ranks, if there are numbers in it that are not finite.
    """
    # A rank that could not read its part of the last batch never gets here, and the bad step is not saved.
    wait_for_all_ranks()
    print_line(f"Saving model to {folder}.")
    arrays = _arrays(job, with_optimizer)
    failure, is_poisoned = None, False
    if rank() == 0:
        try:
            failure = _write(folder, arrays, {run_state.FILE: run_state.encode(state)}, files)
        except OSError as error:
            failure = describe_os_error(error)
        except RunError as error:
            failure, is_poisoned = str(error), True
    for _ in arrays:
        pass  # After a failure, ranks still exchange the remaining variables.
    failure, is_poisoned = from_first_rank(lambda: (failure, is_poisoned))
    if is_poisoned:
        raise RunError(failure)
    return failure


def _write(folder, arrays, files_of_step, files_of_model):
    """Writes a snapshot; returns None, or why none may stand there. Raises RunError for values that are not finite."""
    if os.path.lexists(folder) and not os.path.isfile(os.path.join(folder, layout.DONE_FILE)):
        return f"{folder} is no snapshot, so a snapshot will not replace it"
    with layout.open_writer(folder) as write:
        for name, array in arrays:
            if not np.isfinite(array).all():
                raise RunError(f"{name} has values that are not finite, so {folder} is not saved")
            files = files_of_model if name == variables.WORD_EMBEDDINGS else None
            write(name, array, files_of_step if name.startswith(_TRAIN_STEP) else files)
    return None


def _arrays(job, with_optimizer):
    """Yields (name in a snapshot, whole NumPy array on the first rank, else None) for each variable."""
    for name, tensor in _tensors(job, with_optimizer):
        whole = tensor.to_global(sbp=flow.sbp.broadcast)
        yield name, whole.to_local().numpy() if rank() == 0 else None


def _tensors(job, with_optimizer):
    """Yields (name in a snapshot, global tensor) for each variable."""
    state = job.state_dict()
    for name, tensor in state["model"].items():
        yield variables.variable_name(name), tensor
    for name, tensor in state.items():
        if name == _TRAIN_STEP:
            yield name_of_step(job), tensor
        elif with_optimizer and name.startswith(_MODEL) and name.endswith(("-m", "-v")):
            yield variables.variable_name(name[len(_MODEL) :]), tensor


def initialise(job, model_load_dir, skip_checksums=False, reset_train_step=False):
    """Prepares `job` for its first step, from the snapshot `model_load_dir` if given; returns the train step."""
    if model_load_dir:
        print(f"Restoring model from {model_load_dir}.", flush=True)
        return restore(job, model_load_dir, skip_checksums, reset_train_step)
    print("Init model on demand", flush=True)
    return 0


def restore_for_prediction(job, folder, skip_checksums=False):
    """Takes the parameters of `job`'s model from the snapshot `folder`.

    Raises UserError unless it has them all, undamaged.
    """
    print(f"Restoring model from {folder}.", flush=True)
    parameters = _parameters(job)
    names = from_first_rank(lambda: layout.variable_names(folder))
    missing = [name for name in parameters if name not in names]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; give the snapshot of a model fine-tuned for this task")
    digests = _read_checksums(folder, list(parameters), skip_checksums)
    for name, (_, parameter) in parameters.items():
        parameter.copy_(_read_like(parameter, folder, name, digests))


def restore(job, folder, skip_checksums=False, reset_train_step=False):
    """Takes the state of `job`, before its first step, from the snapshot `folder`; returns the train step.

    With `reset_train_step` that is 0, whatever the folder has. Only the first rank reads. Parameters that the folder
    lacks keep their initial values and are named in one line; other variables it has are counted, and so are moments of
    other values than the folder's, which a variable that was copied into it leaves behind. Raises UserError for what
    does not fit or, unless `skip_checksums`, is damaged.
    """
    parameters = _parameters(job)
    names = from_first_rank(lambda: layout.variable_names(folder))
    step_name = name_of_step(job)
    has_step = step_name in names and not reset_train_step
    step = from_first_rank(lambda: _read_step(folder, step_name)) if has_step else 0
    digests = _read_checksums(folder, names, skip_checksums)
    stale = from_first_rank(lambda: layout.stale_moments(folder, names, digests))
    state = {}
    for name, (parameter_name, parameter) in parameters.items():
        if name in names:
            parameter.copy_(_read_like(parameter, folder, name, digests))
        for suffix in layout.MOMENT_SUFFIXES:
            if name + suffix in names and name + suffix not in stale:
                state[_MODEL + parameter_name + suffix] = _read_like(parameter, folder, name + suffix, digests)
    if step > 0:
        placement = next(iter(parameters.values()))[1].placement
        state[_TRAIN_STEP] = flow.tensor([step], dtype=flow.int64, placement=placement, sbp=flow.sbp.broadcast)
    job.load_state_dict(state)
    missing = [name for name in parameters if name not in names]
    if missing:
        print(f"Initialised, as the snapshot lacks them: {', '.join(missing)}.")
    known = {name + suffix for name in parameters for suffix in ("", *layout.MOMENT_SUFFIXES)} | {step_name}
    if stale:
        print(f"Ignored, as their variables have been replaced since: {len(stale)} of the moments.")
    others = [name for name in names if name not in known]
    if others:
        print(f"Ignored other variables of the snapshot: {len(others)}.", flush=True)
    return step


def check_has_moments(job, folder):
    """Raises UserError if the snapshot `folder`, from which a run is to be resumed, lacks moments of the optimiser."""
    names = set(layout.variable_names(folder))
    needed = {name + suffix for name in _parameters(job) for suffix in layout.MOMENT_SUFFIXES}
    if missing := needed - names:
        raise UserError(
            f"--resume: {folder} lacks {len(missing)} of the optimiser's moments, as with --save_optimizer=False; "
            f"start a run from it with --model_load_dir={folder} --reset_train_step, saving elsewhere"
        )


def name_of_step(job):
    """Returns the name of the train step of `job` in snapshots."""
    return f"{_TRAIN_STEP}-{type(job).__name__}"


def _parameters(job):
    """Returns name in a snapshot -> (name in the model, parameter)."""
    model = job.model.to(flow.nn.Module)
    return {variables.variable_name(name): (name, parameter) for name, parameter in model.named_parameters()}


def _read_checksums(folder, names, skip_checksums):
    """Returns the checksums for the first rank, which reads for all ranks."""
    if rank() > 0 or skip_checksums:
        return {}
    digests = layout.read_checksums(folder, names)
    layout.check_owners(folder, names)
    unchecked = [name for name in names if checksums.has_checksum(name) and name not in digests]
    if unchecked:
        print(f"Not verified, for lack of a checksum: {len(unchecked)} of {len(names)} variables.", flush=True)
    return digests


def _read_step(folder, name):
    """Returns the train step of a snapshot. It has no checksum; raises UserError for an impossible number."""
    step = int(layout.read_variable(folder, name, (1,), np.int64)[0])
    if not 0 <= step < _STEP_LIMIT:
        raise UserError(f"{folder}: {name} says {step}, which is not a number of steps; fill its file with zeros")
    return step


def _read_like(parameter, folder, name, digests):
    """Returns the variable `name` with the shape and placement of `parameter`; the first rank reads it."""
    value = layout.read_variable(folder, name, parameter.shape, np.float32, digests) if rank() == 0 else []
    on_first_rank = flow.tensor(value).to_global(placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)
    return on_first_rank.to_global(placement=parameter.placement, sbp=parameter.sbp)
