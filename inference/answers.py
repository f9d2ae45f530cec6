"""Answers to questions about a text, by a SQuAD model: those of run_squad_predict.py and npy2json.py."""

from typing import NamedTuple

import numpy as np

from inference import loaded
from records.prediction_file import LOGIT_OF_PADDING
from system.command_line import add_bool, positive_int
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
    windows.add_argument(
        "--max_seq_length",
        type=positive_int,
        metavar="N",
        help=f"pieces of a window with the question (default: {defaults['max_seq_length']}, or what the model has)",
    )
    for name, text in (
        ("--doc_stride", "pieces from one window to the next"),
        ("--max_query_length", "pieces of a question, which is cut if it has more"),
    ):
        windows.add_argument(name, type=positive_int, default=defaults[name[2:]], metavar="N", help=text)
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

    def __init__(self, model, arguments):
        """`model`: from read_model(arguments)."""
        self._model = model
        self._settings = arguments
        self._find_text = squad_answers.TextFinder(model.do_lower_case)
        self._scorer = loaded.load(model, lambda *given: squad.BertForQuestionAnswering(*given))

    def answer(self, question, context):
        """Returns Answers to the text `question` about the text `context`.

        Raises UserError if one of them has no visible character, and RunError if the model gives NaN or infinity.
        """
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
            raise UserError("the question has no visible character; give a question")
        if not example.windows:
            raise UserError("the context has no visible character; give a text")
        answered = squad_answers.answer_question(
            example,
            *self._logits(example),
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

    def _logits(self, example):
        """Start and end logits, float32 [windows, seq_length] each."""
        vocab, whole = self._model.vocab, self._settings.max_seq_length
        query_ids, document_ids = (
            [vocab[piece] for piece in pieces] for pieces in (example.query_pieces, example.document.pieces)
        )
        inputs = [(query_ids, document_ids, window) for window in example.windows]
        features = squad_windows.input_arrays(inputs, vocab, whole)
        logits = np.full((2, len(inputs), whole), LOGIT_OF_PADDING, np.float32)
        lengths = features["input_mask"].sum(axis=1)
        # The bar appears for long contexts only.
        for row, length in enumerate(progress_bar(lengths, unit="window", leave=False, delay=2)):
            length = _length_of_graph(length, whole) if self._settings.skip_padding else whole
            window = {name: values[row : row + 1, :length] for name, values in features.items()}
            logits[:, row, :length] = np.concatenate(self._scorer.score(window, length))
        if not np.isfinite(logits).all():
            raise RunError(f"{self._settings.model_load_dir}: the model gives NaN or infinity: it is damaged")
        return logits


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
