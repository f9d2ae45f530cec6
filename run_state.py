"""What a snapshot knows of the run that saved it, beside the model: all that --resume needs to go on where it was.

    <snapshot>/System-Train-TrainStep-<job>/run_state    a JSON object, and on a second line the SHA-256 of the first

Readers of snapshots that do not know this file pass over it. It is for --resume alone; --model_load_dir starts a run.
"""

import hashlib
import json
from pathlib import Path

from util import UserError

FILE = "run_state"
_TYPES = {"run_number": int, "iteration": int, "run": dict, "losses": dict, "positions": list}
_STEP_FOLDERS = "System-Train-TrainStep-*"


def encode(state):
    """The contents of the file for `state`, a dict of what JSON can carry."""
    text = json.dumps(state)
    return f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def read(folder):
    """The state in the snapshot `folder`, or None if it has none. Raises UserError if it is damaged."""
    paths = sorted(Path(folder).glob(f"{_STEP_FOLDERS}/{FILE}"))
    if not paths:
        return None
    if len(paths) > 1:
        raise UserError(f"{folder}: has the state of more than one run: {paths[0]} and {paths[1]}; remove one of them")
    try:
        text, digest = paths[0].read_text().splitlines()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError
        return json.loads(text)
    except OSError as error:
        raise UserError(f"{paths[0]}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{paths[0]}: is damaged; resume from another snapshot, or remove the file") from None


def is_complete(state):
    """Whether this is a state that this version has saved."""
    if not isinstance(state, dict) or set(state) != _TYPES.keys():
        return False
    return all(isinstance(state[name], kind) for name, kind in _TYPES.items()) and bool(state["positions"])


def number_and_iteration(folder):
    """The number of the run that saved the snapshot `folder` and its iteration; (0, 0) if it does not tell."""
    try:
        state = read(folder)
    except UserError:
        return 0, 0
    return (state["run_number"], state["iteration"]) if is_complete(state) else (0, 0)
