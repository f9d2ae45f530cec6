"""Questions and contexts as a model's inputs: pieces, windows, answer positions.

They are those of google-research/bert's run_squad.py, in its order.
"""

import re
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from system.errors import UserError
from text.squad_file import field
from text.tokenization import CLASSIFIER, SEPARATOR

# The unique_id of a file's first window; those of the others follow one by one.
FIRST_UNIQUE_ID = 1000000000
# [CLS] and [SEP] stand before a window's part of the context, another [SEP] behind it.
SPECIAL_PIECES = 3

# A word of a context is what these five characters separate; the no-break space, say, is part of a word.
_WORD = re.compile("[^ \t\r\n\u202f]+")


class Document(NamedTuple):
    """A context as words and as word pieces.

    `word_starts[w]` is the offset of word w in the context, in characters; `first_piece[w]` the index of its first
    piece (of the next word's, if it has none); `word_of_piece[p]` the word that piece p belongs to.
    """

    words: list[str]
    word_starts: list[int]
    pieces: list[str]
    first_piece: list[int]
    word_of_piece: list[int]


class Window(NamedTuple):
    """The pieces of a document that one input holds: [start, start + length)."""

    start: int
    length: int


class AnswerNotFound(Exception):
    """The text of an answer does not stand in the context where `answer_start` says."""


def check_lengths(max_seq_length, max_query_length):
    """Raises UserError unless a window has room for the context beside the longest question."""
    if max_seq_length <= max_query_length + SPECIAL_PIECES:
        raise UserError(
            f"--max_seq_length={max_seq_length} is too small for --max_query_length={max_query_length}; give at least "
            f"{max_query_length + SPECIAL_PIECES + 1}"
        )


def tokenize_document(context, tokenizer):
    """Makes a Document of a context."""
    matches = list(_WORD.finditer(context))
    document = Document([match.group() for match in matches], [match.start() for match in matches], [], [], [])
    for index, word in enumerate(document.words):
        pieces = tokenizer.tokenize(word)
        document.first_piece.append(len(document.pieces))
        document.pieces.extend(pieces)
        document.word_of_piece.extend([index] * len(pieces))
    return document


def tokenize_question(text, tokenizer, max_query_length):
    """The first `max_query_length` pieces of a question."""
    return tokenizer.tokenize(text)[:max_query_length]


def make_windows(num_pieces, max_length, doc_stride):
    """Covers `num_pieces` pieces by windows of at most `max_length`, each `doc_stride` after the one before.

    No pieces, no windows.
    """
    windows = []
    start = 0
    while start < num_pieces:
        length = min(max_length, num_pieces - start)
        windows.append(Window(start, length))
        if start + length == num_pieces:
            break
        start += min(length, doc_stride)
    return windows


def windows_of_maximum_context(windows):
    """For every piece of a document the index of the window that shows most of its surroundings, int array [pieces].

    As google-research/bert defines it: the lesser of the numbers of pieces to its left and to its right counts, plus
    0.01 times the window's length; of equals the first window wins.
    """
    num_pieces = windows[-1].start + windows[-1].length if windows else 0
    best_score = np.full(num_pieces, -1.0)
    best_window = np.full(num_pieces, -1)
    for index, (start, length) in enumerate(windows):
        left = np.arange(length)
        score = np.minimum(left, left[::-1]) + 0.01 * length
        is_better = score > best_score[start : start + length]
        best_score[start : start + length][is_better] = score[is_better]
        best_window[start : start + length][is_better] = index
    return best_window


def find_answer(question, document, context, tokenizer, version_2_with_negative):
    """The pieces of `document` that answer a training question: (first, last), or None if it is marked as impossible.

    One that is marked so but has an answer all the same is impossible only for `version_2_with_negative`. Of several
    answers the first counts; an empty answer has its last piece before its first. Raises UserError if the question has
    neither and AnswerNotFound if the answer's text does not stand where `answer_start` says.
    """
    entry, place = question.entry, question.place
    # The key is absent from v1.1 files.
    is_impossible = "is_impossible" in entry and field(entry, "is_impossible", bool, place)
    if is_impossible and (version_2_with_negative or not entry.get("answers")):
        return None
    answers = field(entry, "answers", list, place)
    if not answers:
        raise UserError(f"{place}: has no answer, and is not marked is_impossible; for training it needs one of both")
    text = field(answers[0], "text", str, f"{place}.answers[0]")
    offset = field(answers[0], "answer_start", int, f"{place}.answers[0]")
    first_word, last_word = _words_of_answer(text, offset, document, context)
    first = document.first_piece[first_word]
    if last_word < len(document.words) - 1:
        last = document.first_piece[last_word + 1] - 1
    else:
        last = len(document.pieces) - 1
    return _narrow_to_answer(document.pieces, first, last, tokenizer.tokenize(text))


def _words_of_answer(text, offset, document, context):
    """The first and the last word of the context that the characters of the answer `text` at `offset` belong to."""
    if not document.words or not 0 <= offset < len(context) or offset + len(text) > len(context):
        raise AnswerNotFound
    # A blank belongs to the word before it. What comes before the first word has the index -1, which Python takes for
    # the last one; so does the end of an empty answer at offset 0. Odd, but just what run_squad.py does.
    first_word = bisect_right(document.word_starts, offset) - 1
    end = (offset + len(text) - 1) % len(context)
    last_word = bisect_right(document.word_starts, end) - 1
    if " ".join(text.split()) not in " ".join(document.words[first_word : last_word + 1]):
        raise AnswerNotFound
    return first_word, last_word


def _narrow_to_answer(pieces, first, last, answer):
    """The first span within [first, last] whose pieces are those of `answer`; if there is none, (first, last).

    An answer that is part of a word, say 1895 of (1895-1943), is found so.
    """
    if answer:
        for start in range(first, last - len(answer) + 2):
            if pieces[start : start + len(answer)] == answer:
                return start, start + len(answer) - 1
    return first, last


def answer_positions(answer, window, num_query_pieces):
    """Where the answer, (first, last) in pieces of the document or None, lies in the input that shows `window`.

    (0, 0), that is [CLS], if it does not lie within the window.
    """
    if answer is None:
        return 0, 0
    first, last = answer
    if first < window.start or last > window.start + window.length - 1:
        return 0, 0
    offset = num_query_pieces + 2 - window.start
    return first + offset, last + offset


def input_arrays(inputs, vocab, max_seq_length):
    """`[CLS] question [SEP] window [SEP]` and padding, for each of `inputs`: (query ids, document ids, Window).

    The ids are those of all pieces of the question and of the document. Returns a dict of input_ids, input_mask and
    segment_ids, int32 [len(inputs), max_seq_length].
    """
    input_ids = np.zeros((len(inputs), max_seq_length), np.int32)
    starts = np.zeros((len(inputs), 1), np.int32)
    ends = np.zeros((len(inputs), 1), np.int32)
    for index, (query_ids, document_ids, window) in enumerate(inputs):
        start = len(query_ids) + 2
        end = start + window.length
        input_ids[index, 0] = vocab[CLASSIFIER]
        input_ids[index, 1 : start - 1] = query_ids
        input_ids[index, start - 1] = vocab[SEPARATOR]
        input_ids[index, start:end] = document_ids[window.start : window.start + window.length]
        input_ids[index, end] = vocab[SEPARATOR]
        starts[index], ends[index] = start, end
    positions = np.arange(max_seq_length)
    input_mask = positions <= ends
    segment_ids = input_mask & (positions >= starts)
    return {
        "input_ids": input_ids,
        "input_mask": input_mask.astype(np.int32),
        "segment_ids": segment_ids.astype(np.int32),
    }
