"""Makes model inputs from questions and contexts: pieces, windows, answer positions.

The inputs and their order are those of google-research/bert's run_squad.py.
"""

import re
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from system.command_line import add_bool, add_number, positive_int
from system.errors import UserError
from text.squad_file import field
from text.tokenization import CLASSIFIER, SEPARATOR

# The unique_id of a file's first window; the others count up from it.
FIRST_UNIQUE_ID = 1000000000
# google-research/bert's run_squad.py has the same defaults.
WINDOW_DEFAULTS = {"max_seq_length": 384, "doc_stride": 128, "max_query_length": 64, "do_lower_case": True}
# [CLS] question [SEP] context [SEP]
SPECIAL_PIECES = 3

# These five characters separate words. Other white space, such as the no-break space, is part of a word.
_WORD = re.compile("[^ \t\r\n\u202f]+")


class Document(NamedTuple):
    """A context as words and as word pieces.

    `word_starts[w]`: offset of word w in the context, in characters. `first_piece[w]`: index of its first piece, or of
    the next word's if it has none. `word_of_piece[p]`: the word of piece p.
    """

    words: list[str]
    word_starts: list[int]
    pieces: list[str]
    first_piece: list[int]
    word_of_piece: list[int]


class Window(NamedTuple):
    """The pieces [start, start + length) of a document, which go into one input."""

    start: int
    length: int


class AnswerNotFound(Exception):
    """The text of an answer is not in the context at `answer_start`."""


def add_window_flags(group, infer=False):
    """Adds the flags of WINDOW_DEFAULTS to a group of arguments. With `infer` their values are None if not given."""
    for name, text in (
        ("--max_seq_length", "length of a record, in pieces"),
        ("--doc_stride", "pieces from one window to the next"),
        ("--max_query_length", "maximum length of a question, in pieces"),
    ):
        default = WINDOW_DEFAULTS[name.removeprefix("--")]
        if infer:
            text, default = f"{text} (default: that of the records, else {default})", None
        add_number(group, name, positive_int, default, text)
    text = "lower-case the text and strip accents, for uncased models"
    if infer:
        text = f"{text} (default: as in the records, else {WINDOW_DEFAULTS['do_lower_case']})"
    add_bool(group, "--do_lower_case", None if infer else WINDOW_DEFAULTS["do_lower_case"], text)


def check_lengths(max_seq_length, max_query_length):
    """Raises UserError if the longest question leaves no room for the context."""
    if max_seq_length <= max_query_length + SPECIAL_PIECES:
        raise UserError(
            f"--max_seq_length={max_seq_length} is too small for --max_query_length={max_query_length}; give at least "
            f"{max_query_length + SPECIAL_PIECES + 1}"
        )


def tokenize_document(context, tokenizer):
    """Returns the Document of a context."""
    matches = list(_WORD.finditer(context))
    document = Document([match.group() for match in matches], [match.start() for match in matches], [], [], [])
    for index, word in enumerate(document.words):
        pieces = tokenizer.tokenize(word)
        document.first_piece.append(len(document.pieces))
        document.pieces.extend(pieces)
        document.word_of_piece.extend([index] * len(pieces))
    return document


def make_windows(num_pieces, max_length, doc_stride):
    """Covers `num_pieces` pieces with windows of at most `max_length` pieces, `doc_stride` apart: a list of Window."""
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
    """Returns, for each piece of a document, the index of its maximum context window, int array [pieces].

    As in google-research/bert, the score is min(pieces to the left, pieces to the right) + 0.01 * window length; the
    first window wins a tie.
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
    """Returns the (first, last) piece of the answer to a training question, or None if it is marked is_impossible.

    A marked question that has an answer counts as impossible only with `version_2_with_negative`. Uses the first of
    several answers. For an empty answer, last < first. Raises UserError if the question has neither an answer nor the
    mark, and AnswerNotFound if the answer's text is not at `answer_start`.
    """
    entry, place = question.entry, question.place
    # v1.1 files do not have this key.
    is_impossible = "is_impossible" in entry and field(entry, "is_impossible", bool, place)
    if is_impossible and (version_2_with_negative or not entry.get("answers")):
        return None
    answers = field(entry, "answers", list, place)
    if not answers:
        raise UserError(f"{place}: has no answer and is not marked is_impossible; training needs one or the other")
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
    """Returns the indexes of the first and last word of the answer `text`, which begins at character `offset`."""
    if not document.words or not 0 <= offset < len(context) or offset + len(text) > len(context):
        raise AnswerNotFound
    # White space belongs to the word before it. Before the first word the index is -1, the last word in Python; the end
    # of an empty answer at offset 0 wraps around in the same way. run_squad.py does the same.
    first_word = bisect_right(document.word_starts, offset) - 1
    end = (offset + len(text) - 1) % len(context)
    last_word = bisect_right(document.word_starts, end) - 1
    if " ".join(text.split()) not in " ".join(document.words[first_word : last_word + 1]):
        raise AnswerNotFound
    return first_word, last_word


def _narrow_to_answer(pieces, first, last, answer):
    """Returns the first span within [first, last] with the pieces of `answer`, or (first, last) if there is none.

    This narrows an answer that is part of a word, such as 1895 in (1895-1943).
    """
    if answer:
        for start in range(first, last - len(answer) + 2):
            if pieces[start : start + len(answer)] == answer:
                return start, start + len(answer) - 1
    return first, last


def is_elsewhere(answer, question, document, tokenizer):
    """Whether `answer`, from find_answer, is an earlier occurrence of the text than that at `answer_start`.

    As in run_squad.py, the first one in the words of the answer counts. Without white space, as in Chinese, a whole
    paragraph is a word.
    """
    first, last = answer
    offset = question.entry["answers"][0]["answer_start"]
    word = bisect_right(document.word_starts, offset) - 1
    if word < 0:
        return False
    before = tokenizer.tokenize(document.words[word][: offset - document.word_starts[word]])
    there = document.first_piece[word] + len(before)
    pieces = document.pieces
    return there > first and pieces[there : there + last - first + 1] == pieces[first : last + 1]


def answer_positions(answer, window, num_query_pieces):
    """Returns the (start, end) position of an answer in the input of `window`, or (0, 0), [CLS], if it is outside.

    `answer`: (first, last) piece of the document, or None.
    """
    if answer is None:
        return 0, 0
    first, last = answer
    if first < window.start or last > window.start + window.length - 1:
        return 0, 0
    offset = num_query_pieces + 2 - window.start
    return first + offset, last + offset


def input_arrays(inputs, vocab, max_seq_length):
    """Makes the padded inputs `[CLS] question [SEP] window [SEP]`.

    `inputs`: a list of (ids of the question, ids of the whole document, Window). Returns a dict of input_ids,
    input_mask and segment_ids, int32 [len(inputs), max_seq_length].
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
