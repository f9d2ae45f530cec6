"""Makes pages with tools/show_squad.py from a few questions."""

import json

import show_squad
from in_process import run_in_process


def show(folder, data, predictions, n_best=None):
    """Runs the tool on files with the given contents. Returns (finished process, path of the page)."""
    for name, content in (("data.json", data), ("predictions.json", predictions), ("nbest.json", n_best)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    flags = {"input_file": folder / "data.json", "prediction_file": folder / "predictions.json"}
    if n_best is not None:
        flags["nbest_file"] = folder / "nbest.json"
    page = folder / "squad.html"
    return run_in_process(show_squad.main, "show_squad.py", "-o", page, **flags), page


def squad(context, questions, version="1.1"):
    """Returns the content of a SQuAD file; `questions`: id -> (question, list of answers from the context)."""
    qas = [
        {
            "id": question_id,
            "question": text,
            "answers": [{"text": answer, "answer_start": context.index(answer)} for answer in answers],
            "is_impossible": not answers,
        }
        for question_id, (text, answers) in questions.items()
    ]
    return {"version": version, "data": [{"title": "A_title", "paragraphs": [{"context": context, "qas": qas}]}]}


CONTEXT = "Rollo swore fealty to Charles. Rollo came from Denmark, Iceland or Norway, with 42 ships."


QUESTIONS = {
    "right": ("Who swore?", ["Rollo"]),
    "partly": ("Where from?", ["Denmark, Iceland or Norway", "Denmark"]),
    "wrong": ("To whom?", ["Charles"]),
    "none": ("How many ships?", ["42"]),
}


PREDICTIONS = {"right": "Rollo", "partly": "from Denmark,  Iceland", "wrong": "fealty"}
