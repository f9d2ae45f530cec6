"""Batches sequences with little padding, for prediction on any device.

Sequences of similar length share a batch, which is cut to the longest. Each batch length needs its own compiled graph,
so the lengths are chosen to minimise compilation and computation together.
"""

import collections

import numpy as np

# Batch lengths are multiples of this, or the full length.
_LENGTH_STEP = 32
# Compiling a graph takes as long as computing this many tokens of BERT-base.
_TOKENS_PER_GRAPH = 4096


def make_batches(input_mask, batch_size, compiled):
    """Returns a list of (length, indexes of `batch_size` sequences) that covers all sequences.

    `input_mask`: [N, S]. `compiled`: the lengths that have a graph. The last batch repeats sequences to fill up. A
    sequence without tokens counts as full length.
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
