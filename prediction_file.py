"""all_results.npy: what run_squad_predict.py hands to npy2json.py."""

import numpy as np

from util import atomic_file


def result_dtype(seq_length):
    """The type of one result: the unique id of a window, and for each of its tokens a start and an end logit."""
    return np.dtype(
        [
            ("unique_id", np.int64),
            ("start_logits", np.float32, (seq_length,)),
            ("end_logits", np.float32, (seq_length,)),
        ]
    )


def write(path, results):
    """Writes `results`, an array of `result_dtype`, so that np.load(path, allow_pickle=False) reads them."""
    with atomic_file(path) as file:
        np.save(file, results, allow_pickle=False)
    print(f"Saved {len(results)} results to {path}.", flush=True)
