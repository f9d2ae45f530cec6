"""tools/ask.py: the answers are those of create_squad_data.py, run_squad_predict.py and npy2json.py."""

import io
import json
import os
import pty
import sys
from unittest import mock

import numpy as np
import pytest

import ask
import create_squad_data
import npy2json
import run_squad_predict
import small_models
from in_process import run_in_process
from inference import answers
from running import ROOT, assert_fails_with_one_line, needs_kernels
from text import squad_answers, squad_file, squad_windows
from text.tokenization import Tokenizer, read_vocab

SCRIPT = "ask.py"
VOCAB_FILE = ROOT / "dataset/vocab.txt"
WINDOWS = {"max_seq_length": 64, "doc_stride": 20, "max_query_length": 20}
CONTEXT = "The old lighthouse\u00a0was  built in 1850\nby Zoë Verne. " + "It stands 42 metres high. " * 12


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return small_models.write_squad_snapshot(tmp_path_factory.mktemp("model") / "of")


def run(snapshot, *arguments, stdin=None, **flags):
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin or b""))):
        return small_models.run_tool(ask.main, SCRIPT, snapshot, *arguments, **{"max_query_length": 20, **flags})


@pytest.mark.engine
@pytest.mark.parametrize(("skip_padding", "version_2"), [(True, True), (False, False)])
def test_answers_are_those_of_the_scripts_for_files(tmp_path, snapshot, skip_padding, version_2):
    """On all questions of dataset/squad; the answers byte for byte."""
    contents = [json.loads((ROOT / f"dataset/squad/{name}-v1.1.json").read_text()) for name in ("train", "dev")]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [article for content in contents for article in content["data"]]}))
    flags = {"version_2_with_negative": version_2} | ({"null_score_diff_threshold": -1.0} if version_2 else {})
    predictions, n_best, null_odds = answers_by_files(tmp_path, path, snapshot, skip_padding, flags)

    command = [f"--{name}={value}" for name, value in {**WINDOWS, **flags, "skip_padding": skip_padding}.items()]
    with mock.patch.object(sys, "argv", ["ask.py", f"--model_load_dir={snapshot}", "--question=x", *command]):
        arguments = ask.parse_arguments()
    model = answers.read_model(arguments)
    model.run.log_dir = str(tmp_path)
    answerer = answers.Answerer(model, arguments)
    _, paragraphs = squad_file.read_paragraphs(path)
    contexts = {one.id: paragraph.context for paragraph in paragraphs for one in paragraph.questions}
    texts = {one.id: one.text for paragraph in paragraphs for one in paragraph.questions}
    assert len(texts) == 65
    found = {key: answerer.answer(text, contexts[key]) for key, text in texts.items()}
    assert {key: value.answer.text for key, value in found.items()} == predictions
    for key, value in found.items():
        assert [answer.text for answer in value.n_best] == [entry["text"] for entry in n_best[key]]
        np.testing.assert_allclose(
            [answer.probability for answer in value.n_best], [entry["probability"] for entry in n_best[key]], rtol=1e-4
        )
        assert value.null_odds == (pytest.approx(null_odds[key], abs=1e-4) if version_2 else None)
        for answer in value.n_best:
            if answer.begin is not None:
                stands = contexts[key][answer.begin : answer.end]
                assert stands.split() == answer.text.split()


def answers_by_files(folder, path, snapshot, skip_padding, flags):
    """predictions.json, nbest_predictions.json and null_odds.json of the three scripts."""
    data = {"input_file": path, "output_dir": folder / "parts", "vocab_file": VOCAB_FILE, "is_training": False}
    steps = [
        (create_squad_data.main, "create_squad_data.py",
         {**data, **WINDOWS}),
        (run_squad_predict.main, "run_squad_predict.py",
         {"data_dir": folder / "parts", "model_load_dir": snapshot, "seq_length": 64, "batch_size_per_device": 16,
          "all_results_file": folder / "all.npy", "log_dir": folder, "device": "cpu", "skip_padding": skip_padding}),
        (npy2json.main, "npy2json.py",
         {"predict_file": path, "vocab_file": VOCAB_FILE, "all_results_file": folder / "all.npy",
          "output_dir": folder / "answers", **flags}),
    ]  # fmt: skip
    for main, script, step_flags in steps:
        with mock.patch.dict(os.environ, BERT_SUPERVISE="0"):
            result = run_in_process(main, script, **step_flags)
        assert result.returncode == 0, result.stderr
    names = ("predictions.json", "nbest_predictions.json", "null_odds.json")
    paths = [folder / "answers" / name for name in names]
    return [json.loads(one.read_text()) if one.exists() else None for one in paths]


@needs_kernels
def test_in_int8(snapshot):
    result = run(snapshot, "--use_int8", question="When was it built?", stdin=CONTEXT.encode())
    assert result.returncode == 0, result.stderr
    assert "\nThe encoder's linear layers multiply in int8 (--use_int8); all else is float32.\n" in result.stderr
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.engine
def test_tells_the_answer_and_where_it_stands(tmp_path, snapshot):
    (tmp_path / "context.txt").write_bytes(CONTEXT.encode())
    result = run(snapshot, "--json", question="When was it built?", context_file=tmp_path / "context.txt", n_best=3)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.keys() == {"question", "answer", "probability", "begin", "end", "n_best"}
    assert CONTEXT[found["begin"] : found["end"]] == found["answer"] != ""
    assert [entry["text"] for entry in found["n_best"]][0] == found["answer"] and len(found["n_best"]) == 3
    result = run(snapshot, question="When was it built?", stdin=CONTEXT.encode())
    answer, place = result.stdout.splitlines()
    assert answer == found["answer"]
    assert f"probability {found['probability']:.4f}, characters {found['begin']} to {found['end']}: " in place
    # A threshold that nothing reaches.
    flags = {"version_2_with_negative": True, "null_score_diff_threshold": -1e9, "context": CONTEXT}
    result = run(
        snapshot,
        "--json",
        **flags,
        stdin=b"When?\nWho built the old lighthouse by the sea, and why, and how, and for whom?\n",
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["answer"], line["begin"]) for line in lines] == [("", None), ("", None)]
    assert "stdin: line 2: has" in result.stderr and "is cut to the first 20" in result.stderr


@pytest.mark.engine
def test_questions_typed_on_a_terminal(snapshot):
    """A question with a fault does not end it."""
    controller, terminal = pty.openpty()
    os.write(controller, b"\xe2\x80\x8b\nWhen was it built?\n\n\x04")
    with mock.patch.object(sys, "stdin", os.fdopen(terminal, "r", encoding="utf-8")):
        result = small_models.run_tool(ask.main, SCRIPT, snapshot, context=CONTEXT, max_query_length=20)
    os.close(controller)
    assert result.returncode == 0, result.stderr
    assert "the question has no visible character; give a question" in result.stderr
    assert result.stdout.count("  probability ") == 1 and result.stdout.count(ask.PROMPT) == 4


def test_bad_input_gives_one_line(tmp_path, snapshot):
    """All before the engine is loaded."""
    encoder = small_models.write_snapshot(tmp_path / "of", small_models.values())
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_text(" \n")
    ask_it = {"question": "When?", "context": CONTEXT}
    for flags, stdin, fragment in [
        ({}, b"", "give --question, or the text by --context or --context_file"),
        ({"question": " ", "context": CONTEXT}, b"", "--question: is empty; give a text"),
        ({"question": "When?", "context": " "}, b"", "--context: is empty; give a text"),
        ({"question": "When?"}, b"", "stdin: is empty; give a text"),
        ({"question": "When?"}, b"\xff", "stdin: not UTF-8"),
        ({"context": CONTEXT}, b"", "stdin: is empty; give a text a line"),
        ({"context": CONTEXT}, b"When?\n\nWho?\n", "stdin: line 2: is empty; give a text"),
        ({"context": CONTEXT}, b"When?\x0cWho?\r\n\x01\n", "stdin: line 2: has no visible character; give a text"),
        ({"question": "\u200b", "context": CONTEXT}, b"", "--question: has no visible character; give a text"),
        ({"question": "When?", "context": "\u200b"}, b"", "--context: has no visible character; give a text"),
        ({"question": "\udce9", "context": CONTEXT}, b"", "--question: is not UTF-8"),
        ({"question": "When?", "context_file": tmp_path / "none"}, b"", "there is no such file"),
        ({"question": "When?", "context_file": tmp_path / "latin"}, b"", "not UTF-8: byte 3 is 0xe9"),
        ({"question": "When?", "context_file": tmp_path / "empty"}, b"", "is empty; give a text"),
        ({**ask_it, "context_file": "x"}, b"", "not allowed with argument"),
        ({**ask_it, "null_score_diff_threshold": 1}, b"", "has no effect without --version_2_with_negative"),
        ({**ask_it, "serve": 0}, b"", "--question and --json have no effect with --serve"),
        ({**ask_it, "max_queue": 1}, b"", "--max_queue has no effect without --serve"),
        ({"serve": 65536}, b"", "argument --serve: invalid port value: '65536'"),
        ({"serve": 0, "context": " "}, b"", "--context: is empty; give a text"),
        ({**ask_it, "n_best": 21}, b"", "--n_best=21 is more than --n_best_size=20"),
        ({**ask_it, "max_seq_length": 65}, b"", "--max_seq_length=65 is more than the 64 positions"),
        ({**ask_it, "max_query_length": 61}, b"", "--max_seq_length=64 is too small for --max_query_length=61"),
    ]:
        assert_fails_with_one_line(run(snapshot, stdin=stdin, **flags), fragment)
    assert_fails_with_one_line(run(encoder, **ask_it), "lacks cls-squad-output-weight", "run_squad.py trains")


def test_places_of_answers_in_a_context():
    """Words may be apart by any white space, and an answer may begin and end within words."""
    context = " \tThe (old)\u00a0house,\n\nof  Zoë's\u202f."
    document = squad_windows.tokenize_document(context, Tokenizer(read_vocab(VOCAB_FILE), True))
    assert document.words == ["The", "(old)\u00a0house,", "of", "Zoë's", "."]
    for first_word in range(len(document.words)):
        joined = " ".join(document.words[first_word:])
        for begin in range(len(joined)):
            for end in range(begin + 1, len(joined) + 1):
                text = joined[begin:end]
                if text != text.strip():
                    continue
                place = squad_answers.Place(first_word, begin, end)
                first, last = squad_answers.characters_of(place, document)
                assert context[first:last].split() == text.split()
