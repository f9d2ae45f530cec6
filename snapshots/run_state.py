"""The state of the run that saved a snapshot, which --resume needs besides the model.

    <snapshot>/System-Train-TrainStep-<job>/run_state    a JSON object, and on a second line the SHA-256 of the first

Other readers of snapshots ignore this file, as does --model_load_dir, which starts a new run.
"""

import base64
import hashlib
import json
import math
import os
from pathlib import Path

from system.errors import UserError, describe_os_error
from system.input_files import open_input

FILE = "run_state"
_TYPES = {"run_number": int, "iteration": int, "run": dict, "losses": dict, "positions": list}
_LARGEST = 1 << 28  # characters
_STEP_FOLDER = "System-Train-TrainStep-"


def encode(state):
    """Returns the bytes of the file for `state`, a JSON-serialisable dict."""
    text = json.dumps(state)
    return f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def read(folder):
    """Returns the state in the snapshot `folder`, or None if it has none. Raises UserError if it is damaged."""
    try:
        steps = [Path(entry) for entry in os.scandir(folder) if entry.name.startswith(_STEP_FOLDER) and entry.is_dir()]
        # Not os.path.exists, which is False in a folder that cannot be read.
        paths = sorted(step / FILE for step in steps if FILE in os.listdir(step))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {describe_os_error(error)}") from None
    if not paths:
        return None
    if len(paths) > 1:
        raise UserError(f"{folder}: has the state of more than one run: {paths[0]} and {paths[1]}; remove one of them")
    try:
        with open_input(paths[0], encoding="ascii") as file:
            text, digest = file.read(_LARGEST).splitlines()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError
        return json.loads(text)
    except OSError as error:
        raise UserError(f"{paths[0]}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{paths[0]}: is damaged; resume from another snapshot, or remove the file") from None


def is_complete(state):
    """Whether `state` is complete and valid for this version."""
    if not isinstance(state, dict) or set(state) != _TYPES.keys():
        return False
    if not all(type(state[name]) is kind for name, kind in _TYPES.items()):
        return False
    run, counts = state["run"], (state["run_number"], state["iteration"])
    return (
        all(0 <= count < 2**31 for count in counts)
        and all(isinstance(run.get(name), dict) for name in ("same", "similar"))
        and all(name.isidentifier() and _are_losses(values) for name, values in state["losses"].items())
        and _are_positions(state["positions"])
    )


def _are_losses(values):
    return isinstance(values, list) and bool(values) and all(type(x) is float and math.isfinite(x) for x in values)


def _are_positions(positions):
    """Whether the first rank has its reader's position and every rank its random streams', or none has either."""
    if not positions or not all(isinstance(position, dict) for position in positions):
        return False
    try:
        decoded = [(decode_bytes(position["reader"]), decode_bytes(position["random"])) for position in positions]
    except (KeyError, TypeError, ValueError):
        return False
    return len({decoded[0][0] is None, *(random is None for _, random in decoded)}) == 1


def encode_bytes(data):
    """Encodes bytes or None for JSON."""
    return None if data is None else base64.b64encode(data).decode()


def decode_bytes(text):
    """Inverts encode_bytes. Raises TypeError or ValueError if `text` is invalid."""
    return None if text is None else base64.b64decode(text, validate=True)


def number_and_iteration(folder):
    """Returns (run number, iteration) of the snapshot `folder`, or (0, 0) if it has no valid state."""
    try:
        state = read(folder)
    except UserError:
        return 0, 0
    return (state["run_number"], state["iteration"]) if is_complete(state) else (0, 0)
