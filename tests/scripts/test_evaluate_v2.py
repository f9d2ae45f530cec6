"""evaluate-v2.0.py: scores worked out by hand, the official script's output, and bad input.

SQUAD_V2_SCRIPT may name a copy of the official script, to compare with its output on more questions than are recorded.
"""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import recordings
from running import ROOT, assert_fails_with_one_line, run
from text import squad_metric

pytestmark = pytest.mark.slow

SCRIPT = "evaluate-v2.0.py"
OFFICIAL = os.environ.get("SQUAD_V2_SCRIPT")

# Two questions with an answer and two without: id -> (reference texts, prediction, value of no answer).
QUESTIONS = {
    "right": (["old house"], "The old house.", 0.1),
    "half": (["red", "the red house"], "house", 0.4),
    "none": ([], "", 0.9),
    "wrong": ([], "barn", 0.3),
}


def write(folder, questions):
    """Writes data, predictions and no-answer values of `questions`; returns their paths."""
    qas = [
        {"id": key, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for key, (texts, _, _) in questions.items()
    ]
    content = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}]}
    contents = {
        "dev.json": content,
        "predictions.json": {key: prediction for key, (_, prediction, _) in questions.items()},
        "null_odds.json": {key: value for key, (_, _, value) in questions.items()},
    }
    paths = []
    for name, value in contents.items():
        (folder / name).write_text(json.dumps(value))
        paths.append(folder / name)
    return paths


def test_scores_by_hand(tmp_path):
    """half: exact 0, F1 2/3 (house of red house); wrong: 0, an answer where there is none."""
    data, predictions, _ = write(tmp_path, QUESTIONS)
    result = run(SCRIPT, data, predictions)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "exact": 50.0,
        "f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 4),
        "total": 4,
        "HasAns_exact": 50.0,
        "HasAns_f1": pytest.approx(100 * (1 + 2 / 3) / 2),
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


def test_thresholds_and_pictures_by_hand(tmp_path):
    data, predictions, null_odds = write(tmp_path, QUESTIONS)
    out, images = tmp_path / "scores.json", tmp_path / "images"
    flags = ("--na-prob-file", null_odds, "--na-prob-thresh", "0.2", "--out-file", out, "--out-image-dir", images)
    result = run(SCRIPT, data, predictions, *flags)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    scores = json.loads(out.read_text())
    # Above 0.2 only `right` is answered: wrong becomes right, half becomes wrong.
    assert scores["exact"] == scores["f1"] == 75.0 and scores["HasAns_f1"] == 50.0 and scores["NoAns_f1"] == 100.0
    # Nothing answered: 2 of 4; up to right (0.1): 3; wrong (0.3): 2; half (0.4): 2 + 2/3.
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (75.0, 0.1)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (75.0, 0.1)
    # Recall 1/2 at precision 1; F1 gains 1/3 more at precision (1 + 2/3) / 3; the oracle gets both at 1 and 2/3.
    assert scores["pr_exact_ap"] == 50.0
    assert scores["pr_f1_ap"] == pytest.approx(100 * (1 / 2 + 1 / 3 * (5 / 3) / 3))
    assert scores["pr_oracle_ap"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    names = {"pr_exact", "pr_f1", "pr_oracle", "na_prob_hist_hasAns", "na_prob_hist_noAns"}
    assert {path.stem for path in images.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in images.iterdir())


def random_questions(count, seed):
    words = ["old", "house", "the", "barn", "red", "a", "!", "né"]
    draw = random.Random(seed)
    questions = {}
    for index in range(count):
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3))]
        prediction = " ".join(draw.choices(words, k=draw.randint(0, 4)))
        questions[f"q{index}"] = (texts, prediction, round(draw.uniform(-3, 3), 1))
    return questions


def test_curve_against_plain_numpy():
    """Without ties, average precision is the mean of precision over the right answers."""
    draw = np.random.default_rng(0)
    ids = [str(index) for index in range(200)]
    scores = {key: int(draw.integers(2)) for key in ids}
    is_answerable = {key: scores[key] == 1 or bool(draw.integers(2)) for key in ids}
    na_probs = {key: float(draw.random()) for key in ids}
    order = np.argsort([na_probs[key] for key in ids])
    right = np.array([scores[key] for key in ids])[order]
    precision = np.cumsum(right) / np.arange(1, len(ids) + 1)
    expected = (precision * right).sum() / sum(is_answerable.values())
    curve = squad_metric.precision_recall(scores, na_probs, is_answerable)
    assert curve.average_precision == pytest.approx(100 * expected, rel=1e-12)
    assert len(curve.precisions) == len(curve.recalls) == len(ids) + 1


FLAGS = {"plain": [], "file": ["-n", "null_odds.json"], "all": ["-n", "null_odds.json", "-t", "-0.5", "-p", "images"]}


def outputs_of(command, folder, name):
    """What a command of evaluate-v2.0.py's flags prints, and what it writes with --out-file, in `folder`."""
    command = [*map(str, command), "dev.json", "predictions.json", *FLAGS[name]]
    printed = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    subprocess.run([*command, "-o", "scores.json"], cwd=folder, capture_output=True, check=True)
    return {"stdout": printed, "file": (folder / "scores.json").read_bytes()}


@pytest.mark.parametrize("name", FLAGS)
def test_output_is_the_official_scripts(tmp_path, name):
    """As recorded by tests/recorded/make_evaluate_v2.py, byte for byte."""
    write(tmp_path, random_questions(100, seed=0))
    assert outputs_of([sys.executable, ROOT / SCRIPT], tmp_path, name) == recordings.read("evaluate_v2")[name]


@pytest.mark.skipif(OFFICIAL is None, reason="SQUAD_V2_SCRIPT names no copy of the official script")
@pytest.mark.parametrize("seed", range(1, 5))
def test_output_of_more_questions(tmp_path, seed):
    write(tmp_path, random_questions(100, seed))
    for name in FLAGS:
        own = outputs_of([sys.executable, ROOT / SCRIPT], tmp_path, name)
        assert own == outputs_of([sys.executable, OFFICIAL], tmp_path, name)


def test_bad_input_is_one_line(tmp_path):
    data, predictions, null_odds = write(tmp_path, QUESTIONS)
    assert_fails_with_one_line(run(SCRIPT, data, predictions, "-p", tmp_path), "--out-image-dir needs --na-prob-file")
    assert_fails_with_one_line(run(SCRIPT, data, predictions, "-t", "0.5"), "--na-prob-thresh needs --na-prob-file")
    for value in ("NaN", '"x"', f"-{10**101}"):
        fragment = f"{value:.40} is not a number below 1e+100"
        null_odds.write_text(f'{{"right": {value}}}')
        assert_fails_with_one_line(run(SCRIPT, data, predictions, "-n", null_odds), fragment)
    null_odds.write_text('{"right": 1}')
    assert_fails_with_one_line(run(SCRIPT, data, predictions, "-n", null_odds), "lacks the question 'half'")
    predictions.write_text('{"right": "old house", "other": ""}')
    assert_fails_with_one_line(run(SCRIPT, data, predictions, "-n", null_odds), "no prediction for 3 of 4 questions")
    result = run(SCRIPT, data, predictions)
    assert result.returncode == 0 and json.loads(result.stdout)["exact"] == 25.0
    assert "3 of 4 questions have no prediction" in result.stderr and "'other'" in result.stderr
