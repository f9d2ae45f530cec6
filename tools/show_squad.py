"""Makes one HTML page of SQuAD predictions: every question with its context, answers and scores, to search and filter.

    python tools/show_squad.py --input_file dev-v1.1.json --prediction_file predictions.json -o squad.html

The page holds all it needs and asks no network for anything. SQuAD v1.1 and v2.0.
"""

import suite  # noqa: F401

# isort: split

from html_page import add_output_flag, check_output, write_page
from system.command_line import ArgumentParser
from system.errors import UserError
from system.input_files import read_json
from text import squad_file, squad_metric
from text.squad_file import field
from util import run_script


def main():
    arguments = parse_arguments()
    version, paragraphs = squad_file.read_paragraphs(arguments.input_file)
    squad_file.check_unique_ids(paragraphs, arguments.input_file)
    predictions = squad_file.read_predictions(arguments.prediction_file)
    n_best = read_n_best(arguments.nbest_file) if arguments.nbest_file else None
    data = make_data(paragraphs, squad_file.is_version_2(version, paragraphs), predictions, n_best)
    # Last, as it may warn, and where there is an error that is the only line.
    check_predictions_fit(paragraphs, predictions, arguments)
    write_page(arguments.output, "squad_page.js", data, arguments.input_file, arguments.prediction_file)
    print(f"{len(data['questions'])} questions in {arguments.output}")


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_file", required=True, metavar="JSON", help="SQuAD questions with their true answers")
    parser.add_argument("--prediction_file", required=True, metavar="JSON", help="predictions.json of npy2json.py")
    parser.add_argument(
        "--nbest_file", metavar="JSON", help="nbest_predictions.json of npy2json.py (default: not shown)"
    )
    add_output_flag(parser)
    arguments = parser.parse_args()
    check_output(arguments.output, (arguments.input_file, arguments.prediction_file, arguments.nbest_file))
    return arguments


def check_predictions_fit(paragraphs, predictions, arguments):
    """Raises UserError if the predictions are for none of the questions; warns if some are for none."""
    ids = {question.id for paragraph in paragraphs for question in paragraph.questions}
    if not ids:
        raise UserError(f"{arguments.input_file}: holds no question")
    if ids.isdisjoint(predictions):
        raise UserError(
            f"{arguments.prediction_file}: its {len(predictions)} predictions are for none of the {len(ids)} questions "
            f"of {arguments.input_file}; give the file that they were made for"
        )
    squad_file.warn_of_unknown(predictions, ids, arguments.input_file)


def read_n_best(path):
    """The answers in a file such as nbest_predictions.json: id -> list of (text, probability), best first.

    Raises UserError if the file is no such object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an n-best file: it is not a JSON object of ids and lists")
    n_best = {}
    for question_id in content:
        entries = field(content, question_id, list, path)
        places = [f"{path}: {question_id}[{index}]" for index in range(len(entries))]
        n_best[question_id] = [
            (field(entry, "text", str, place), probability_of(entry, place))
            for entry, place in zip(entries, places, strict=True)
        ]
    return n_best


def probability_of(entry, place):
    """The probability of an answer; raises UserError unless it is one."""
    probability = field(entry, "probability", float, place)
    if not 0 <= probability <= 1:
        raise UserError(f"{place}: probability is {probability}, which is not from 0 to 1")
    return probability


def true_answers(question, is_v2):
    """(text, answer_start) of every true answer; none if the question has no answer.

    Raises UserError where v1.1 has none.
    """
    answers = field(question.entry, "answers", list, question.place)
    if not answers and not is_v2:
        raise UserError(f"{question.place}: has no answer; only in SQuAD v2.0 may a question have none")
    places = [f"{question.place}.answers[{index}]" for index in range(len(answers))]
    return [
        (field(answer, "text", str, place), field(answer, "answer_start", int, place))
        for answer, place in zip(answers, places, strict=True)
    ]


def make_data(paragraphs, is_v2, predictions, n_best):
    """What the page shows, as JSON can have it: contexts, questions with their scores, and totals."""
    questions = [
        make_question(question, index, is_v2, predictions, n_best)
        for index, paragraph in enumerate(paragraphs)
        for question in paragraph.questions
    ]
    return {
        "is_v2": is_v2,
        "has_n_best": n_best is not None,
        "totals": make_totals(questions, is_v2),
        "paragraphs": [{"title": paragraph.title, "context": paragraph.context} for paragraph in paragraphs],
        "questions": questions,
    }


def make_question(question, paragraph, is_v2, predictions, n_best):
    """A question as the page shows it; without a prediction it scores 0. `paragraph` is the number of its context."""
    answers = true_answers(question, is_v2)
    prediction = predictions.get(question.id)
    score = squad_metric.score_v2 if is_v2 else squad_metric.score
    is_exact, f1 = (False, 0) if prediction is None else score(prediction, [text for text, _ in answers])
    return {
        "id": question.id,
        "text": question.text,
        "paragraph": paragraph,
        "answers": answers,
        "prediction": prediction,
        "is_exact": is_exact,
        "f1": f1,
        "status": "right" if is_exact else "partly" if f1 > 0 else "wrong",
        "n_best": (n_best or {}).get(question.id) or None,
    }


def make_totals(questions, is_v2):
    """Numbers of questions by status, and the scores in per cent: of all, and of v2.0 with and without an answer."""
    groups = [("", questions)]
    if is_v2:
        groups.append(("with an answer", [question for question in questions if question["answers"]]))
        groups.append(("without", [question for question in questions if not question["answers"]]))
    totals = {
        "groups": [(name, mean_scores(members)) for name, members in groups if members],
        "unpredicted": sum(question["prediction"] is None for question in questions),
    }
    for status in ("right", "partly", "wrong"):
        totals[status] = sum(question["status"] == status for question in questions)
    return totals


def mean_scores(questions):
    """As squad_metric.evaluate."""
    return {
        "questions": len(questions),
        "exact_match": 100.0 * sum(question["is_exact"] for question in questions) / len(questions),
        "f1": 100.0 * sum(question["f1"] for question in questions) / len(questions),
    }


if __name__ == "__main__":
    run_script(main)
