"""Answers to questions about a text, by a SQuAD model: those of run_squad_predict.py and npy2json.py."""

from typing import NamedTuple

import numpy as np

from inference import loaded
from records.prediction_file import LOGIT_OF_PADDING
from system.command_line import add_bool, add_number, positive_int
from system.errors import RunError, UserError
from system.lazy import LazyModule
from system.progress import progress_bar
from text import squad_answers, squad_windows
from text.squad_file import Paragraph, Question

squad = LazyModule("squad")

# The shortest length of a graph; the next ones are twice as long each, and the last is --max_seq_length.
_SHORTEST_GRAPH = 32


class Answer(NamedTuple):
    """A possible answer: context[begin:end]. For "no answer" the text is empty and there is no place."""

    text: str
    probability: float
    begin: int | None
    end: int | None


class Answers(NamedTuple):
    """The answer to a question and the n best ones, of which it is one, best first.

    `null_odds`: the score of "no answer" less that of the best other one; None for SQuAD v1.1.
    """

    answer: Answer
    n_best: list[Answer]
    null_odds: float | None


def add_answer_flags(parser):
    """Adds the flags of windows and answers to the parser of a tool."""
    windows = parser.add_argument_group("windows of a long context")
    defaults = squad_windows.WINDOW_DEFAULTS
    text = f"pieces of a window with the question (default: {defaults['max_seq_length']}, or what the model has)"
    add_number(windows, "--max_seq_length", positive_int, None, text)
    add_number(windows, "--doc_stride", positive_int, defaults["doc_stride"], "pieces from one window to the next")
    text = "pieces of a question, which is cut if it has more"
    add_number(windows, "--max_query_length", positive_int, defaults["max_query_length"], text)
    add_bool(
        windows,
        "--skip_padding",
        True,
        "compute little of the padding; with False exactly what run_squad_predict.py does without its --skip_padding",
    )
    group = parser.add_argument_group("answers")
    squad_answers.add_answer_flags(group)


def read_model(arguments):
    """Returns the loaded.Model for `arguments`, and settles their --max_seq_length.

    Raises UserError as loaded.read does, and if questions leave no room for a context.
    """
    model = loaded.read(arguments, heads=("squad",))
    loaded.settle_max_seq_length(arguments, model.size, squad_windows.WINDOW_DEFAULTS["max_seq_length"], 1)
    squad_windows.check_lengths(arguments.max_seq_length, arguments.max_query_length)
    return model


class Answerer:
    """A loaded model that answers questions. It makes a graph when a text first needs its length."""

    def __init__(self, model, arguments, batch_size=1):
        """`model`: from read_model(arguments); `batch_size`: windows to compute together, of many."""
        self._model = model
        self._settings = arguments
        self._batch_size = batch_size
        self._find_text = squad_answers.TextFinder(model.do_lower_case)
        self._scorer = loaded.load(model, lambda *given: squad.BertForQuestionAnswering(*given))

    def answer(self, question, context):
        """Returns Answers to the text `question` about the text `context`.

        Raises UserError if one of them has no visible character, and RunError if the model gives NaN or infinity.
        """
        (found,) = self.answer_all([(question, context)])
        if isinstance(found, Exception):
            raise found
        return found

    def answer_all(self, pairs):
        """Returns for each (question, context) its Answers, or the UserError or RunError that answer() would raise.

        The windows of all questions share batches.
        """
        results = [self._example(*pair) for pair in pairs]
        examples = [result for result in results if not isinstance(result, UserError)]
        logits = iter(self._logits(examples))
        return [result if isinstance(result, UserError) else self._answers(result, next(logits)) for result in results]

    def _example(self, question, context):
        """The squad_answers.Example of a question, or the UserError that it is."""
        settings = self._settings
        paragraph = Paragraph(context, [Question("", question, "", {})], "")
        (example,) = squad_answers.make_examples(
            [paragraph],
            self._model.tokenizer,
            settings.max_seq_length,
            settings.doc_stride,
            settings.max_query_length,
        )
        if not example.query_pieces:
            return UserError("the question has no visible character; give a question")
        if not example.windows:
            return UserError("the context has no visible character; give a text")
        return example

    def _answers(self, example, logits):
        """Answers to an example, or the RunError if its logits, float32 [2, windows, seq_length], are not finite."""
        settings = self._settings
        if not np.isfinite(logits).all():
            return RunError(f"{settings.model_load_dir}: the model gives NaN or infinity: it is damaged")
        answered = squad_answers.answer_question(
            example,
            *logits,
            self._find_text,
            settings.n_best_size,
            settings.max_answer_length,
            settings.null_score_diff_threshold if settings.version_2_with_negative else None,
        )
        probabilities = squad_answers.probabilities(answered.predictions)
        n_best = [
            _answer(prediction, probability, example.document)
            for prediction, probability in zip(answered.predictions, probabilities, strict=True)
        ]
        answer = n_best[answered.predictions.index(answered.answer)]
        return Answers(answer, n_best, answered.null_odds)

    def _logits(self, examples):
        """Start and end logits of each example, float32 [2, its windows, seq_length]."""
        if not examples:
            return []
        vocab, whole = self._model.vocab, self._settings.max_seq_length
        inputs = []
        for example in examples:
            query_ids, document_ids = (
                [vocab[piece] for piece in pieces] for pieces in (example.query_pieces, example.document.pieces)
            )
            inputs += [(query_ids, document_ids, window) for window in example.windows]
        features = squad_windows.input_arrays(inputs, vocab, whole)
        logits = np.full((2, len(inputs), whole), LOGIT_OF_PADDING, np.float32)
        lengths = np.full(len(inputs), whole)
        if self._settings.skip_padding:
            lengths = [_length_of_graph(needed, whole) for needed in features["input_mask"].sum(axis=1)]
        # The bar appears for long contexts only.
        for length, rows in progress_bar(_batches(lengths, self._batch_size), unit="batch", leave=False, delay=2):
            windows = {name: values[rows, :length] for name, values in features.items()}
            logits[:, rows, :length] = np.stack(self._scorer.score(windows, length))
        if self._settings.skip_padding:
            logits[:, features["input_mask"] == 0] = LOGIT_OF_PADDING
        ends = np.cumsum([len(example.windows) for example in examples])
        return np.split(logits, ends[:-1], axis=1)


def _batches(lengths, batch_size):
    """Covers all windows, of `lengths`, by batches of one length: a list of (length, indexes of windows).

    A batch has `batch_size` windows or one, so that few graphs are needed. A batch more than half full repeats windows.
    """
    batches = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(np.equal(lengths, length))
        whole = len(rows) // batch_size * batch_size
        if len(rows) - whole > batch_size / 2:
            whole = -(-len(rows) // batch_size) * batch_size
        batches += [(int(length), batch) for batch in np.resize(rows, whole).reshape(-1, batch_size)]
        batches += [(int(length), rows[row : row + 1]) for row in range(whole, len(rows))]
    return batches


def _length_of_graph(needed, whole):
    length = _SHORTEST_GRAPH
    while length < needed:
        length *= 2
    return min(length, whole)


def _answer(prediction, probability, document):
    if prediction.place is None:
        # Also where no span of the context is possible; run_squad.py answers "empty" then.
        return Answer("", probability, None, None)
    return Answer(prediction.text, probability, *squad_answers.characters_of(prediction.place, document))
