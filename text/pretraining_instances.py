"""Makes BERT's pre-training instances from tokenised documents: sentence pairs, masked positions, record fields.

The algorithm is that of google-research/bert's create_pretraining_data.py (Devlin et al. 2018, appendix A.2),
vectorised: the sentences of many documents share one array of ids, a segment is a range of that array, and NumPy
processes a thousand instances at once.

It differs from that script in two places, where the script does not do what it documents:
- a random next segment always comes from another document (the script gives up after ten draws);
- with whole-word masking, the rest of a word whose head was truncated from segment B is a word of its own (the script
  joins it to the last word of segment A).
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np

# [CLS] A [SEP] B [SEP]
SPECIAL_TOKENS_PER_PAIR = 3
# The shortest target length is 2 tokens.
MIN_SEQ_LENGTH = SPECIAL_TOKENS_PER_PAIR + 2


class Documents(NamedTuple):
    """Tokenised documents, concatenated.

    Sentence s has the tokens `ids[sentence_starts[s]:sentence_starts[s + 1]]`. Document d has the sentences
    `document_starts[d]` to `document_starts[d + 1] - 1`. Sentences and documents are never empty.
    """

    ids: np.ndarray  # int32 [tokens]
    sentence_starts: list  # sentences + 1 numbers
    document_starts: list  # documents + 1 numbers
    continues_word: np.ndarray | None = None  # bool [tokens]: a CJK character that continues a word


class Pieces(NamedTuple):
    """The ids of a vocabulary that masking needs."""

    padding: int
    classifier: int
    separator: int
    mask: int
    ids: np.ndarray  # int64 [pieces]: random pieces are drawn from these
    is_continuation: np.ndarray  # bool [highest id + 1]: the piece continues a word (##)


def pieces_of_vocab(vocab):
    """Returns the `Pieces` of a vocabulary (piece -> id) with [PAD], [CLS], [SEP] and [MASK]."""
    ids = np.fromiter(vocab.values(), np.int64)
    is_continuation = np.zeros(ids.max() + 1, dtype=bool)
    is_continuation[ids] = [piece.startswith("##") for piece in vocab]
    return Pieces(vocab["[PAD]"], vocab["[CLS]"], vocab["[SEP]"], vocab["[MASK]"], ids, is_continuation)


def sentence_pairs(documents, document, max_seq_length, short_seq_prob, rng):
    """Yields the sentence pairs of one document; `rng` is a random.Random.

    A pair is (start of A in `documents.ids`, length of A, start of B, length of B, whether B is random), truncated to
    `max_seq_length`. Sentences are collected up to the target length and split into A and B at a random place. Half of
    the time, and if there is only one sentence, B comes from another document; the sentences it replaces begin the next
    pair. `documents` must hold at least two documents.
    """
    starts = documents.sentence_starts
    # int(draw() * n) is three times as fast as rng.randrange(n).
    draw = rng.random
    max_tokens = max_seq_length - SPECIAL_TOKENS_PER_PAIR
    target_length = max_tokens
    if draw() < short_seq_prob:
        target_length = 2 + int(draw() * (max_tokens - 1))

    first, document_end = documents.document_starts[document : document + 2]
    while first < document_end:
        end = bisect_left(starts, starts[first] + target_length, first + 1, document_end)
        a_end = first + 1
        if end - first > 1:
            a_end += int(draw() * (end - first - 1))
        a_length = starts[a_end] - starts[first]

        is_random_next = end - first == 1 or draw() < 0.5
        if is_random_next:
            other = int(draw() * (len(documents.document_starts) - 2))
            other += other >= document
            other_first, other_end = documents.document_starts[other : other + 2]
            b_first = other_first + int(draw() * (other_end - other_first))
            b_length_wanted = max(target_length - a_length, 1)
            b_end = bisect_left(starts, starts[b_first] + b_length_wanted, b_first + 1, other_end)
        else:
            b_first, b_end = a_end, end
        b_length = starts[b_end] - starts[b_first]

        a_kept, b_kept = _truncated_lengths(a_length, b_length, max_tokens)
        # Each dropped token comes from the front or the back with equal probability: one random bit per token.
        a_start = starts[first] + rng.getrandbits(a_length - a_kept).bit_count()
        b_start = starts[b_first] + rng.getrandbits(b_length - b_kept).bit_count()
        yield a_start, a_kept, b_start, b_kept, is_random_next
        first = a_end if is_random_next else end


def _truncated_lengths(a_length, b_length, max_tokens):
    """Returns both lengths after dropping tokens from the longer segment (B if equal) until they fit `max_tokens`."""
    if a_length + b_length <= max_tokens:
        return a_length, b_length
    if 2 * a_length <= max_tokens:
        return a_length, max_tokens - a_length
    if 2 * b_length <= max_tokens:
        return max_tokens - b_length, b_length
    return max_tokens - max_tokens // 2, max_tokens // 2


def make_features(documents, pairs, pieces, max_seq_length, max_predictions_per_seq, masked_lm_prob, whole_words, rng):
    """Returns the record fields of N instances: name -> array [N, field length].

    `pairs`: N pairs from `sentence_pairs`; `rng`: a numpy.random.Generator. Fields: input_ids, input_mask, segment_ids
    int32 [N, max_seq_length]; masked_lm_positions, masked_lm_ids int32 and masked_lm_weights float32
    [N, max_predictions_per_seq]; next_sentence_labels int32 [N, 1], 1 if B is random.
    """
    a_start, a_length, b_start, b_length, is_random_next = np.array(pairs, dtype=np.int64).T[:, :, np.newaxis]
    rows = np.arange(len(pairs))
    column = np.arange(max_seq_length)
    # [CLS] at 0, A from 1, [SEP] at b_column - 1, B from b_column, [SEP] at length - 1
    b_column = a_length + 2
    length = a_length + b_length + SPECIAL_TOKENS_PER_PAIR
    is_text = (column >= 1) & (column < length - 1) & (column != b_column - 1)

    source = column + np.where(column < b_column, a_start - 1, b_start - b_column)
    input_ids = np.where(is_text, documents.ids.take(source, mode="clip"), np.int32(pieces.padding))
    input_ids[:, 0] = pieces.classifier
    input_ids[rows, b_column[:, 0] - 1] = pieces.separator
    input_ids[rows, length[:, 0] - 1] = pieces.separator

    starts_word = is_text
    if whole_words:
        continues_word = pieces.is_continuation[input_ids]
        if documents.continues_word is not None:
            continues_word |= documents.continues_word.take(source, mode="clip")
        starts_word = is_text & (~continues_word | (column == 1) | (column == b_column))
    predictions = np.rint(length[:, 0] * masked_lm_prob).clip(1, max_predictions_per_seq)
    is_masked = choose_words(is_text, starts_word, predictions, rng)
    masked_rows, masked_columns = np.nonzero(is_masked)
    counts = np.count_nonzero(is_masked, axis=1)
    slots = np.arange(len(masked_rows)) - np.repeat(np.cumsum(counts) - counts, counts)

    shape = (len(pairs), max_predictions_per_seq)
    positions = np.zeros(shape, dtype=np.int32)
    labels = np.zeros(shape, dtype=np.int32)
    weights = np.zeros(shape, dtype=np.float32)
    original = input_ids[masked_rows, masked_columns]
    positions[masked_rows, slots] = masked_columns
    labels[masked_rows, slots] = original
    weights[masked_rows, slots] = 1

    # 80% become [MASK], 10% stay, 10% become a random piece.
    chance = rng.random(len(original))
    random_ids = pieces.ids[rng.integers(len(pieces.ids), size=len(original))]
    shown = np.where(chance < 0.8, pieces.mask, np.where(chance < 0.9, original, random_ids))
    input_ids[masked_rows, masked_columns] = shown
    return {
        "input_ids": input_ids,
        "input_mask": (column < length).astype(np.int32),
        "segment_ids": ((column >= b_column) & (column < length)).astype(np.int32),
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "masked_lm_weights": weights,
        "next_sentence_labels": is_random_next.astype(np.int32),
    }


def choose_words(is_text, starts_word, predictions, rng):
    """Chooses the positions to mask: returns bool [N, L] with at most `predictions` [N] set in each row.

    The words of a row are visited in random order; a word is taken if all its positions still fit. `is_text` [N, L]
    marks the positions that may be chosen, `starts_word` [N, L] those at which a word begins.
    """
    number, seq_length = is_text.shape
    word = np.cumsum(starts_word, axis=1)
    row_start = np.arange(number)[:, np.newaxis] * seq_length
    sizes = np.bincount((row_start + word)[is_text], minlength=number * seq_length).reshape(number, seq_length)
    order = np.argsort(np.where(sizes > 0, rng.random(sizes.shape), 1.0), axis=1)

    sizes_in_order = np.take_along_axis(sizes, order, axis=1).T.copy()
    taken = np.zeros(sizes_in_order.shape, dtype=bool)
    room = predictions.astype(np.int64)
    for size, take in zip(sizes_in_order, taken, strict=True):
        np.less_equal(size, room, out=take)
        room -= size * take
        if not room.any() or not size.any():
            break

    is_chosen = np.empty(taken.T.shape, dtype=bool)
    np.put_along_axis(is_chosen, order, taken.T, axis=1)
    return is_text & np.take_along_axis(is_chosen, word, axis=1)
