"""The windows of a SQuAD data set in batches that hold little padding, for prediction.

Windows of similar length go into one batch, which is cut behind its longest. Each length that batches are cut to takes
a graph of its own, and so time to compile: there are as many as pay.
"""

import collections
import itertools

import numpy as np

from records import checks

# Batches are made of so many windows at a time.
WINDOWS_AT_A_TIME = 4096
# Lengths are multiples of this, or the whole length.
_LENGTH_STEP = 32
# What compiling a graph takes, in tokens of BERT-base.
_TOKENS_OF_A_GRAPH = 4096


def read_windows(data_set, count):
    """Yields the first `count` windows, at most WINDOWS_AT_A_TIME at once; of equal unique ids the first one only.

    As dicts of int32 arrays [N, length] by field name. Raises UserError, saying file and place, at a record that does
    not hold what it should.
    """
    windows = _without_repetitions(itertools.islice(checks.read_records(data_set), count))
    while some := list(itertools.islice(windows, WINDOWS_AT_A_TIME)):
        yield {name: np.stack([window[name] for window in some]).astype(np.int32) for name in data_set.fields}


def _without_repetitions(windows):
    """Yields those of the windows whose unique id has not come before."""
    seen = set()
    for window in windows:
        unique_id = int(window["unique_ids"][0])
        if unique_id not in seen:
            seen.add(unique_id)
            yield window


def make_batches(input_mask, batch_size, compiled):
    """(length, indexes of `batch_size` windows) of each batch, so that all windows [N, S] are in some batch.

    The last batch is filled up with windows that it has already. A window without a token counts as one of full length.
    `compiled` are the lengths that have a graph already.
    """
    whole = input_mask.shape[1]
    is_token = input_mask != 0
    used = np.where(is_token.any(axis=1), whole - is_token[:, ::-1].argmax(axis=1), whole)
    order = np.argsort(used, kind="stable")
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    needed = [min(whole, -(-int(used[batch].max()) // _LENGTH_STEP) * _LENGTH_STEP) for batch in batches]
    length_for = _choose_lengths(needed, batch_size, compiled)
    return [(length_for[length], np.resize(batch, batch_size)) for length, batch in zip(needed, batches, strict=True)]


def _choose_lengths(needed, batch_size, compiled):
    """Needed length -> length to compute, at the least cost of batches and graphs together."""
    counts = sorted(collections.Counter(needed).items())
    # (cost, where the last group begins) of the shortest lengths up to each, by dynamic programming.
    best = [(0, 0)]
    for end in range(1, len(counts) + 1):
        length = counts[end - 1][0]
        graph = 0 if length in compiled else _TOKENS_OF_A_GRAPH
        best.append(
            min(
                (best[begin][0] + graph + length * batch_size * sum(count for _, count in counts[begin:end]), begin)
                for begin in range(end)
            )
        )
    chosen = {}
    end = len(counts)
    while end > 0:
        begin = best[end][1]
        chosen.update((length, counts[end - 1][0]) for length, _ in counts[begin:end])
        end = begin
    return chosen
