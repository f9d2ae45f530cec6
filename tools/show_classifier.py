"""Makes one HTML page of a classifier's predictions: sentences, labels, probabilities, and the confusion matrix.

    python run_classifier.py --do_predict --test_data_dir=data/dev --output_dir=predicted ...
    python tools/show_classifier.py --input_file=dev.tsv --prediction_dir=predicted -o page.html

The input file is the one from which tools/create_classifier_data.py made the records. The page is one file and makes no
network requests.
"""

import suite  # noqa: F401

# isort: split

import math
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

from html_page import add_output_flag, check_output, write_page
from system.command_line import ArgumentParser
from system.errors import UserError
from system.input_files import open_input, reading
from system.progress import print_warning
from text import classification
from training import classifier_results as results
from util import run_script


def main():
    arguments = parse_arguments()
    examples, warnings = classification.read_examples(arguments)
    rows_file = Path(arguments.prediction_dir) / results.PROBABILITIES_FILE
    rows = read_rows(rows_file)
    if len(rows) != len(examples):
        raise UserError(
            f"{rows_file}: has {len(rows)} rows, but {arguments.input_file} {len(examples)} sentences; give the file "
            "that the predicted records were made of"
        )
    labels = read_label_names(arguments.prediction_dir, rows)
    data = make_data(examples, rows, labels, arguments)
    for warning in warnings:
        print_warning(warning)
    write_page(arguments.output, "classifier_page.js", data, arguments.input_file, rows_file)
    print(f"{len(examples)} sentences in {arguments.output}")


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_file", required=True, metavar="FILE", help="TSV or CSV, one example per line")
    parser.add_argument(
        "--prediction_dir", required=True, metavar="DIR", help="output_dir of run_classifier.py --do_predict"
    )
    add_output_flag(parser)
    classification.add_form_flags(parser)
    arguments = parser.parse_args()
    classification.check_form_flags(parser, arguments)
    predicted = (Path(arguments.prediction_dir) / name for name in (results.PROBABILITIES_FILE, results.LABELS_FILE))
    check_output(arguments.output, (arguments.input_file, *predicted))
    return arguments


def read_rows(path):
    """Reads a test_results.tsv: returns float64 [N, labels], probabilities, or scores if there is one column.

    Raises UserError, naming the line, if it is no such file.
    """
    rows = []
    with reading(path), open_input(path) as file:
        for line, text in enumerate(file, 1):
            try:
                row = [float(field) for field in text.split("\t")]
            except ValueError:
                raise UserError(f"{path}: line {line}: not a row of numbers: {text.strip()!r:.40}") from None
            is_valid = all(map(math.isfinite, row)) if len(row) == 1 else all(0 <= value <= 1 for value in row)
            if not is_valid:
                raise UserError(f"{path}: line {line}: not a row of probabilities: {text.strip()!r:.40}")
            if len(row) != len(rows[0] if rows else row):
                raise UserError(f"{path}: line {line}: has {len(row)} columns, the first line {len(rows[0])}")
            rows.append(row)
    return np.array(rows)


def read_label_names(folder, rows):
    """Returns the names of the labels, their numbers if the folder has no labels.txt; None for scores.

    Raises UserError if their number is not that of the columns of `rows`.
    """
    count = rows.shape[1] if rows.ndim == 2 else 1
    if count == 1:
        return None
    path = Path(folder) / results.LABELS_FILE
    names = classification.read_labels(path) if path.exists() else [str(index) for index in range(count)]
    if len(names) != count:
        raise UserError(f"{path}: has {len(names)} labels, but {results.PROBABILITIES_FILE} beside it {count} columns")
    return names


def make_data(examples, rows, labels, arguments):
    """What the page shows, as JSON can hold it: sentences, names of labels, metrics and the confusion matrix.

    Raises UserError if the labels of the file are not among `labels`, or are not scores where `labels` is None.
    """
    path = arguments.input_file
    has_labels = examples[0].label is not None
    right = None
    if has_labels:
        source = Path(arguments.prediction_dir) / results.LABELS_FILE
        right = (
            classification.scores_of(path, examples)
            if labels is None
            else classification.label_ids_of(path, examples, labels, source)
        )
    predicted = rows[:, 0] if labels is None else rows.argmax(axis=1)
    count = rows.shape[1]
    return {
        "labels": labels,
        "has_labels": has_labels,
        "metrics": metrics_of(rows, right, labels, arguments) if has_labels else [],
        "confusion": (
            confusion_matrix(right, predicted, labels=range(count)).tolist() if has_labels and labels else None
        ),
        "items": [
            {
                "id": str(example.line),
                "texts": [text for text in (example.text_a, example.text_b) if text is not None],
                "label": right[index].item() if has_labels else None,
                "prediction": predicted[index].item(),
                "probabilities": None if labels is None else rows[index].tolist(),
            }
            for index, example in enumerate(examples)
        ],
    }


def metrics_of(rows, right, labels, arguments):
    """The metrics of the task, as run_classifier.py computes them: [name, value] each; None for an undefined value."""
    names = classification.metrics_of(arguments.task_name, labels is None, rows.shape[1], arguments.input_file)
    # The order of the probabilities is that of the logits, which is all that these metrics use.
    return [
        [name, value if math.isfinite(value) else None]
        for name, value in results.metrics_of(names, rows, right).items()
    ]


if __name__ == "__main__":
    run_script(main)
