"""Tests the descriptions in records and results, and that flags and files that do not fit them are rejected."""

import json
import math

import numpy as np
import pytest

import npy2json
from in_process import run_in_process
from records import description
from records.prediction_file import result_dtype, write
from running import ROOT, assert_fails_with_one_line, run
from system.errors import UserError
from text.tokenization import vocab_checksum

VOCAB = ROOT / "dataset" / "vocab.txt"
QUESTIONS = ROOT / "dataset" / "squad" / "dev-v1.1.json"
WINDOWS = {"max_seq_length": 128, "doc_stride": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with records of the development questions and random results for them."""
    folder = tmp_path_factory.mktemp("made")
    flags = {"input_file": QUESTIONS, "vocab_file": VOCAB, "is_training": False, "output_dir": folder / "data"}
    result = run("tools/create_squad_data.py", **flags, **WINDOWS)
    assert result.returncode == 0, result.stderr
    count = int(result.stdout.split(" records")[0].split()[-1])
    results = np.zeros(count, result_dtype(128))
    results["unique_id"] = 1000000000 + np.arange(count)
    results["start_logits"], results["end_logits"] = np.random.default_rng(0).standard_normal((2, count, 128))
    write(folder / "all_results.npy", results, description.read(folder / "data"))
    write(folder / "old.npy", results)
    return folder


def answers(made, results="all_results.npy", **flags):
    flags = {"predict_file": QUESTIONS, "vocab_file": VOCAB, "output_dir": made / "out", **flags}
    return run_in_process(npy2json.main, "npy2json.py", all_results_file=made / results, **flags)


def test_records_have_a_description(made):
    described = description.read(made / "data")
    assert described == json.loads((made / "data" / "records.json").read_text())
    assert {name: described[name] for name in ("kind", "vocab_size", "do_lower_case", "max_query_length")} == {
        "kind": "SQuAD prediction", "vocab_size": 1200, "do_lower_case": True, "max_query_length": 64
    }  # fmt: skip
    assert (described["max_seq_length"], described["doc_stride"]) == (128, 64)
    assert (made / "data" / "vocab.txt").read_bytes() == VOCAB.read_bytes()


def test_numpy_reads_results(made):
    new, old = (np.load(made / name, allow_pickle=False) for name in ("all_results.npy", "old.npy"))
    np.testing.assert_array_equal(new, old)


def test_flags_default_to_those_of_the_records(made):
    short = answers(made)
    predictions = (made / "out" / "predictions.json").read_bytes()
    assert (short.returncode, short.stderr) == (0, "") and "Notice" not in short.stdout
    long = answers(made, **WINDOWS, max_query_length=64, do_lower_case=True)
    assert (long.returncode, long.stderr) == (0, "")
    assert (made / "out" / "predictions.json").read_bytes() == predictions
    old = answers(made, "old.npy", **WINDOWS)
    assert old.returncode == 0 and "does not say how its records were made" in old.stdout
    assert (made / "out" / "predictions.json").read_bytes() == predictions


@pytest.mark.parametrize(
    ("name", "value", "made_with"),
    [
        ("doc_stride", 70, 64),
        ("max_query_length", 16, 64),
        ("max_seq_length", 384, 128),
        ("do_lower_case", False, True),
    ],
)
def test_other_window_flags_are_rejected(made, name, value, made_with):
    assert_fails_with_one_line(answers(made, **{name: value}), f"--{name}={value}", f"made with {made_with}")


def test_other_vocabulary_and_questions_are_rejected(made, tmp_path):
    pieces = VOCAB.read_text().splitlines()
    swapped = tmp_path / "vocab.txt"
    swapped.write_text("\n".join([*pieces[:1000], *pieces[1000:][::-1]]) + "\n")
    assert_fails_with_one_line(answers(made, vocab_file=swapped), "--vocab_file=", "another vocabulary")
    content = json.loads(QUESTIONS.read_text())
    content["data"][0]["paragraphs"].reverse()
    content["data"].reverse()
    (tmp_path / "reordered.json").write_text(json.dumps(content))
    result = answers(made, predict_file=tmp_path / "reordered.json")
    assert_fails_with_one_line(result, "--predict_file=", "in another order")


def test_bytes_after_results_must_be_a_description(made, tmp_path):
    for name, damage in (("short", b"{"), ("other", b'{"kind": 1}'), ("binary", b"\xff\x00"), ("deep", b"[" * 60000)):
        (tmp_path / name).write_bytes((made / "old.npy").read_bytes() + damage)
        assert_fails_with_one_line(answers(tmp_path, name), name, "damaged")


def test_checksums_of_vocabularies():
    """Ignores line ends, a byte order mark and empty lines at the end, but not empty lines elsewhere or the order."""
    plain = vocab_checksum(b"[PAD]\n[UNK]\na\n")
    assert {vocab_checksum(data) for data in (b"[PAD]\r\n[UNK]\r\na", b"\xef\xbb\xbf[PAD]\n[UNK]\na\n\n\n")} == {plain}
    assert len({plain, vocab_checksum(b"[PAD]\n\n[UNK]\na\n"), vocab_checksum(b"[UNK]\n[PAD]\na\n")}) == 3


@pytest.mark.parametrize("content", ["[]", "{}", '{"kind": "x", "vocab_size": "1"}'])
def test_damaged_description(tmp_path, content):
    (tmp_path / "records.json").write_text(content)
    with pytest.raises(UserError, match="records.json: damaged"):
        description.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 0},
        {"doc_stride": 0},
        {"max_seq_length": 67},
        {"max_seq_length": 10**400},
        {"masked_lm_prob": "0.15"},
        {"masked_lm_prob": math.nan},
        {"masked_lm_prob": math.inf},
        {"max_predictions_per_seq": -1},
    ],
    ids=str,
)
def test_impossible_numbers(tmp_path, change):
    """They would end in a traceback, or in windows without end."""
    lengths = {"doc_stride": 32, "max_query_length": 64}
    described = description.describe(description.SQUAD_PREDICTION, {"a": 6}, b"a\n", True, 68, **lengths)
    (tmp_path / "records.json").write_text(json.dumps(described))
    assert description.read(tmp_path) == described
    (tmp_path / "records.json").write_text(json.dumps(described | change))
    with pytest.raises(UserError, match="records.json: damaged"):
        description.read(tmp_path)
