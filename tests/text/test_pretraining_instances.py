"""Tests text/pretraining_instances.py: invariants of each instance, and distributions against a simple reference."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_pretraining
from text import pretraining_instances
from text.pretraining_instances import (
    Documents,
    Pieces,
    choose_words,
    make_features,
    pieces_of_vocab,
    sentence_pairs,
)

PADDING, CLASSIFIER, SEPARATOR, MASK = range(4)
FIRST_TEXT_ID = 10


def numbered_documents(lengths):
    """Returns Documents with sentences of the given lengths and unique token ids: FIRST_TEXT_ID, + 1, ..."""
    sentence_starts = [0, *itertools.accumulate(itertools.chain(*lengths))]
    document_starts = [0, *itertools.accumulate(map(len, lengths))]
    ids = np.arange(sentence_starts[-1], dtype=np.int32) + FIRST_TEXT_ID
    return Documents(ids, sentence_starts, document_starts)


def numbered_pieces(documents, continuation_share=0.0, seed=0):
    """Returns Pieces for `numbered_documents`, a share of them ##continuations, and 5 more for random replacement."""
    number = FIRST_TEXT_ID + len(documents.ids) + 5
    is_continuation = np.random.default_rng(seed).random(number) < continuation_share
    return Pieces(PADDING, CLASSIFIER, SEPARATOR, MASK, np.arange(number - 5, number), is_continuation)


def make_all(documents, pieces, passes=1, seed=0, **options):
    """Returns the pairs and features of all instances of all documents."""
    options = {
        "max_seq_length": 32,
        "max_predictions_per_seq": 5,
        "masked_lm_prob": 0.15,
        "short_seq_prob": 0.1,
        "whole_words": False,
    } | options
    rng = random.Random(seed)
    short_seq_prob = options.pop("short_seq_prob")
    pairs = [
        pair
        for _ in range(passes)
        for document in range(len(documents.document_starts) - 1)
        for pair in sentence_pairs(documents, document, options["max_seq_length"], short_seq_prob, rng)
    ]
    features = make_features(documents, pairs, pieces, rng=np.random.default_rng(seed), **options)
    return pairs, features


def rows(features):
    """Yields the features of each instance, as an object with lists."""
    for index in range(len(features["input_ids"])):
        yield SimpleNamespace(**{name: values[index].tolist() for name, values in features.items()})


def restored(row):
    """Returns the tokens of an instance before masking."""
    tokens = list(row.input_ids)
    for position, label, weight in zip(row.masked_lm_positions, row.masked_lm_ids, row.masked_lm_weights, strict=False):
        if weight:
            tokens[position] = label
    return tokens


sentence_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(sentence_lengths, min_size=2, max_size=6),
    st.integers(5, 70),
    st.integers(1, 25),
    st.sampled_from([0.0, 0.15, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_every_instance(lengths, seq_length, predictions, masked_lm_prob, short_seq_prob, whole_words, seed):
    documents = numbered_documents(lengths)
    pieces = numbered_pieces(documents, continuation_share=0.4)
    _, features = make_all(
        documents,
        pieces,
        seed=seed,
        max_seq_length=seq_length,
        max_predictions_per_seq=predictions,
        masked_lm_prob=masked_lm_prob,
        short_seq_prob=short_seq_prob,
        whole_words=whole_words,
    )
    for name, length, dtype in [
        ("input_ids", seq_length, np.int32),
        ("input_mask", seq_length, np.int32),
        ("segment_ids", seq_length, np.int32),
        ("masked_lm_positions", predictions, np.int32),
        ("masked_lm_ids", predictions, np.int32),
        ("masked_lm_weights", predictions, np.float32),
        ("next_sentence_labels", 1, np.int32),
    ]:
        assert features[name].dtype == dtype
        assert features[name].shape[1:] == (length,)
    assert len(features) == 7

    document_of = np.repeat(np.arange(len(lengths)), [sum(sentences) for sentences in lengths])
    seen = set()
    for row in rows(features):
        length = sum(row.input_mask)
        assert row.input_mask == [1] * length + [0] * (seq_length - length)
        tokens = restored(row)
        assert tokens[length:] == [PADDING] * (seq_length - length)

        b_column = tokens.index(SEPARATOR) + 1
        assert row.segment_ids == [0] * b_column + [1] * (length - b_column) + [0] * (seq_length - length)
        assert tokens[0] == CLASSIFIER and tokens[length - 1] == SEPARATOR
        a = np.array(tokens[1 : b_column - 1]) - FIRST_TEXT_ID
        b = np.array(tokens[b_column : length - 1]) - FIRST_TEXT_ID
        assert len(a) >= 1 and len(b) >= 1
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all(), "a segment is a run of text"
        assert len(set(document_of[a])) == 1 and len(set(document_of[b])) == 1
        is_random_next = row.next_sentence_labels == [1]
        assert is_random_next == (document_of[a[0]] != document_of[b[0]])
        assert is_random_next or a[-1] < b[0]
        seen.update(document_of[a])

        count = int(sum(row.masked_lm_weights))
        assert row.masked_lm_weights == [1.0] * count + [0.0] * (predictions - count)
        positions = row.masked_lm_positions[:count]
        assert row.masked_lm_positions[count:] == row.masked_lm_ids[count:] == [0] * (predictions - count)
        assert positions == sorted(set(positions))
        assert not {0, b_column - 1} & set(positions) and all(position < length - 1 for position in positions)
        wanted = min(predictions, max(1, round(length * masked_lm_prob)))
        if whole_words:
            assert count <= wanted
            for position in range(1, length - 1):
                continues_word = pieces.is_continuation[tokens[position]] and position not in (1, b_column)
                if continues_word and position != b_column - 1:
                    assert (position in positions) == (position - 1 in positions), "half a word is masked"
        else:
            assert count == min(wanted, length - 3)
        for position in positions:
            shown = row.input_ids[position]
            assert shown in (MASK, tokens[position]) or shown in pieces.ids
    assert seen == set(range(len(lengths))), "a document without an instance"


def test_every_sentence_is_used():
    # Without truncation, each sentence is in an A or in a B that follows it in the text.
    documents = numbered_documents([[3, 4, 2, 5, 1, 6, 2]] * 20)
    pairs, _ = make_all(documents, numbered_pieces(documents), short_seq_prob=0.0, max_seq_length=128)
    used = set()
    for a_start, a_length, b_start, b_length, is_random_next in pairs:
        used.update(range(a_start, a_start + a_length))
        if not is_random_next:
            assert b_start == a_start + a_length
            used.update(range(b_start, b_start + b_length))
    assert used == set(range(len(documents.ids)))


def test_truncated_lengths_equal_removing_token_by_token():
    for limit in range(2, 16):
        for a_length in range(1, 40):
            for b_length in range(1, 40):
                a, b = [0] * a_length, [0] * b_length
                reference_pretraining.shorten(a, b, limit, random)
                assert pretraining_instances._truncated_lengths(a_length, b_length, limit) == (len(a), len(b))


def test_tokens_are_removed_at_either_end():
    # One sentence of 10 tokens in each document, room for 2 + 2: 8 of each are dropped, from front or back.
    documents = numbered_documents([[10]] * 2000)
    pairs, _ = make_all(documents, numbered_pieces(documents), short_seq_prob=0.0, max_seq_length=7)
    removed = np.array([a_start % 10 for a_start, *_ in pairs])
    expected = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) / 256 * len(removed)
    observed = np.bincount(removed, minlength=9)
    # Chi-square with 8 degrees of freedom exceeds 26.1 for one seed in 1000.
    assert ((observed - expected) ** 2 / expected).sum() < 26.1


def test_half_of_the_next_sentences_are_random():
    # With long documents of short sentences, a chunk of one sentence, whose next is always random, is rare.
    documents = numbered_documents([[5] * 2000] * 10)
    pairs, _ = make_all(documents, numbered_pieces(documents), passes=3, short_seq_prob=0.0, max_seq_length=64)
    share = np.mean([pair[4] for pair in pairs])
    assert abs(share - 0.5) < 4 * (0.25 / len(pairs)) ** 0.5


def test_shares_of_masking():
    documents = numbered_documents([[12] * 30] * 300)
    pieces = numbered_pieces(documents)
    _, features = make_all(documents, pieces, passes=4, max_seq_length=64, max_predictions_per_seq=20)
    kinds = []
    positions = []
    for row in rows(features):
        length = sum(row.input_mask)
        for position, label in itertools.islice(
            zip(row.masked_lm_positions, row.masked_lm_ids, strict=True), int(sum(row.masked_lm_weights))
        ):
            shown = row.input_ids[position]
            kinds.append("mask" if shown == MASK else "same" if shown == label else "other")
            if length == 64 and position > 0:
                positions.append(position)
    for kind, share in [("mask", 0.8), ("same", 0.1), ("other", 0.1)]:
        deviation = (share * (1 - share) / len(kinds)) ** 0.5
        assert abs(kinds.count(kind) / len(kinds) - share) < 4 * deviation, kind
    # All positions are equally likely, except for the separator, which varies.
    counts = np.bincount(positions, minlength=64)[[*range(1, 10), *range(54, 63)]]
    assert counts.std() < 4 * counts.mean() ** 0.5


@pytest.mark.parametrize("whole_words", [False, True])
def test_probabilities_of_words_equal_those_of_random_orders(whole_words):
    # Words of 1, 2, 1, 3 and 1 pieces, room for 4.
    sizes = [1, 2, 1, 3, 1] if whole_words else [1] * 8
    room = 4
    expected = {}
    orders = list(itertools.permutations(range(len(sizes))))
    for order in orders:
        chosen = set()
        for word in order:
            if sum(sizes[other] for other in chosen) + sizes[word] <= room:
                chosen.add(word)
        expected[frozenset(chosen)] = expected.get(frozenset(chosen), 0) + 1 / len(orders)

    number = 20000
    is_text = np.tile([False] + [True] * 8 + [False] * 3, (number, 1))
    starts_word = np.zeros_like(is_text)
    starts = 1 + np.cumsum([0, *sizes[:-1]])
    starts_word[:, starts] = True
    is_masked = choose_words(is_text, starts_word, np.full(number, room), np.random.default_rng(5))
    observed = {}
    for row in is_masked:
        chosen = frozenset(np.flatnonzero(row[starts]).tolist())
        assert row.sum() == sum(sizes[word] for word in chosen) <= room
        observed[chosen] = observed.get(chosen, 0) + 1 / number
    assert observed.keys() <= expected.keys()
    for chosen, share in expected.items():
        assert abs(observed.get(chosen, 0) - share) < 4.5 * (share * (1 - share) / number) ** 0.5, chosen


VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *("##" + letter for letter in "abcdefghij")]


@pytest.mark.parametrize(
    "sentence_lengths, seq_length, short_seq_prob, whole_words",
    [((5, 30), 128, 0.1, False), ((1, 6), 24, 0.5, True), ((10, 60), 40, 0.1, False)],
)
def test_distribution_of_instances_equals_the_reference(sentence_lengths, seq_length, short_seq_prob, whole_words):
    rng = random.Random(11)
    texts = [
        [[rng.choice(VOCAB[5:]) for _ in range(rng.randint(*sentence_lengths))] for _ in range(rng.randint(1, 25))]
        for _ in range(30)
    ]
    vocab = {piece: index for index, piece in enumerate(VOCAB)}
    ids = np.array([vocab[token] for text in texts for sentence in text for token in sentence], dtype=np.int32)
    starts = numbered_documents([[len(sentence) for sentence in text] for text in texts])
    documents = Documents(ids, starts.sentence_starts, starts.document_starts)
    passes, predictions, share = 40, 8, 0.15
    observed = []
    expected = []
    for seed in range(passes):
        pairs, features = make_all(
            documents,
            pieces_of_vocab(vocab),
            seed=seed,
            max_seq_length=seq_length,
            max_predictions_per_seq=predictions,
            masked_lm_prob=share,
            short_seq_prob=short_seq_prob,
            whole_words=whole_words,
        )
        instances = [
            instance
            for number in range(len(texts))
            for instance in reference_pretraining.instances_of_document(
                texts, number, seq_length, predictions, share, short_seq_prob, whole_words, VOCAB, rng
            )
        ]
        observed.append(describe_features(pairs, features))
        expected.append(describe_reference(instances))
    # Instances of one document are correlated; those of different passes are independent.
    for name in observed[0]:
        for power in (0, 1, 2):
            first = np.array([np.sum(np.array(one[name], dtype=float) ** power) for one in observed])
            second = np.array([np.sum(np.array(one[name], dtype=float) ** power) for one in expected])
            deviation = ((first.var() + second.var()) / passes) ** 0.5
            assert abs(first.mean() - second.mean()) <= 4 * deviation, (name, power)


def describe_features(pairs, features):
    """Returns statistics of each instance: name -> list."""
    return {
        "length of A": [pair[1] for pair in pairs],
        "length of B": [pair[3] for pair in pairs],
        "random next": [pair[4] for pair in pairs],
        "predictions": features["masked_lm_weights"].sum(axis=1),
        "first position": features["masked_lm_positions"][:, 0],
        "masks": (features["input_ids"] == VOCAB.index("[MASK]")).sum(axis=1),
        "continuations predicted": np.isin(features["masked_lm_ids"], range(15, 25)).sum(axis=1),
    }


def describe_reference(instances):
    """Returns the same statistics of the reference's instances."""
    return {
        "length of A": [len(instance.a) for instance in instances],
        "length of B": [len(instance.b) for instance in instances],
        "random next": [instance.is_random_next for instance in instances],
        "predictions": [len(instance.predictions) for instance in instances],
        "first position": [instance.predictions[0][0] if instance.predictions else 0 for instance in instances],
        "masks": [instance.tokens.count("[MASK]") for instance in instances],
        "continuations predicted": [
            sum(token.startswith("##") for _, token, _ in instance.predictions) for instance in instances
        ],
    }
