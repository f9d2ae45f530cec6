"""all_results.npy: what run_squad_predict.py hands to npy2json.py.

Behind the array, where NumPy does not look, stands the description of the records that were predicted, as JSON
(records/description.py). Files of older versions have none.
"""

import json
import os

import numpy as np

from system.errors import UserError
from system.input_files import open_input, reading
from system.output_files import atomic_file

_MAGIC = b"\x93NUMPY"


def result_dtype(seq_length):
    """The type of one result: the unique id of a window, and for each of its tokens a start and an end logit."""
    return np.dtype(
        [
            ("unique_id", np.int64),
            ("start_logits", np.float32, (seq_length,)),
            ("end_logits", np.float32, (seq_length,)),
        ]
    )


def check_replaceable(path):
    """Raises UserError if something else than a NumPy array stands at `path`: data, say, after a slip of the hand."""
    if not os.path.exists(path):
        return
    is_array = False
    if os.path.isfile(path):
        with reading(f"--all_results_file={path}"), open_input(path, "rb") as file:
            is_array = file.read(len(_MAGIC)) == _MAGIC
    if not is_array:
        raise UserError(f"--all_results_file={path}: exists and is not a NumPy file, so results will not replace it")


def write(path, results, described=None):
    """Writes `results`, an array of `result_dtype`, so that np.load(path, allow_pickle=False) reads them.

    `described` is the description of the records that they are of, if there is one.
    """
    with atomic_file(path) as file:
        np.save(file, results, allow_pickle=False)
        if described is not None:
            file.write(json.dumps(described).encode())
    print(f"Saved {len(results)} results to {path}.", flush=True)
