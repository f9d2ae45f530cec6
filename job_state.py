"""Saving and restoring a job: its model's parameters, Adam's moments and the train step, as a snapshot."""

import numpy as np

import bert_util
import engine
import snapshot
from util import UserError

flow = engine.load()

_TRAIN_STEP = "System-Train-TrainStep"  # OneFlow's name for it within a graph
_MODEL = "model."  # the prefix of the optimiser's variables: the graph's attribute that holds the model


def save(job, folder):
    """Writes the state of `job` after its last step as the snapshot `folder`."""
    print(f"Saving model to {folder}.", flush=True)
    with snapshot.open_writer(folder) as write:
        for name, tensor in _tensors(job):
            write(name, tensor.to_global(sbp=flow.sbp.broadcast).to_local().numpy())


def _tensors(job):
    """(name in a snapshot, global tensor) for all that a snapshot holds."""
    state = job.state_dict()
    for name, tensor in state["model"].items():
        yield bert_util.variable_name(name), tensor
    for name, tensor in state.items():
        if name == _TRAIN_STEP:
            yield f"{_TRAIN_STEP}-{type(job).__name__}", tensor
        elif name.startswith(_MODEL) and name.endswith(("-m", "-v")):
            yield bert_util.variable_name(name[len(_MODEL) :]), tensor


def initialise(job, model_load_dir):
    """Readies `job` for its first step, from the snapshot `model_load_dir` if there is one; returns the train step."""
    if model_load_dir:
        print(f"Restoring model from {model_load_dir}.", flush=True)
        return restore(job, model_load_dir)
    print("Init model on demand", flush=True)
    return 0


def restore_for_prediction(job, folder):
    """Takes the parameters of `job`'s model from the snapshot `folder`; raises UserError unless it has them all."""
    print(f"Restoring model from {folder}.", flush=True)
    names = set(snapshot.variable_names(folder))
    parameters = _parameters(job)
    missing = [name for name in parameters if name not in names]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; give the snapshot of a model fine-tuned for this task")
    for name, (_, parameter) in parameters.items():
        parameter.copy_(_like(parameter, snapshot.read_variable(folder, name, tuple(parameter.shape), np.float32)))


def _parameters(job):
    """name in a snapshot -> (name in the model, parameter)."""
    model = job.model.to(flow.nn.Module)
    return {bert_util.variable_name(name): (name, parameter) for name, parameter in model.named_parameters()}


def restore(job, folder):
    """Takes the state of `job`, before its first step, from the snapshot `folder`; returns the train step.

    Parameters that the folder lacks keep their initial values and are named in one line; other variables it has are
    counted. Moments count only beyond train step 0: a step that is missing or set to zero starts a new schedule, and
    Adam with it. Raises UserError for what does not fit, before anything of `job` has changed.
    """
    names = set(snapshot.variable_names(folder))
    parameters = _parameters(job)
    step_name = f"{_TRAIN_STEP}-{type(job).__name__}"
    step = 0
    if step_name in names:
        step = int(snapshot.read_variable(folder, step_name, (1,), np.int64)[0])
    values = {}
    moments = {}
    for name, (parameter_name, parameter) in parameters.items():
        shape = tuple(parameter.shape)
        if name in names:
            values[name] = snapshot.read_variable(folder, name, shape, np.float32)
        for suffix in ("-m", "-v"):
            if step > 0 and name + suffix in names:
                moments[_MODEL + parameter_name + suffix] = (
                    snapshot.read_variable(folder, name + suffix, shape, np.float32),
                    parameter,
                )
    for name, value in values.items():
        parameter = parameters[name][1]
        parameter.copy_(_like(parameter, value))
    state = {name: _like(parameter, value) for name, (value, parameter) in moments.items()}
    if step > 0:
        ranks = next(iter(parameters.values()))[1].placement
        state[_TRAIN_STEP] = flow.tensor([step], dtype=flow.int64, placement=ranks, sbp=flow.sbp.broadcast)
    job.load_state_dict(state)
    _print_differences(names, parameters, step_name)
    return step


def _like(parameter, value):
    """`value` as a tensor placed as `parameter` is."""
    return flow.tensor(value, placement=parameter.placement, sbp=parameter.sbp)


def _print_differences(names, parameters, step_name):
    missing = [name for name in parameters if name not in names]
    if missing:
        print(f"Initialised, as the snapshot lacks them: {', '.join(missing)}.")
    known = {name + suffix for name in parameters for suffix in ("", "-m", "-v")} | {step_name}
    if names - known:
        print(f"Ignored {len(names - known)} other variable(s) of the snapshot.")
