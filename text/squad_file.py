"""Reads SQuAD v1.1 and v2.0 JSON files and predictions. Errors name the place in the file."""

import collections
from typing import Any, NamedTuple

from system.errors import UserError
from system.input_files import read_json
from system.progress import print_warning


class Question(NamedTuple):
    """One entry of `qas`. `place` is its position in the file, for messages; `entry` is the JSON object itself."""

    id: str
    text: str
    place: str
    entry: dict[str, Any]


class Paragraph(NamedTuple):
    """A context and its questions. `title` is the article's title, or empty."""

    context: str
    questions: list[Question]
    title: str


def read_paragraphs(path):
    """Reads a SQuAD file. Returns (version as str or None, list of Paragraph).

    Raises UserError, naming the place, if it does not have SQuAD's format. Does not check answers.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "data" not in content:
        raise UserError(f"{path}: not a SQuAD file: it is not a JSON object with the key data")
    paragraphs = []
    for i, article in enumerate(field(content, "data", list, path)):
        place = f"{path}: data[{i}]"
        for j, paragraph in enumerate(field(article, "paragraphs", list, place)):
            place = f"{path}: data[{i}].paragraphs[{j}]"
            questions = []
            for k, entry in enumerate(field(paragraph, "qas", list, place)):
                place_of_question = f"{place}.qas[{k}]"
                question_id = field(entry, "id", str, place_of_question)
                question_text = field(entry, "question", str, place_of_question)
                questions.append(Question(question_id, question_text, place_of_question, entry))
            title = str(article.get("title") or "")
            paragraphs.append(Paragraph(field(paragraph, "context", str, place), questions, title))
    return content.get("version"), paragraphs


def read_predictions(path):
    """Reads a predictions file such as npy2json.py's predictions.json. Returns a dict: id -> text.

    Raises UserError if the file has another format or repeats an id.
    """

    def refuse_repeated_keys(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise UserError(f"{path}: {len(repeated)} ids occur more than once; the first is {repeated[0]!r}")
        return dict(pairs)

    predictions = read_json(path, object_pairs_hook=refuse_repeated_keys)
    if not isinstance(predictions, dict):
        raise UserError(f"{path}: not a predictions file: it is not a JSON object of ids and texts")
    for question_id in predictions:
        field(predictions, question_id, str, path)
    return predictions


def field(parent, key, kind, place):
    """Returns `parent[key]`. Raises UserError with `place` unless `parent` is an object and the value a `kind`."""
    if not isinstance(parent, dict):
        raise UserError(f"{place}: should be an object, not {_TYPE_NAMES[type(parent)]}")
    if key not in parent:
        raise UserError(f"{place}: {key} is missing")
    value = parent[key]
    # Not isinstance: True must not pass as an int.
    if type(value) is not kind:
        raise UserError(f"{place}: {key} should be {_TYPE_NAMES[kind]}, not {_TYPE_NAMES[type(value)]}")
    return value


_TYPE_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "true or false",
    type(None): "null",
}


def check_unique_ids(paragraphs, path):
    """Raises UserError if two questions have the same id: predictions are keyed by id."""
    places = {}
    for paragraph in paragraphs:
        for question in paragraph.questions:
            first = places.setdefault(question.id, question)
            if first is not question:
                at = question.place.removeprefix(f"{path}: ")
                raise UserError(
                    f"{first.place} and {at} have the same id, {question.id!r}; every question needs its own"
                )


def is_version_2(version, paragraphs):
    """Whether questions may have no answer, and the metric is that of SQuAD v2.0."""
    return str(version).startswith("v2") or any(
        question.entry.get("is_impossible") is True for paragraph in paragraphs for question in paragraph.questions
    )


def reference_answers(paragraphs, path, may_lack=False):
    """Returns the reference answers of every question of the SQuAD file `path`: id -> list of texts.

    Raises UserError if it holds no question or, unless `may_lack` as in SQuAD v2.0, one without an answer.
    """
    check_unique_ids(paragraphs, path)
    references = {}
    for paragraph in paragraphs:
        for question in paragraph.questions:
            answers = field(question.entry, "answers", list, question.place)
            if not answers and not may_lack:
                raise UserError(f"{question.place}: has no answer; in SQuAD v1.1 every question has one")
            references[question.id] = [
                field(answer, "text", str, f"{question.place}.answers[{index}]") for index, answer in enumerate(answers)
            ]
    if not references:
        raise UserError(f"{path}: holds no question")
    return references


def warn_of_unknown(predictions, questions, path):
    """Warns if some of the `predictions` are for none of the `questions` (both by id) of the file `path`."""
    unknown = [question_id for question_id in predictions if question_id not in questions]
    if unknown:
        count = f"{len(unknown)} of {len(predictions)}"
        print_warning(f"{count} predictions are for no question of {path}; the first is {unknown[0]!r}")
