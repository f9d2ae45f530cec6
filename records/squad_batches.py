"""Batches the windows of a SQuAD data set with little padding, for prediction.

Windows of similar length share a batch, which is cut to the longest. Each batch length needs its own compiled graph, so
the lengths are chosen to minimise compilation and computation together.
"""

import collections
import itertools

import numpy as np

from records import checks

# Windows are read and batched in chunks of this size.
WINDOWS_AT_A_TIME = 4096
# Batch lengths are multiples of this, or the full length.
_LENGTH_STEP = 32
# Compiling a graph takes as long as computing this many tokens of BERT-base.
_TOKENS_PER_GRAPH = 4096


def read_windows(data_set, count):
    """Yields the first `count` windows in chunks of at most WINDOWS_AT_A_TIME; skips repeated unique ids.

    A chunk is a dict of int32 arrays [N, length] by field name. Raises UserError, with file and place, at an invalid
    record.
    """
    windows = _skip_repeated(itertools.islice(checks.read_records(data_set), count))
    while chunk := list(itertools.islice(windows, WINDOWS_AT_A_TIME)):
        yield {name: np.stack([window[name] for window in chunk]).astype(np.int32) for name in data_set.fields}


def _skip_repeated(windows):
    """Yields the windows whose unique id has not occurred before."""
    seen = set()
    for window in windows:
        unique_id = int(window["unique_ids"][0])
        if unique_id not in seen:
            seen.add(unique_id)
            yield window


def make_batches(input_mask, batch_size, compiled):
    """Returns a list of (length, indexes of `batch_size` windows) that covers all windows.

    `input_mask`: [N, S]. `compiled`: the lengths that have a graph. The last batch repeats windows to fill up. A window
    without tokens counts as full length.
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
    """Returns needed length -> batch length with the lowest total cost of batches and graphs."""
    counts = sorted(collections.Counter(needed).items())
    # Dynamic programming: best[end] = (cost of the `end` shortest lengths, start of their last group).
    best = [(0, 0)]
    for end in range(1, len(counts) + 1):
        length = counts[end - 1][0]
        graph = 0 if length in compiled else _TOKENS_PER_GRAPH
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
