"""The suite's SQuAD data and answers against google-research/bert's own run_squad.py, feature for feature and byte for
byte: always against outputs of it that are kept in tests/recorded, and, on a few thousand hard questions, against the
script itself where BERT_REPO names a checkout of google-research/bert:

    BERT_REPO=/tmp/bert python -m pytest tests/text/test_against_google.py
"""

import json
import os
import re

import numpy as np
import pytest

import recordings
from google_cases import Case, answer_case, feature_case, google_output, suite_output, write_case

RECORDED = recordings.read("google")
BERT_REPO = os.environ.get("BERT_REPO")
needs_checkout = pytest.mark.skipif(not BERT_REPO, reason="BERT_REPO names no checkout of google-research/bert")


PROBABILITY = re.compile(rb'(?<="probability": )[^,]+')


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, bytes):
            assert found[name] == value, name
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def take_probabilities(output):
    """Splits the output into (output without probabilities, probabilities).

    The last bit of a probability depends on the C library's exp and on the processor's fused multiply-add.
    """
    text = output.pop("nbest_predictions.json", b"")
    rest = output | {"nbest_predictions.json": PROBABILITY.sub(b"", text)}
    return rest, [float(number) for number in PROBABILITY.findall(text)]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_outputs(tmp_path, name):
    expected = dict(RECORDED[name])
    case = Case(**json.loads(expected.pop("case")))
    write_case(case, tmp_path)
    found, found_probabilities = take_probabilities(suite_output(case, tmp_path))
    expected, expected_probabilities = take_probabilities(expected)
    assert_same(found, expected)
    np.testing.assert_allclose(found_probabilities, expected_probabilities, rtol=1e-13)


@needs_checkout
@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("task", ["eval", "train", "train shuffled", "train version 2"])
def test_features(tmp_path, task, do_lower_case):
    case = feature_case(task, do_lower_case, 700)
    write_case(case, tmp_path)
    expected = google_output(BERT_REPO, case, tmp_path)
    assert len(expected["input_ids"]) > 2000
    assert_same(suite_output(case, tmp_path), expected)


@needs_checkout
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("version_2", [False, True])
def test_predictions(tmp_path, seed, ties, version_2):
    case = answer_case(seed, ties, version_2, 300)
    write_case(case, tmp_path)
    expected = google_output(BERT_REPO, case, tmp_path)
    assert len(expected) == (3 if version_2 else 2)
    assert_same(suite_output(case, tmp_path), expected)
