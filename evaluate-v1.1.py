"""Scores SQuAD v1.1 predictions: exact match and F1 in percent, like the data set's official script."""

from system import import_errors  # noqa: F401

# isort: split

import json
import sys

from system.command_line import ArgumentParser
from system.errors import UserError, one_line, warning_line
from text import squad_file, squad_metric
from util import run_script

VERSION = "1.1"


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset_file", help="SQuAD v1.1 JSON with the questions and their reference answers")
    parser.add_argument("prediction_file", help="JSON object: question id -> text of the answer")
    arguments = parser.parse_args()

    version, references = read_references(arguments.dataset_file)
    predictions = squad_file.read_predictions(arguments.prediction_file)
    if version != VERSION:
        text = f'{arguments.dataset_file}: its "version" is {json.dumps(version)}; this is the metric of "{VERSION}"'
        print(warning_line(text), file=sys.stderr)
    report_differences(references, predictions, arguments)
    print(json.dumps(squad_metric.evaluate(references, predictions)))


def read_references(path):
    """Reads a SQuAD v1.1 file. Returns (version, reference answers: id -> non-empty list of texts).

    Raises UserError if it has no question, or a question without an answer.
    """
    version, paragraphs = squad_file.read_paragraphs(path)
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
        raise UserError(f"{path}: has no question")
    return version, references


def report_differences(references, predictions, arguments):
    """Lists the questions without a prediction on stderr, and counts the predictions without a question."""
    unanswered = [question_id for question_id in references if question_id not in predictions]
    if unanswered:
        text = f"{len(unanswered)} of {len(references)} questions are unanswered and score 0:"
        print(warning_line(text), file=sys.stderr)
        for question_id in unanswered:
            print(one_line(f"Unanswered question {question_id}"), file=sys.stderr)
    unknown = [question_id for question_id in predictions if question_id not in references]
    if unknown:
        text = (
            f"{len(unknown)} of {len(predictions)} predictions are for no question of {arguments.dataset_file}; the "
            f"first is {unknown[0]!r}"
        )
        print(warning_line(text), file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
