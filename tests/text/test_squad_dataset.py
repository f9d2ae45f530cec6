"""Tests dataset/squad: the questions themselves, and that perfect logits score 100."""

import json

import numpy as np
import pytest

from records.prediction_file import result_dtype
from running import ROOT, run
from squad_questions import read_records

LIMITS = {"max_seq_length": 128, "doc_stride": 64, "vocab_file": ROOT / "dataset/vocab.txt"}
FILES = ["train-v1.1.json", "dev-v1.1.json"]


def read_questions(name):
    """Returns the (context, question) pairs of a file."""
    content = json.loads((ROOT / "dataset/squad" / name).read_text(encoding="utf-8"))
    assert content["version"] == "1.1"
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    return [(paragraph["context"], question) for paragraph in paragraphs for question in paragraph["qas"]]


@pytest.mark.parametrize("name", FILES)
def test_questions_are_about_the_corpus_and_answered_in_it(name):
    corpus = (ROOT / "dataset/corpus.txt").read_text(encoding="utf-8")
    documents = [" ".join(document.split("\n")) for document in corpus.split("\n\n")]
    questions = read_questions(name)
    assert len({question["id"] for _, question in questions}) == len(questions)
    for context, question in questions:
        assert any(context in document for document in documents)
        for answer in question["answers"]:
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            assert context[start:end] == answer["text"]
            around = (context[start - 1 : start] or " ") + (context[end : end + 1] or " ")
            assert not around[0].isalnum() and not around[1].isalnum(), question["id"]


@pytest.mark.parametrize("name", FILES)
def test_right_logits_score_100(tmp_path, name):
    data = {"input_file": ROOT / "dataset/squad" / name, **LIMITS}
    for is_training, folder in [(True, "train"), (False, "eval")]:
        result = run("tools/create_squad_data.py", **data, output_dir=tmp_path / folder, is_training=is_training)
        assert result.returncode == 0, result.stderr
    training, prediction = read_records(tmp_path / "train"), read_records(tmp_path / "eval")
    questions = read_questions(name)
    # Most contexts fit into one window, some need several.
    assert len(questions) < len(prediction) == len(training) < 2 * len(questions)

    results = np.zeros(len(prediction), result_dtype(128))
    for result, labelled, record in zip(results, training, prediction, strict=True):
        assert labelled["input_ids"] == record["input_ids"]
        result["unique_id"] = record["unique_ids"][0]
        result["start_logits"][labelled["start_positions"]] = 10
        result["end_logits"][labelled["end_positions"]] = 10
    np.save(tmp_path / "all_results.npy", results)
    result = run(
        "npy2json.py",
        predict_file=data["input_file"],
        all_results_file=tmp_path / "all_results.npy",
        output_dir=tmp_path / "answers",
        **LIMITS,
    )
    assert result.returncode == 0, result.stderr
    predictions = json.loads((tmp_path / "answers/predictions.json").read_text())
    assert predictions == {question["id"]: question["answers"][0]["text"] for _, question in questions}
    result = run("evaluate-v1.1.py", data["input_file"], tmp_path / "answers/predictions.json")
    assert (result.returncode, result.stdout, result.stderr) == (0, '{"exact_match": 100.0, "f1": 100.0}\n', "")
