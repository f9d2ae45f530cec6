"""Turns a model's start and end logits into answers in the words of the context.

The method, the order of ties and the numbers are those of write_predictions in google-research/bert's run_squad.py.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from system.command_line import add_bool, add_number, finite_float, positive_int
from system.progress import print_warning
from text import squad_windows
from text.squad_windows import windows_of_maximum_context
from text.tokenization import MAX_CACHED, split_words

# The score of "no answer" if no window has a lower one.
_HIGHEST_NULL_SCORE = 1000000


# How google-research/bert's run_squad.py answers by default: so many answers to a question, of so many pieces at most.
N_BEST_SIZE = 20
MAX_ANSWER_LENGTH = 30


class Example(NamedTuple):
    """A question as it was put to the model: the windows of its document, and where among all windows they begin."""

    id: str
    query_pieces: list[str]
    document: squad_windows.Document
    windows: list[squad_windows.Window]
    first_window: int


class Place(NamedTuple):
    """Where an answer stands: the characters [begin, end) of the words from `first_word` on, joined by spaces."""

    first_word: int
    begin: int
    end: int


class Prediction(NamedTuple):
    """One of the n best answers to a question. The text is empty for "no answer", which has no place."""

    text: str
    start_logit: float
    end_logit: float
    place: Place | None = None


class Answered(NamedTuple):
    """A question's n best predictions, best first, and the one that is the answer.

    `null_odds`: the score of "no answer" less that of the best other one; None for SQuAD v1.1.
    """

    predictions: list[Prediction]
    answer: Prediction
    null_odds: float | None


class Spans(NamedTuple):
    """Candidate answers to one question, best first: first and last piece in the document, and their logits."""

    first: list[int]
    last: list[int]
    start_logit: list[float]
    end_logit: list[float]


def add_answer_flags(group):
    """Adds the flags that choose among the answers to a group of arguments."""
    add_number(group, "--n_best_size", positive_int, N_BEST_SIZE, "answers that share the probability")
    add_number(group, "--max_answer_length", positive_int, MAX_ANSWER_LENGTH, "longest answer, in pieces")
    add_bool(group, "--version_2_with_negative", False, "SQuAD v2.0: a question may have no answer")
    text = "v2.0: predict no answer if its score exceeds the best answer's by more than this"
    add_number(group, "--null_score_diff_threshold", finite_float, 0.0, text)


def check_answer_flags(parser, arguments):
    """Ends with a usage error if a flag of add_answer_flags has no effect."""
    if arguments.null_score_diff_threshold != 0 and not arguments.version_2_with_negative:
        parser.error("--null_score_diff_threshold has no effect without --version_2_with_negative")


def rank_spans(windows, num_query_pieces, start_logits, end_logits, n_best_size, max_answer_length):
    """Returns the Spans formed by the `n_best_size` best starts and ends of each window.

    `start_logits` and `end_logits` are float32 [len(windows), seq_length]. A span lies within the window's part of the
    document, has at most `max_answer_length` pieces and starts where its window has the maximum context. Ties keep the
    order of windows, then starts, then ends.
    """
    if not windows:
        return Spans([], [], [], [])
    starts = _best_indexes(start_logits, n_best_size)[:, :, np.newaxis]
    ends = _best_indexes(end_logits, n_best_size)[:, np.newaxis, :]
    window_index = np.arange(len(windows))[:, np.newaxis, np.newaxis]
    window_start, window_length = (np.array(values)[:, np.newaxis, np.newaxis] for values in zip(*windows, strict=True))

    offset = num_query_pieces + 2
    first = starts - offset + window_start
    last = ends - offset + window_start
    is_valid = (starts >= offset) & (first <= last) & (ends < offset + window_length)
    is_valid &= last - first < max_answer_length
    window_of_piece = windows_of_maximum_context(windows)
    # Only invalid spans have an index that is clipped.
    is_valid &= window_of_piece[np.clip(first, 0, len(window_of_piece) - 1)] == window_index

    # float64, like the Python floats that run_squad.py adds up.
    start_logit = start_logits[window_index, starts].astype(np.float64)
    end_logit = end_logits[window_index, ends].astype(np.float64)
    candidates = np.flatnonzero(is_valid)
    ranked = candidates[np.argsort(-(start_logit + end_logit).ravel()[candidates], kind="stable")]
    arrays = (np.broadcast_to(array, is_valid.shape).ravel() for array in (first, last, start_logit, end_logit))
    return Spans(*(array[ranked].tolist() for array in arrays))


def _best_indexes(logits, count):
    """Returns the indexes of the `count` largest logits of each row, largest first; ties keep their order."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def null_prediction(start_logits, end_logits):
    """Returns the "no answer" Prediction of SQuAD v2.0 and its score; logits as for `rank_spans`.

    The score is the smallest sum of both logits at [CLS], that of the window most certain of an answer.
    """
    scores = start_logits[:, 0].astype(np.float64) + end_logits[:, 0]
    if not (scores < _HIGHEST_NULL_SCORE).any():
        return Prediction("", 0, 0), _HIGHEST_NULL_SCORE
    window = scores.argmin()
    return Prediction("", float(start_logits[window, 0]), float(end_logits[window, 0])), float(scores[window])


def n_best_predictions(spans, null, document, find_text, n_best_size):
    """Returns the `n_best_size` best predictions with distinct texts, best first: a non-empty list of Prediction.

    `null`: the "no answer" Prediction, or None for SQuAD v1.1. It is always included, if necessary as an extra entry.
    `find_text`: a TextFinder.
    """
    predictions = []
    seen = set()
    null_is_pending = null is not None
    for first, last, start_logit, end_logit in zip(*spans, strict=True):
        if null_is_pending and null.start_logit + null.end_logit > start_logit + end_logit:
            predictions.append(null)
            null_is_pending = False
        if len(predictions) >= n_best_size:
            break
        first_word = document.word_of_piece[first]
        words = document.words[first_word : document.word_of_piece[last] + 1]
        before = document.pieces[document.first_piece[first_word] : first]
        begin, end = find_text(document.pieces[first : last + 1], words, before)
        text = " ".join(words)[begin:end]
        if text not in seen:
            seen.add(text)
            predictions.append(Prediction(text, start_logit, end_logit, Place(first_word, begin, end)))
    if null_is_pending:
        predictions.append(null)
    return predictions or [Prediction("empty", 0.0, 0.0)]


class TextFinder:
    """Finds the original text of word pieces. Caches the normal form of words."""

    def __init__(self, do_lower_case, verbose=False):
        """`verbose`: warn on stderr if pieces and words cannot be aligned."""
        self._verbose = verbose
        self._normalise = functools.lru_cache(MAX_CACHED)(lambda word: " ".join(split_words(word, do_lower_case)))

    def __call__(self, pieces, words, before=()):
        """Returns (begin, end) of what `pieces` represent in " ".join(words), `words` being consecutive in a context.

        Pieces may cover part of a word (Smith of Smith's) and have lost case and accents. Finds them in the normal form
        of the words and maps the match back to the original text, character by character without spaces. Returns
        the place of all words if that fails: pieces are [UNK], or normalisation changed the number of characters. The
        text is that of the first match; if it occurs again, the place is that nearest to where the pieces `before`
        those end, which are of the same words.
        """
        original = " ".join(words)
        wanted = " ".join(" ".join(pieces).replace(" ##", "").replace("##", "").split())
        normalised = " ".join(filter(None, map(self._normalise, words)))
        start = normalised.find(wanted)
        if start == -1:
            self._report(f"'{wanted}' is not in '{normalised}', for '{original}'")
            return 0, len(original)
        positions = [position for position, character in enumerate(original) if character != " "]
        if len(positions) != len(normalised) - normalised.count(" ") or not wanted:
            self._report(f"'{original}' and '{normalised}' differ in length without spaces")
            return 0, len(original)
        length = len(wanted) - wanted.count(" ")
        expected = sum(len(piece.removeprefix("##")) for piece in before)
        text, nearest = None, None
        while start != -1:
            first = start - normalised.count(" ", 0, start)
            begin, end = positions[first], positions[first + length - 1] + 1
            text = original[begin:end] if text is None else text
            if original[begin:end] == text and (nearest is None or abs(first - expected) < nearest[0]):
                nearest = abs(first - expected), begin, end
            start = normalised.find(wanted, start + 1)
        return nearest[1:]

    def _report(self, text):
        if self._verbose:
            print_warning(f"answer not aligned with its context, using whole words: {text}")


def characters_of(place, document):
    """Returns (begin, end): the characters of the context where a prediction stands."""
    begin = end = 0  # of a word, in the words joined by spaces
    word = place.first_word
    found = []
    # The last character is looked for, as its end may be that of a word.
    for wanted in (place.begin, place.end - 1):
        while wanted >= (end := begin + len(document.words[word])):
            begin = end + 1
            word += 1
        found.append(document.word_starts[word] + wanted - begin)
    return found[0], found[1] + 1


def make_examples(paragraphs, tokenizer, max_seq_length, doc_stride, max_query_length):
    """Tokenises the questions and cuts their documents into windows, as tools/create_squad_data.py did; Examples."""
    examples = []
    num_windows = 0
    for paragraph in paragraphs:
        document = squad_windows.tokenize_document(paragraph.context, tokenizer)
        for question in paragraph.questions:
            query_pieces = tokenizer.tokenize(question.text)[:max_query_length]
            max_length = max_seq_length - len(query_pieces) - squad_windows.SPECIAL_PIECES
            windows = squad_windows.make_windows(len(document.pieces), max_length, doc_stride)
            examples.append(Example(question.id, query_pieces, document, windows, num_windows))
            num_windows += len(windows)
    return examples


def answer_questions(
    examples,
    results,
    do_lower_case,
    n_best_size=N_BEST_SIZE,
    max_answer_length=MAX_ANSWER_LENGTH,
    null_score_diff_threshold=None,
    verbose=False,
):
    """Three dicts from question id: to the answer, to the n best answers, and (v2.0) to the odds of there being none.

    `examples` are Examples; `results` has start_logits and end_logits, float32 [windows, seq_length], in their order.
    The odds are the score of "no answer" less that of the best answer. There is no answer where they are more than
    `null_score_diff_threshold`, which is None for SQuAD v1.1. `verbose`: see TextFinder.
    """
    start_logits = np.ascontiguousarray(results["start_logits"])
    end_logits = np.ascontiguousarray(results["end_logits"])
    find_text = TextFinder(do_lower_case, verbose)
    answers, n_best, null_odds = {}, {}, {}
    for example in examples:
        rows = slice(example.first_window, example.first_window + len(example.windows))
        answered = answer_question(
            example,
            start_logits[rows],
            end_logits[rows],
            find_text,
            n_best_size,
            max_answer_length,
            null_score_diff_threshold,
        )
        answers[example.id] = answered.answer.text
        n_best[example.id] = _n_best_entries(answered.predictions)
        if null_score_diff_threshold is not None:
            null_odds[example.id] = answered.null_odds
    return answers, n_best, null_odds


def answer_question(
    example, start_logits, end_logits, find_text, n_best_size, max_answer_length, null_score_diff_threshold
):
    """Returns the Answered question of an Example; logits are float32 [its windows, seq_length].

    `find_text`: a TextFinder. The rest is as for answer_questions.
    """
    num_query_pieces = len(example.query_pieces)
    spans = rank_spans(example.windows, num_query_pieces, start_logits, end_logits, n_best_size, max_answer_length)
    if null_score_diff_threshold is None:
        predictions = n_best_predictions(spans, None, example.document, find_text, n_best_size)
        return Answered(predictions, predictions[0], None)
    null, null_score = null_prediction(start_logits, end_logits)
    predictions = n_best_predictions(spans, null, example.document, find_text, n_best_size)
    best = next((prediction for prediction in predictions if prediction.text), None)
    # Where the context has no possible answer, on which run_squad.py breaks down, there is none.
    null_odds = null_score - best.start_logit - best.end_logit if best else null_score
    is_answered = best and null_odds <= null_score_diff_threshold
    return Answered(predictions, best if is_answered else null, null_odds)


def probabilities(predictions):
    """Returns the softmax of the scores of the n best predictions to a question, a list of floats."""
    scores = [prediction.start_logit + prediction.end_logit for prediction in predictions]
    highest = max(scores)
    exponentials = [math.exp(score - highest) for score in scores]
    # Not sum(): from Python 3.12 on it compensates rounding errors, which changes the last digit.
    total = 0.0
    for exponential in exponentials:
        total += exponential
    return [exponential / total for exponential in exponentials]


def _n_best_entries(predictions):
    """The predictions as nbest_predictions.json has them: list of dicts."""
    return [
        {
            "text": prediction.text,
            "probability": probability,
            "start_logit": prediction.start_logit,
            "end_logit": prediction.end_logit,
        }
        for prediction, probability in zip(predictions, probabilities(predictions), strict=True)
    ]
