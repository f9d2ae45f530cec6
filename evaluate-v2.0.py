"""Scores SQuAD v2.0 predictions: exact match and F1, in per cent, as the data set's official script does."""

from system import import_errors  # noqa: F401

# isort: split

import json
import os
import sys

from system.command_line import ArgumentParser, finite_float
from system.errors import UserError, one_line
from system.input_files import read_json
from system.output_files import atomic_file, writing
from system.progress import print_warning
from text import squad_file, squad_metric
from util import run_script

LARGEST = 1e100  # number of --na-prob-file


def main():
    arguments = parse_args()
    _, paragraphs = squad_file.read_paragraphs(arguments.data_file)
    references = squad_file.reference_answers(paragraphs, arguments.data_file, may_lack=True)
    predictions = squad_file.read_predictions(arguments.pred_file)
    predictions = complete(references, predictions, arguments)
    na_probs = read_na_probs(arguments.na_prob_file, references)
    is_answerable = {question_id: bool(texts) for question_id, texts in references.items()}
    raw = raw_scores(references, predictions)
    result = summarise(raw, na_probs, is_answerable, arguments.na_prob_thresh)
    if arguments.na_prob_file:
        for name, scores in raw.items():
            best, threshold = squad_metric.best_threshold(predictions, scores, na_probs, is_answerable)
            result |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    if arguments.out_image_dir:
        result |= draw(raw, na_probs, is_answerable, arguments.out_image_dir)
    write(result, arguments)


def parse_args():
    """Parses the official script's command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data_file", help="SQuAD v2.0 JSON with the questions and their reference answers")
    parser.add_argument("pred_file", help="JSON object: question id -> answer text, empty for no answer")
    parser.add_argument("-o", "--out-file", metavar="FILE", help="write the scores to this file (default: stdout)")
    parser.add_argument(
        "-n",
        "--na-prob-file",
        metavar="FILE",
        help="JSON object: question id -> probability or score of no answer, such as npy2json.py's null_odds.json",
    )
    parser.add_argument(
        "-t",
        "--na-prob-thresh",
        type=finite_float,
        default=1.0,
        metavar="X",
        help="questions with a larger value in --na-prob-file count as predicted to have no answer",
    )
    parser.add_argument(
        "-p", "--out-image-dir", metavar="FOLDER", help="draw precision-recall curves and histograms into this folder"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print the scores with --out-file too")
    arguments = parser.parse_args()
    if arguments.out_image_dir and not arguments.na_prob_file:
        parser.error("--out-image-dir needs --na-prob-file, whose values order the questions")
    if arguments.na_prob_thresh != 1.0 and not arguments.na_prob_file:
        parser.error("--na-prob-thresh needs --na-prob-file, whose values it is compared with")
    return arguments


def complete(references, predictions, arguments):
    """Returns the predictions of all questions in the order of the data; a missing one is None and scores 0.

    Prints the number and ids of missing predictions, and the number of predictions without a question, to stderr.
    Raises UserError for missing predictions with --na-prob-file.
    """
    missing = [question_id for question_id in references if question_id not in predictions]
    if missing and arguments.na_prob_file:
        raise UserError(
            f"{arguments.pred_file}: has no prediction for {len(missing)} of {len(references)} questions, the first "
            f"{missing[0]!r}; give the predictions that were made with {arguments.na_prob_file}"
        )
    if missing:
        print_warning(f"{len(missing)} of {len(references)} questions have no prediction and score 0:")
        for question_id in missing:
            print(one_line(f"Missing prediction for {question_id}"), file=sys.stderr)
    squad_file.warn_of_unknown(predictions, references, arguments.data_file)
    return {question_id: predictions.get(question_id) for question_id in references}


def read_na_probs(path, references):
    """Returns id -> value of the file for every question, or 0 for all without a file.

    Raises UserError if the file lacks a question or has a value that is not a number, or too large to be drawn.
    """
    if path is None:
        return dict.fromkeys(references, 0.0)
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object of ids and numbers")
    for question_id in references:
        if question_id not in content:
            raise UserError(f"{path}: lacks the question {question_id!r}; give the file made with these predictions")
        value = content[question_id]
        if type(value) not in (int, float) or not abs(value) < LARGEST:
            raise UserError(f"{path}: {question_id}: {json.dumps(value):.40} is not a number below {LARGEST:g}")
    return {question_id: content[question_id] for question_id in references}


def raw_scores(references, predictions):
    """Returns {"exact": id -> 0 or 1, "f1": id -> F1}, before any threshold."""
    exact, f1 = {}, {}
    for question_id, texts in references.items():
        prediction = predictions[question_id]
        is_exact, best_f1 = (0, 0) if prediction is None else squad_metric.score_v2(prediction, texts)
        exact[question_id], f1[question_id] = int(is_exact), best_f1
    return {"exact": exact, "f1": f1}


def summarise(raw, na_probs, is_answerable, threshold):
    """Returns the official script's summary: over all questions, those with an answer and those without."""
    scores = {
        name: squad_metric.apply_threshold(values, na_probs, is_answerable, threshold) for name, values in raw.items()
    }
    groups = {
        "": list(is_answerable),
        "HasAns_": [question_id for question_id, answerable in is_answerable.items() if answerable],
        "NoAns_": [question_id for question_id, answerable in is_answerable.items() if not answerable],
    }
    result = {}
    for prefix, ids in groups.items():
        if ids:
            result |= {f"{prefix}{name}": squad_metric.mean_per_cent(scores[name], ids) for name in scores}
            result[f"{prefix}total"] = len(ids)
    return result


def draw(raw, na_probs, is_answerable, folder):
    """Draws the curves and histograms into `folder`; returns the average precisions, in per cent.

    Without an answerable question there is no recall, and only the histogram of unanswerable questions is drawn.
    """
    # Imported here: it takes a second, and only this needs it.
    import matplotlib.figure

    def save(name, plot, title, x_label, y_label):
        figure = matplotlib.figure.Figure()
        axes = figure.subplots()
        plot(axes)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        with writing(f"--out-image-dir={folder}", "folder"):
            os.makedirs(folder, exist_ok=True)
        with atomic_file(os.path.join(folder, name)) as file:
            figure.savefig(file, format="png")

    result = {}
    if any(is_answerable.values()):
        curves = {**raw, "oracle": {question_id: float(value) for question_id, value in is_answerable.items()}}
        titles = {"exact": "exact match", "f1": "F1", "oracle": "oracle: the best possible answers"}
        for name, scores in curves.items():
            curve = squad_metric.precision_recall(scores, na_probs, is_answerable)
            result[f"pr_{name}_ap"] = curve.average_precision

            def plot(axes, curve=curve):
                axes.step(curve.recalls, curve.precisions, where="post")
                axes.fill_between(curve.recalls, curve.precisions, step="post", alpha=0.2)
                axes.set(xlim=(0, 1.05), ylim=(0, 1.05))

            save(f"pr_{name}.png", plot, f"Precision and recall, {titles[name]}", "recall", "precision")
    for name, wanted in (("hasAns", True), ("noAns", False)):
        values = [na_probs[question_id] for question_id, answerable in is_answerable.items() if answerable == wanted]
        if values:

            def plot(axes, values=values):
                axes.hist(values, bins=20, weights=[1 / len(values)] * len(values))

            kind = "with" if wanted else "without"
            save(f"na_prob_hist_{name}.png", plot, f"Questions {kind} an answer", "no-answer value", "fraction")
    return result


def write(result, arguments):
    """Writes the scores to --out-file on one line, or to stdout with an indent of 2, as the official script does."""
    path = arguments.out_file
    if path:
        with writing(f"--out-file={path}"), atomic_file(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(result))
    if arguments.verbose or not path:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_script(main)
