"""evaluate-v1.1.py: scores worked out by hand and by a plain implementation, and files not what they should be."""

import json
import runpy
import string
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hard_text
from in_process import run_in_process
from running import ROOT, assert_fails_with_one_line, run
from text import squad_metric

pytestmark = pytest.mark.slow

SCRIPT = "evaluate-v1.1.py"


def dataset(references, version="1.1"):
    """The content of a SQuAD file with these reference answers: id -> list of texts."""
    qas = [
        {"id": question_id, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for question_id, texts in references.items()
    ]
    return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}]}


def evaluate_files(folder, references, predictions):
    """Runs the script on a data set (a dict: id -> texts, or the bytes of the file) and predictions (likewise)."""
    for name, content in (("dev.json", references), ("predictions.json", predictions)):
        if name == "dev.json" and isinstance(content, dict) and "data" not in content:
            content = dataset(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return run(SCRIPT, folder / "dev.json", folder / "predictions.json")


@pytest.mark.parametrize(
    "prediction, references, exact_match, f1",
    [
        ("Rollo", ["Rollo"], 1, 1),
        ("the  Rollo!", ["rollo"], 1, 1),
        ("in the 10th century", ["10th century"], 0, Fraction(4, 5)),
        ("10th", ["the 10th and 11th centuries", "10th"], 1, 1),
        ("Denmark, Iceland and Norway", ["Denmark", "Iceland and Norway"], 0, Fraction(6, 7)),
        ("x x y", ["x x x z"], 0, Fraction(4, 7)),
        ("France", ["Normandy"], 0, 0),
        # Articles are words of their own: theatre stays; but punctuation goes first, so that a.n becomes an article.
        ("theatre a.n", ["theatre"], 1, 1),
        ("", ["Rollo"], 0, 0),
        # Nothing is left of either: equal, but no word is shared.
        ("The", ["a"], 1, 0),
        # Only ASCII punctuation goes.
        ("“Rollo”", ["Rollo"], 0, 0),
        ("no\u00a0break", ["no break"], 1, 1),
        ("É", ["é"], 1, 1),
    ],
)
def test_scores(prediction, references, exact_match, f1):
    score = squad_metric.evaluate({"q": references}, {"q": prediction})
    assert score == {"exact_match": 100 * exact_match, "f1": pytest.approx(float(100 * f1), rel=1e-15)}


def plain_normalise(text):
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    # An article stands between characters that are neither letters, digits nor underscores.
    words, word = [], ""
    for character in kept:
        if character.isalnum() or character == "_":
            word += character
        else:
            words += [" " if word in ("a", "an", "the") else word, character]
            word = ""
    words.append(" " if word in ("a", "an", "the") else word)
    return "".join(words).split()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(hard_text.texts, st.lists(hard_text.texts, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_scores_of_any_text(questions):
    total_exact, total_f1 = 0, Fraction(0)
    for prediction, references in questions:
        words = plain_normalise(prediction)
        total_exact += any(words == plain_normalise(reference) for reference in references)
        scores = []
        for reference in references:
            rest = plain_normalise(reference)
            length = len(words) + len(rest)
            shared = 0
            for word in words:
                if word in rest:
                    rest.remove(word)
                    shared += 1
            # 2pr / (p + r) with p = shared / words and r = shared / words of the reference.
            scores.append(Fraction(2 * shared, length) if shared else Fraction(0))
        total_f1 += max(scores)
    score = squad_metric.evaluate(
        {str(index): references for index, (_, references) in enumerate(questions)},
        {str(index): prediction for index, (prediction, _) in enumerate(questions)},
    )
    assert score["exact_match"] == 100.0 * total_exact / len(questions)
    assert score["f1"] == pytest.approx(float(100 * total_f1 / len(questions)), rel=1e-12)


def test_prints_what_the_official_script_prints(tmp_path):
    result = evaluate_files(
        tmp_path, {"a": ["old house"], "b": ["red", "the red house"]}, {"a": "The old house.", "b": "house"}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == '{"exact_match": 50.0, "f1": 83.33333333333333}\n'


def test_unanswered_questions_are_counted_and_named(tmp_path):
    references = {name: ["old"] for name in ("first", "second", "third", "fourth")}
    result = evaluate_files(tmp_path, references, {"second": "old", "other": "old", "fourth": "new"})
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"exact_match": 25.0, "f1": 25.0}
    lines = result.stderr.splitlines()
    assert lines[0].startswith("evaluate-v1.1.py: warning: 2 of 4 questions are unanswered")
    assert lines[1:3] == ["Unanswered question first", "Unanswered question third"]
    assert (
        lines[3].startswith("evaluate-v1.1.py: warning: 1 of 3 predictions are for no question")
        and "'other'" in lines[3]
    )
    assert len(lines) == 4


GOOD = {"q": ["old"]}


@pytest.mark.parametrize("version", ["v2.0", 1.1, None])
def test_another_version_is_a_warning(tmp_path, version):
    """As in the official script, which many a file of another language, say, is scored by."""
    (tmp_path / "dev.json").write_text(json.dumps(dataset(GOOD, version)))
    (tmp_path / "predictions.json").write_text('{"q": "old"}')
    main = runpy.run_path(str(ROOT / SCRIPT))["main"]
    result = run_in_process(main, SCRIPT, tmp_path / "dev.json", tmp_path / "predictions.json")
    assert (result.returncode, json.loads(result.stdout)) == (0, {"exact_match": 100.0, "f1": 100.0})
    assert f'dev.json: its "version" is {json.dumps(version)}; this is the metric of "1.1"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "references, predictions, fragments",
    [
        (b"{", {"q": "old"}, ["dev.json", "not JSON"]),
        (b"\xff", {"q": "old"}, ["dev.json", "not UTF-8"]),
        ({"version": "1.1", "data": []}, {"q": "old"}, ["dev.json", "no question"]),
        ({"q": []}, {"q": "old"}, ["dev.json", "qas[0]: has no answer"]),
        ({"q": ["old", 5]}, {"q": "old"}, ["dev.json", "qas[0].answers[1]: text should be a string"]),
        (
            {"version": "1.1", "data": dataset(GOOD)["data"] * 2},
            {"q": "old"},
            ["data[0].paragraphs[0].qas[0]", "data[1].paragraphs[0].qas[0]", "same id", "'q'"],
        ),
        (GOOD, b"", ["predictions.json", "not JSON"]),
        (GOOD, b"[" * 100_000, ["predictions.json", "not JSON"]),
        (GOOD, b'{"q": "old", "q": "new"}', ["predictions.json", "more than once", "'q'"]),
        (GOOD, ["old"], ["predictions.json", "not a predictions file"]),
        (GOOD, {"q": [{"text": "old"}]}, ["predictions.json: q should be a string, not an array"]),
        (GOOD, {"q": None}, ["predictions.json: q should be a string, not null"]),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, references, predictions, fragments):
    result = evaluate_files(tmp_path, references, predictions)
    assert_fails_with_one_line(result, *fragments)
    assert result.stdout == ""


def test_missing_files_and_arguments(tmp_path):
    assert_fails_with_one_line(run(SCRIPT), "dataset_file")
    assert_fails_with_one_line(run(SCRIPT, tmp_path / "none.json", tmp_path), "there is no such file", "none.json")
    (tmp_path / "dev.json").write_text(json.dumps(dataset(GOOD)))
    assert_fails_with_one_line(run(SCRIPT, tmp_path / "dev.json", tmp_path), "is a folder; give a file")
