"""Scores SQuAD v1.1 predictions: exact match and F1, in per cent, as the official script of the data set does."""

import collections
import json
import re
import string
import sys

import squad_file
from command_line import ArgumentParser
from util import UserError, run_script

VERSION = "1.1"

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset_file", help="SQuAD v1.1 JSON with the questions and their reference answers")
    parser.add_argument("prediction_file", help="JSON object that has for every question's id the answer's text")
    arguments = parser.parse_args()

    references = read_references(arguments.dataset_file)
    predictions = read_predictions(arguments.prediction_file)
    report_differences(references, predictions, arguments)
    print(json.dumps(evaluate(references, predictions)))


def read_references(path):
    """The reference answers of every question in a SQuAD v1.1 file: id -> list of texts, at least one."""
    version, paragraphs = squad_file.read_paragraphs(path)
    if version != VERSION:
        raise UserError(
            f'{path}: its "version" is {json.dumps(version)}, but this is the metric of "{VERSION}", in which every '
            "question has an answer"
        )
    squad_file.check_unique_ids(paragraphs, path)
    references = {}
    for paragraph in paragraphs:
        for question in paragraph.questions:
            answers = squad_file.field(question.entry, "answers", list, question.place)
            if not answers:
                raise UserError(f"{question.place}: has no answer; in SQuAD v{VERSION} every question has one")
            references[question.id] = [
                squad_file.field(answer, "text", str, f"{question.place}.answers[{index}]")
                for index, answer in enumerate(answers)
            ]
    if not references:
        raise UserError(f"{path}: holds no question")
    return references


def read_predictions(path):
    """The predictions in a file such as npy2json.py's predictions.json: id -> text."""

    def refuse_repeated_keys(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise UserError(f"{path}: {len(repeated)} ids occur more than once; the first is {repeated[0]!r}")
        return dict(pairs)

    predictions = squad_file.read_json(path, object_pairs_hook=refuse_repeated_keys)
    if not isinstance(predictions, dict):
        raise UserError(f"{path}: not a predictions file: it is not a JSON object of ids and texts")
    for question_id in predictions:
        squad_file.field(predictions, question_id, str, path)
    return predictions


def report_differences(references, predictions, arguments):
    """Names on stderr the questions without a prediction, and counts predictions without a question."""
    unanswered = [question_id for question_id in references if question_id not in predictions]
    if unanswered:
        print(f"{len(unanswered)} of {len(references)} questions are unanswered and score 0:", file=sys.stderr)
        for question_id in unanswered:
            print(f"Unanswered question {question_id}", file=sys.stderr)
    unknown = [question_id for question_id in predictions if question_id not in references]
    if unknown:
        print(
            f"{len(unknown)} of {len(predictions)} predictions are for no question of {arguments.dataset_file}; the "
            f"first is {unknown[0]!r}",
            file=sys.stderr,
        )


def evaluate(references, predictions):
    """{"exact_match": per cent, "f1": per cent}: means over all questions of the best score over their references.

    `references`: id -> list of texts; `predictions`: id -> text. A question without a prediction scores 0.
    """
    exact_match = f1 = 0
    for question_id, texts in references.items():
        if question_id in predictions:
            prediction = normalise(predictions[question_id])
            normalised = [normalise(text) for text in texts]
            exact_match += prediction in normalised
            f1 += max(f1_score(prediction.split(), reference.split()) for reference in normalised)
    return {"exact_match": 100.0 * exact_match / len(references), "f1": 100.0 * f1 / len(references)}


def normalise(text):
    """Lower case, no ASCII punctuation, no articles, single blanks; in this order."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def f1_score(prediction, reference):
    """The harmonic mean of precision and recall of the words that two lists share, as often as both have them."""
    num_shared = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
    if num_shared == 0:
        return 0
    precision = num_shared / len(prediction)
    recall = num_shared / len(reference)
    return 2 * precision * recall / (precision + recall)


if __name__ == "__main__":
    run_script(main)
