"""Scores SQuAD v1.1 predictions: exact match and F1 in percent, like the data set's official script."""

from system import import_errors  # noqa: F401

# isort: split

import json
import sys

from system.command_line import ArgumentParser
from system.errors import one_line
from system.progress import print_warning
from text import squad_file, squad_metric
from util import run_script

VERSION = "1.1"  # of the data set, as its files state it


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset_file", help="SQuAD v1.1 JSON with the questions and their reference answers")
    parser.add_argument("prediction_file", help="JSON object: question id -> text of the answer")
    arguments = parser.parse_args()

    version, paragraphs = squad_file.read_paragraphs(arguments.dataset_file)
    references = squad_file.reference_answers(paragraphs, arguments.dataset_file)
    predictions = squad_file.read_predictions(arguments.prediction_file)
    if version != VERSION:
        found = json.dumps(version)
        print_warning(f'{arguments.dataset_file}: its "version" is {found}; this is the metric of "{VERSION}"')
    report_differences(references, predictions, arguments)
    print(json.dumps(squad_metric.evaluate(references, predictions)))


def report_differences(references, predictions, arguments):
    """Lists the questions without a prediction on stderr, and counts the predictions without a question."""
    unanswered = [question_id for question_id in references if question_id not in predictions]
    if unanswered:
        print_warning(f"{len(unanswered)} of {len(references)} questions are unanswered and score 0:")
        for question_id in unanswered:
            print(one_line(f"Unanswered question {question_id}"), file=sys.stderr)
    squad_file.warn_of_unknown(predictions, references, arguments.dataset_file)


if __name__ == "__main__":
    run_script(main)
