"""all_results.npy: the logits that run_squad_predict.py writes and npy2json.py reads.

The description of the records (records/description.py) follows the array as JSON; NumPy ignores bytes after the array.
Files from older versions have no description.
"""

import json
import os

import numpy as np

from system.errors import UserError
from system.input_files import open_input, reading
from system.output_files import atomic_file

# Of padding that is not computed.
LOGIT_OF_PADDING = -10000.0

_MAGIC = b"\x93NUMPY"


def result_dtype(seq_length):
    """Returns the dtype of one result: the unique id of a window, and the start and end logits of its tokens."""
    return np.dtype(
        [
            ("unique_id", np.int64),
            ("start_logits", np.float32, (seq_length,)),
            ("end_logits", np.float32, (seq_length,)),
        ]
    )


def check_replaceable(path):
    """Raises UserError if `path` exists and is not a NumPy file, so that a wrong path overwrites nothing else."""
    if not os.path.exists(path):
        return
    is_array = False
    if os.path.isfile(path):
        with reading(f"--all_results_file={path}"), open_input(path, "rb") as file:
            is_array = file.read(len(_MAGIC)) == _MAGIC
    if not is_array:
        raise UserError(f"--all_results_file={path}: exists and is not a NumPy file, so results will not replace it")


def write(path, results, described=None):
    """Writes `results`, an array of `result_dtype`, for np.load(path, allow_pickle=False).

    `described`: the description of their records, or None.
    """
    with atomic_file(path) as file:
        np.save(file, results, allow_pickle=False)
        if described is not None:
            file.write(json.dumps(described).encode())
    print(f"Saved {len(results)} results to {path}.", flush=True)
