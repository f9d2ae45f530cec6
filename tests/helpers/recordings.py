"""Recorded outputs of other programs in tests/recorded, which the tests compare with.

A recording NAME.npz holds a dict of dicts: case -> output -> array or bytes. NAME.txt says what made it.
"""

import numpy as np

from running import ROOT

FOLDER = ROOT / "tests" / "recorded"


def write(name, outputs, made_by):
    """Writes a recording; equal outputs give equal bytes. `made_by`: the lines of NAME.txt."""
    arrays = {
        f"{case}/{output}": np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
        for case, of_case in outputs.items()
        for output, value in of_case.items()
    }
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    (FOLDER / f"{name}.txt").write_text("\n".join(made_by) + "\n")


def read(name):
    """Reads a recording: case -> output -> array or bytes."""
    outputs: dict[str, dict[str, np.ndarray | bytes]] = {}
    with np.load(FOLDER / f"{name}.npz") as arrays:
        for key, value in arrays.items():
            case, output = key.split("/")
            outputs.setdefault(case, {})[output] = value.tobytes() if value.dtype == np.uint8 else value
    return outputs
