"""The suite's SQuAD data and answers against google-research/bert's own run_squad.py, feature for feature and byte for
byte, on a few thousand hard questions. Runs where BERT_REPO names a checkout of google-research/bert:

    BERT_REPO=/tmp/bert python -m pytest tests/text/test_against_google.py
"""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import hard_text
from records.prediction_file import result_dtype
from running import ROOT, run
from squad_questions import read_records

BERT_REPO = os.environ.get("BERT_REPO")
pytestmark = pytest.mark.skipif(not BERT_REPO, reason="BERT_REPO names no checkout of google-research/bert")

LIMITS = {"max_seq_length": 40, "doc_stride": 11, "max_query_length": 9}


def run_google(*arguments, **flags):
    command = [sys.executable, str(ROOT / "benchmarks/google_squad.py"), BERT_REPO, *map(str, arguments)]
    flags = {"output_dir": "none", **flags}
    subprocess.run([*command, *(f"--{name}={value}" for name, value in flags.items())], check=True)


def hard_string(generator, length):
    parts = []
    while sum(map(len, parts)) < length:
        kind = generator.random()
        if kind < 0.35:
            parts.append(generator.choice(hard_text.WORDS))
        elif kind < 0.6:
            parts.append(" ")
        elif kind < 0.95:
            parts.append(generator.choice(hard_text.CHARACTERS))
        else:
            parts.append(chr(generator.randrange(sys.maxunicode + 1)))
    return "".join(parts)


def hard_squad(seed, num_contexts, version_2=False, begin="the "):
    """Questions over hard text that begins with `begin`. Google's script raises an exception where an answer lies
    beyond the context or the context has no word at all, so that there is neither here."""
    generator = random.Random(seed)
    paragraphs = []
    for number in range(num_contexts):
        context = begin + hard_string(generator, generator.choice([0, 10, 100, 400]))
        if generator.random() < 0.5:
            context = generator.choice(["", " ", "\u200b "]) + context
        qas = []
        for _ in range(3):
            start = generator.randrange(len(context))
            end = min(start + generator.choice([0, 1, 3, 10, 40]), len(context))
            text = context[start:end] if generator.random() < 0.9 else context[start:end][::-1]
            answer = {"text": text, "answer_start": start}
            question = hard_string(generator, generator.choice([0, 5, 40]))
            qas.append({"id": f"{number}-{len(qas)}", "question": question, "answers": [answer]})
            if version_2:
                qas[-1]["is_impossible"] = generator.random() < 0.3
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "2.0" if version_2 else "1.1", "data": [{"paragraphs": paragraphs}]}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(hard_text.VOCAB) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("task", ["eval", "train", "train shuffled", "train version 2"])
def test_features(files, task, do_lower_case):
    is_training = task != "eval"
    version_2 = task.endswith("2")
    shuffle = task.endswith("shuffled")
    (files / "squad.json").write_text(json.dumps(hard_squad(f"{task} {do_lower_case}", 700, version_2)))
    flags = {**LIMITS, "do_lower_case": do_lower_case, "version_2_with_negative": version_2, "shuffle": shuffle}
    flags["vocab_file"] = files / "vocab.txt"
    input_flag = {"train_file" if is_training else "predict_file": files / "squad.json"}
    run_google(files / "google.json", f"--task={task[:5].strip()}", **flags, **input_flag)
    expected = json.loads((files / "google.json").read_text())

    result = run(
        "tools/create_squad_data.py",
        input_file=files / "squad.json",
        output_dir=files / "parts",
        is_training=is_training,
        part_num=3,
        **flags,
    )
    assert result.returncode == 0, result.stderr
    records = read_records(files / "parts")
    assert len(records) == len(expected) > 2000
    for record, feature in zip(records, expected, strict=True):
        for name in ("input_ids", "input_mask", "segment_ids"):
            assert record[name] == feature[name]
        if is_training:
            assert record["start_positions"] == [feature["start_position"]]
            assert record["end_positions"] == [feature["end_position"]]
        else:
            assert record["unique_ids"] == [feature["unique_id"]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("version_2", [False, True])
def test_predictions(files, seed, ties, version_2):
    do_lower_case = seed != 1
    # It raises another one for version 2 where none of the best spans is valid, as in a very short context.
    begin = "the old house " * 20 if version_2 else "the "
    content = hard_squad(f"{seed} {ties} {version_2}", 300, begin=begin)
    (files / "squad.json").write_text(json.dumps(content))
    flags = {**LIMITS, "vocab_file": files / "vocab.txt", "predict_file": files / "squad.json"}
    flags.update(
        do_lower_case=do_lower_case,
        version_2_with_negative=version_2,
        n_best_size=[20, 20 if version_2 else 5, 40][seed],
    )
    flags.update(max_answer_length=[30, 10, 30][seed], null_score_diff_threshold=[0.0, -3.0, 2.0][seed])
    parts = run(
        "tools/create_squad_data.py",
        input_file=files / "squad.json",
        output_dir=files / "parts",
        is_training=False,
        vocab_file=files / "vocab.txt",
        do_lower_case=do_lower_case,
        **LIMITS,
    )
    assert parts.returncode == 0, parts.stderr
    num_windows = len(read_records(files / "parts"))
    generator = np.random.default_rng(seed)
    results = np.zeros(num_windows, result_dtype(LIMITS["max_seq_length"]))
    results["unique_id"] = 1000000000 + np.arange(num_windows)
    for name in ("start_logits", "end_logits"):
        results[name] = generator.normal(0, 3, results[name].shape)
        if ties:
            results[name] = np.round(results[name])
    np.save(files / "all_results.npy", results)

    (files / "google").mkdir()
    run_google(files / "all_results.npy", "--task=answer", **{**flags, "output_dir": files / "google"})
    result = run(
        "npy2json.py", all_results_file=files / "all_results.npy", **{**flags, "output_dir": files / "answers"}
    )
    assert result.returncode == 0, result.stderr
    expected = {path.name: path.read_bytes() for path in (files / "google").iterdir()}
    assert len(expected) == (3 if version_2 else 2)
    assert {path.name: path.read_bytes() for path in (files / "answers").iterdir()} == expected
