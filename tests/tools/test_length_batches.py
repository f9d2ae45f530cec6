"""How sequences of different lengths are batched with little padding."""

import numpy as np

from inference import length_batches


def masks(lengths, whole):
    return (np.arange(whole) < np.array(lengths)[:, None]).astype(np.int32)


def test_batches_cover_all_windows():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 385, 1000)
    batches = length_batches.make_batches(masks(lengths, 384), 8, {})
    assert len(batches) == 125
    assert sorted(np.concatenate([rows for _, rows in batches])) == list(range(1000))
    for length, rows in batches:
        assert len(rows) == 8
        assert length % 32 == 0 and lengths[rows].max() <= length <= 384
    # At least 19,000 tokens of padding, and some more for fewer graphs.
    computed = sum(length * len(rows) for length, rows in batches)
    assert lengths.sum() < computed < 1.15 * lengths.sum()
    assert len({length for length, _ in batches}) < 12


def test_rare_lengths_share_a_graph():
    mask = masks([20, 380], 384)
    assert [length for length, _ in length_batches.make_batches(mask, 1, {})] == [384, 384]
    assert [length for length, _ in length_batches.make_batches(mask, 1, {32})] == [32, 384]
    many = masks([20] * 100 + [380], 384)
    assert {length for length, _ in length_batches.make_batches(many, 1, {})} == {32, 384}


def test_odd_windows():
    mask = masks([5, 0, 33], 50)
    mask[0, 40] = 1  # a token after padding
    lengths = {row: length for length, (row,) in length_batches.make_batches(mask, 1, {64, 50, 32})}
    assert lengths == {0: 50, 1: 50, 2: 50}
    ((length, rows),) = length_batches.make_batches(masks([7, 9], 20), 5, {})
    assert length == 20 and set(rows) == {0, 1} and len(rows) == 5
