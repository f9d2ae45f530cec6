"""npy2json.py against the plain implementation in reference_squad.py, byte for byte."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hard_text
import npy2json
import reference_squad
from in_process import run_in_process
from records.prediction_file import result_dtype
from running import ROOT, assert_fails_with_one_line, run
from squad_questions import one_paragraph, squad_contents
from squad_results import SETTINGS, make_results, write_inputs
from text.squad_answers import TextFinder

pytestmark = pytest.mark.slow

SCRIPT = "npy2json.py"
FILES = ["predictions.json", "nbest_predictions.json", "null_odds.json"]


def expected_files(content, results, **options):
    logits = {
        int(unique_id): (start_logits.tolist(), end_logits.tolist()) for unique_id, start_logits, end_logits in results
    }
    return reference_squad.write_predictions(content, hard_text.VOCAB, logits, {**SETTINGS, **options})


def answer(content, results, **options):
    """The texts of the files that npy2json.py writes, run within this process."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {**write_inputs(Path(folder), content, results), **SETTINGS, **options}
        with mock.patch.object(sys, "argv", [SCRIPT, *(f"--{name}={value}" for name, value in flags.items())]):
            npy2json.main()
        return {path.name: path.read_text() for path in (Path(folder) / "answers").iterdir()}


def assert_same_answers(content, results, **options):
    expected = dict(zip(FILES, expected_files(content, results, **options), strict=True))
    if not options.get("version_2_with_negative"):
        del expected["null_odds.json"]
    assert answer(content, results, **options) == expected


@settings(max_examples=80, deadline=None)
@given(
    squad_contents(),
    st.integers(0, 1000),
    st.booleans(),
    st.fixed_dictionaries(
        {
            "doc_stride": st.integers(1, 30),
            "do_lower_case": st.booleans(),
            "n_best_size": st.sampled_from([1, 3, 20, 100]),
            "max_answer_length": st.sampled_from([1, 5, 30]),
            "version_2_with_negative": st.booleans(),
            "null_score_diff_threshold": st.sampled_from([-5.0, 0.0, 2.5]),
        }
    ),
)
def test_any_text_and_any_logits(content, seed, ties, options):
    if not options["version_2_with_negative"]:
        del options["null_score_diff_threshold"]
    assert_same_answers(content, make_results(content, seed, ties, **options), **options)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("version_2_with_negative", [False, True])
def test_each_hard_text(ties, version_2_with_negative):
    texts = [*hard_text.EXAMPLES, " ".join(hard_text.EXAMPLES[2:]), "the old house " * 60]
    content = {"data": [one_paragraph(text, ("what " * 9, "", 0))["data"][0] for text in texts]}
    for number, article in enumerate(content["data"]):
        article["paragraphs"][0]["qas"][0]["id"] = str(number)
    for seed in range(2):
        results = make_results(content, seed, ties)
        assert len(results) > 60
        assert_same_answers(content, results, version_2_with_negative=version_2_with_negative)


@pytest.mark.parametrize(
    "pieces, words, expected",
    [
        # The example with which google-research/bert explains itself.
        ("steve smith", "Steve Smith's", "Steve Smith"),
        ("zo ##e", "Zoë's", "Zoë"),
        ("( 1895 -", "John (1895-1943).", "(1895-"),
        ("the", "the the", "the"),
        # The numbers of characters differ: a ligature does not, but ß and the accent of its own character do.
        ("ﬁne", "ﬁne,", "ﬁne"),
        ("e", "e\u0301,", "e\u0301,"),
        ("[UNK]", "中国!", "中国!"),
        ("", "old house", "old house"),
        ("a b", "a\u00a0b.", "a\u00a0b."),
    ],
)
def test_from_pieces_back_to_the_text(pieces, words, expected):
    begin, end = TextFinder(do_lower_case=True)(pieces.split(), words.split(" "))
    assert words[begin:end] == expected
    assert reference_squad.final_text(pieces.replace(" ##", ""), words, True) == expected


def test_the_place_is_that_of_the_pieces():
    """Of a text that occurs several times in the same words, as in Chinese; the text is that of the first."""
    find = TextFinder(do_lower_case=True)
    words = ["(中国a中国,中国)"]
    assert find(["中", "国"], words) == (1, 3)
    for before, expected in ((0, (1, 3)), (4, (4, 6)), (7, (7, 9))):
        assert find(["中", "国"], words, ["(", "中", "国", "a", "中", "国", ","][:before]) == expected
    # Capitals: as in google-research/bert, the first.
    assert find(["the"], ["The-the"], ["the", "-"]) == (0, 3)
    assert find(["the"], ["the-The-the"], ["the", "-", "the", "-"]) == (8, 11)


def test_no_possible_answer():
    content = one_paragraph("\u200b \u200b", ("?", "", 0))
    results = np.zeros(0, result_dtype(24))
    written = answer(content, results)
    assert json.loads(written["predictions.json"]) == {"q0": "empty"}
    written = answer(content, results, version_2_with_negative=True)
    assert json.loads(written["predictions.json"]) == {"q0": ""}
    assert json.loads(written["null_odds.json"]) == {"q0": 1000000}


def test_order_of_the_results_does_not_matter():
    content = one_paragraph("the old house " * 30, ("?", "", 0), ("the", "", 0))
    results = make_results(content, 0, ties=True)
    shuffled = np.random.default_rng(0).permutation(results)
    assert answer(content, shuffled) == answer(content, results)


def test_tutorial_command_line(tmp_path):
    content = one_paragraph("The old house of Zoë. " * 30, ("What?", "", 0), ("Who?", "", 0))
    results = make_results(content, 1, ties=False, max_seq_length=384, doc_stride=128, max_query_length=64)
    flags = write_inputs(tmp_path, content, results)
    (tmp_path / "bert_config.json").write_text(
        json.dumps({"vocab_size": len(hard_text.VOCAB), "max_position_embeddings": 512})
    )
    flags.update(do_train=False, do_predict=True, max_seq_length=384, doc_stride=128)
    result = run(SCRIPT, bert_config_file=tmp_path / "bert_config.json", **flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 answers" in result.stdout
    expected = expected_files(content, results, max_seq_length=384, doc_stride=128, max_query_length=64)
    for name, text in list(zip(FILES, expected, strict=True))[:2]:
        assert (tmp_path / "answers" / name).read_text() == text
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_verbose_logging_tells_what_is_not_aligned(tmp_path):
    content = one_paragraph("e\u0301,", ("?", "", 0))
    flags = write_inputs(tmp_path, content, make_results(content, 0, ties=False))
    result = run(SCRIPT, **flags, **SETTINGS, verbose_logging=True)
    assert result.returncode == 0
    assert "'e\u0301,' and 'e ,' differ in length" in result.stderr
    assert run(SCRIPT, **flags, **SETTINGS).stderr == ""


def test_loads_neither_tensorflow_nor_oneflow():
    script = "import sys, npy2json; print([name for name in ('tensorflow', 'oneflow') if name in sys.modules])"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


CONTENT = one_paragraph("the old house " * 20, ("What?", "", 0))
RESULTS = make_results(CONTENT, 0, ties=False)


def assert_rejected(folder, results, *fragments, content=CONTENT, **flags):
    """npy2json.py refuses these results (an array, or the bytes of the file) in one line and writes nothing."""
    inputs = write_inputs(folder, content, RESULTS if isinstance(results, bytes) else results)
    if isinstance(results, bytes):
        inputs["all_results_file"].write_bytes(results)
    assert_fails_with_one_line(run(SCRIPT, cwd=folder, **{**inputs, **SETTINGS, **flags}), *fragments)
    assert not (folder / "answers").exists()


def test_results_that_do_not_fit_the_windows(tmp_path):
    number = len(RESULTS)
    assert number > 8
    missing = f"2 of {number} windows"
    assert_rejected(tmp_path, np.delete(RESULTS, [3, 5]), missing, "unique_id 1000000003", "vocabulary")
    repeated = RESULTS.copy()
    repeated["unique_id"][3] = repeated["unique_id"][4]
    unique = f"has {number} results but {number - 1} unique_ids (more than once: 1000000004)"
    assert_rejected(tmp_path, repeated, unique, "predict again")
    assert_rejected(tmp_path, np.append(RESULTS, RESULTS[4]), "more than once: 1000000004")
    more = RESULTS[:2].copy()
    more["unique_id"] += number
    assert_rejected(tmp_path, np.append(RESULTS, more), f"2 of {number + 2} results", "vocabulary")
    assert_rejected(tmp_path, RESULTS[:0], f"{number} of {number} windows")
    # Other windows, because of another stride or a vocabulary that splits the words otherwise.
    assert_rejected(tmp_path, RESULTS, f"of {number} results", "doc_stride", doc_stride=11)
    (tmp_path / "other.txt").write_text("\n".join(piece for piece in hard_text.VOCAB if piece != "house"))
    assert_rejected(tmp_path, RESULTS, "windows", "no result", vocab_file=tmp_path / "other.txt")


def test_results_of_another_length(tmp_path):
    results = make_results(CONTENT, 0, ties=False, max_seq_length=32)
    assert_rejected(tmp_path, results, f"{len(results)} of {len(results)} results", "seq_length 32", "24")


def test_results_of_a_diverged_model(tmp_path):
    results = RESULTS.copy()
    results["start_logits"][1, 3] = np.nan
    results["end_logits"][4, 0] = -np.inf
    assert_rejected(tmp_path, results, f"2 of {len(RESULTS)} results", "NaN", "unique_id 1000000001")


def header(text, version=b"\x01\x00"):
    """An .npy file of only this header."""
    encoded = text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(encoded).to_bytes(2, "little") + encoded


DESCRIPTION = "[('unique_id', '<i8'), ('start_logits', '<f4', (24,)), ('end_logits', '<f4', (24,))]"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04 a zip file",
        b"\x80\x04K\x01.",
        b"\x93NUMPY\x09\x00",
        header("{"),
        header("{'descr': [}"),
        header("'''"),
        header("{'descr': '<f4'}"),
        header("(" * 3000 + ")" * 3000),
        header("{'descr': 'no dtype', 'fortran_order': False, 'shape': (3,), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }") + b"1234",
        header("{'descr': " + DESCRIPTION + ", 'fortran_order': False, 'shape': (3,), }"),
        header("{'descr': " + DESCRIPTION + ", 'fortran_order': False, 'shape': (3L,), }"),
        header("{'descr': " + DESCRIPTION + ", 'fortran_order': False, 'shape': (-3,), }"),
        header("{'descr': " + DESCRIPTION + ", 'fortran_order': False, 'shape': (9223372036854775807,), }"),
        header("{'descr': " + DESCRIPTION + ", 'fortran_order': False, 'shape': (" + "9" * 100 + ",), }"),
        header("{'descr': " + DESCRIPTION.replace("24", "2147483647") + ", 'fortran_order': False, 'shape': (9,), }"),
        header("{'descr': " + DESCRIPTION.replace("24", "-24") + ", 'fortran_order': False, 'shape': (9,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': ('a',), }"),
    ],
)
def test_hostile_results(tmp_path, content):
    assert_rejected(tmp_path, content, tmp_path / "all_results.npy")


@pytest.mark.parametrize(
    "results",
    [
        np.zeros(3),
        np.zeros((3, 2), result_dtype(24)),
        np.zeros(3, [("unique_id", np.int64), ("start_logits", np.float32, 24)]),
        np.zeros(3, [("unique_id", np.int32), ("start_logits", np.float32, 24), ("end_logits", np.float32, 24)]),
        np.zeros(3, [("unique_id", np.int64), ("start_logits", np.float32), ("end_logits", np.float32)]),
        np.zeros(3, [("unique_id", np.int64), ("start_logits", np.float16, 24), ("end_logits", np.float16, 24)]),
        # As the original scripts wrote it: pickled.
        np.array([(1000000000, [0.0], [0.0])], dtype=object),
    ],
)
def test_arrays_of_another_kind(tmp_path, results):
    assert_rejected(tmp_path, results, tmp_path / "all_results.npy", "run_squad_predict.py")


@pytest.mark.parametrize(
    "flags, fragments",
    [
        ({"do_train": True}, ["do_train", "run_squad.py"]),
        ({"do_predict": False}, ["do_predict"]),
        ({"all_results_file": "none.npy"}, ["all_results_file", "there is no such file"]),
        ({"all_results_file": "."}, ["all_results_file", "is a folder; give a file"]),
        ({"predict_file": "none.json"}, ["there is no such file", "none.json"]),
        ({"vocab_file": "none.txt"}, ["vocab_file", "none.txt"]),
        ({"bert_config_file": "none.json"}, ["there is no such file", "none.json"]),
        ({"max_query_length": 21}, ["max_seq_length=24", "max_query_length"]),
        ({"n_best_size": 0}, ["n_best_size"]),
        ({"max_answer_length": 0}, ["max_answer_length"]),
        ({"null_score_diff_threshold": "nan"}, ["null_score_diff_threshold", "nan"]),
        ({"null_score_diff_threshold": 1}, ["has no effect without --version_2_with_negative"]),
        ({"output_dir": "dev.json"}, ["dev.json: is a file; give a folder"]),
    ],
)
def test_bad_flags(tmp_path, flags, fragments):
    assert_rejected(tmp_path, RESULTS, *fragments, **flags)


@pytest.mark.parametrize(
    "config, fragments",
    [
        ({"vocab_size": 100, "max_position_embeddings": 512}, [f"{len(hard_text.VOCAB)} pieces", "100"]),
        ({"vocab_size": len(hard_text.VOCAB), "max_position_embeddings": 16}, ["max_seq_length=24", "16"]),
        ({"vocab_size": "many"}, ["vocab_size should be a whole number"]),
        ({}, ["vocab_size is missing"]),
        ([], ["should be an object"]),
    ],
)
def test_model_configuration_that_does_not_fit(tmp_path, config, fragments):
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps(config))
    assert_rejected(tmp_path, RESULTS, path, *fragments, bert_config_file=path)


def test_vocabulary_smaller_than_the_models(tmp_path):
    (tmp_path / "bert_config.json").write_text('{"vocab_size": 30522, "max_position_embeddings": 512}')
    flags = {**write_inputs(tmp_path, CONTENT, RESULTS), **SETTINGS, "output_dir": tmp_path / "noted"}
    result = run(SCRIPT, bert_config_file=tmp_path / "bert_config.json", **flags)
    assert result.returncode == 0
    assert result.stderr.startswith("npy2json.py: warning: ")
    assert f"{30522 - len(hard_text.VOCAB)} pieces fewer" in result.stderr
    # Where there is an error it is the only line.
    assert_rejected(tmp_path, RESULTS[1:], "no result", bert_config_file=tmp_path / "bert_config.json")


def test_questions_without_an_answer_need_their_flag(tmp_path):
    content = one_paragraph("The old house", ("?", "old", 4), ("Who?", "", 0), ("What?", "", 0))
    for question in content["data"][0]["paragraphs"][0]["qas"][1:]:
        question.update(answers=[], is_impossible=True)
    flags = {**write_inputs(tmp_path, content, make_results(content, 1, ties=False)), **SETTINGS}
    result = run_in_process(npy2json.main, SCRIPT, **flags)
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1)
    assert "dev.json: 2 of 3 questions are marked is_impossible, but all get an answer" in result.stderr
    result = run_in_process(npy2json.main, SCRIPT, **flags | {"version_2_with_negative": True})
    assert (result.returncode, result.stderr) == (0, "")


def test_two_questions_of_one_id(tmp_path):
    content = one_paragraph("the old house " * 20, ("What?", "", 0), ("Who?", "", 0))
    content["data"][0]["paragraphs"][0]["qas"][1]["id"] = "q0"
    assert_rejected(tmp_path, RESULTS, "same id", content=content)


def test_files_in_place_stay_if_writing_fails(tmp_path):
    flags = write_inputs(tmp_path, CONTENT, RESULTS)
    assert run(SCRIPT, **flags, **SETTINGS).returncode == 0
    before = {path.name: path.read_bytes() for path in flags["output_dir"].iterdir()}
    np.save(flags["all_results_file"], make_results(CONTENT, 5, ties=False))
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", sys.executable, str(ROOT / SCRIPT)]
    command = [*limited, *(f"--{name}={value}" for name, value in {**flags, **SETTINGS}.items())]
    result = subprocess.run(command, capture_output=True, text=True)
    assert_fails_with_one_line(result, "File too large", status=1)
    assert {path.name: path.read_bytes() for path in flags["output_dir"].iterdir()} == before
