"""Test cases for SQuAD data and answers, and their outputs from google-research/bert and from the suite.

An output is a dict: feature name -> array, or file name -> bytes.
"""

import json
import random
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

import create_squad_data
import hard_text
import npy2json
from in_process import run_in_process
from records.prediction_file import result_dtype
from running import ROOT
from squad_questions import read_records
from text.tokenization import Tokenizer, read_vocab

LIMITS = {"max_seq_length": 40, "doc_stride": 11, "max_query_length": 9}
INPUT_FEATURES = ("input_ids", "input_mask", "segment_ids")
# Feature name in the suite's records -> name in google-research/bert.
EVAL_FEATURES = {name: name for name in INPUT_FEATURES} | {"unique_ids": "unique_id"}
TRAIN_FEATURES = {name: name for name in INPUT_FEATURES} | {
    "start_positions": "start_position",
    "end_positions": "end_position",
}


class Case(NamedTuple):
    """A JSON-serialisable test case, so that it can be recorded with its output."""

    task: str  # of benchmarks/google_squad.py: eval, train, answer or tokenize
    content: Any  # of the SQuAD file; for tokenize, the list of texts
    vocab: list[str]
    flags: dict[str, Any]  # of run_squad.py, without its files
    logits: dict[str, Any] | None = None  # for answer: the arguments of write_results


def hard_string(generator, length):
    parts: list[str] = []
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
    """Returns a SQuAD file over hard text that begins with `begin`.

    Avoids answers beyond the context and contexts without words, on which Google's script raises an exception.
    """
    generator = random.Random(seed)
    paragraphs = []
    for number in range(num_contexts):
        context = begin + hard_string(generator, generator.choice([0, 10, 100, 400]))
        if generator.random() < 0.5:
            context = generator.choice(["", " ", "\u200b "]) + context
        qas: list[dict[str, Any]] = []
        for _ in range(3):
            start = generator.randrange(len(context))
            end = min(start + generator.choice([0, 1, 3, 10, 40]), len(context))
            text = context[start:end] if generator.random() < 0.9 else context[start:end][::-1]
            answer = {"text": text, "answer_start": start}
            question = hard_string(generator, generator.choice([0, 5, 40]))
            qas.append({"id": f"{number}-{len(qas)}", "question": question, "answers": [answer]})
            if version_2:
                qas[-1]["is_impossible"] = generator.random() < 0.3
                if qas[-1]["is_impossible"] and generator.random() < 0.5:
                    qas[-1]["answers"] = []
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "2.0" if version_2 else "1.1", "data": [{"paragraphs": paragraphs}]}


def feature_case(task, do_lower_case, num_contexts):
    """Returns a Case; `task` is eval, train, train shuffled or train version 2."""
    version_2 = task.endswith("2")
    flags = {
        **LIMITS,
        "do_lower_case": do_lower_case,
        "version_2_with_negative": version_2,
        "shuffle": task.endswith("shuffled"),
    }
    content = hard_squad(f"{task} {do_lower_case}", num_contexts, version_2)
    return Case(task.split()[0], content, list(hard_text.VOCAB), flags)


def answer_case(seed, ties, version_2, num_contexts):
    """Returns a Case of the task answer. `seed` 0, 1 or 2 also selects the flags."""
    # For version 2, Google's script raises an exception if none of the best spans is valid, as in a short context.
    begin = "the old house " * 20 if version_2 else "the "
    flags = {
        **LIMITS,
        "do_lower_case": seed != 1,
        "version_2_with_negative": version_2,
        "n_best_size": [20, 20 if version_2 else 5, 40][seed],
        "max_answer_length": [30, 10, 30][seed],
        "null_score_diff_threshold": [0.0, -3.0, 2.0][seed],
    }
    content = hard_squad(f"{seed} {ties} {version_2}", num_contexts, version_2, begin)
    return Case("answer", content, list(hard_text.VOCAB), flags, {"seed": seed, "ties": ties})


def write_results(path, num_windows, seq_length, seed, ties):
    """Writes all_results.npy with random logits; with `ties` they are whole numbers."""
    # NumPy guarantees that this generator's numbers never change.
    generator = np.random.RandomState(seed)
    results = np.zeros(num_windows, result_dtype(seq_length))
    results["unique_id"] = 1000000000 + np.arange(num_windows)
    for name in ("start_logits", "end_logits"):
        results[name] = generator.normal(0, 3, results[name].shape)
        if ties:
            results[name] = np.round(results[name])
    np.save(path, results)


def write_case(case, folder):
    """Writes the case's files to `folder`, including the suite's records and the logits."""
    (folder / "vocab.txt").write_text("\n".join(case.vocab) + "\n", encoding="utf-8")
    (folder / "content.json").write_text(json.dumps(case.content))
    if case.task == "tokenize":
        return
    flags = {name: case.flags[name] for name in (*LIMITS, "do_lower_case")}
    is_training = case.task == "train"
    if is_training:
        flags |= {name: case.flags[name] for name in ("version_2_with_negative", "shuffle")}
    result = run_in_process(
        create_squad_data.main,
        "create_squad_data.py",
        input_file=folder / "content.json",
        vocab_file=folder / "vocab.txt",
        output_dir=folder / "parts",
        is_training=is_training,
        part_num=3,
        **flags,
    )
    assert result.returncode == 0, result.stderr
    if case.task == "answer":
        num_windows = len(read_records(folder / "parts"))
        write_results(folder / "all_results.npy", num_windows, case.flags["max_seq_length"], **case.logits)


def suite_output(case, folder):
    """Returns the suite's output for the case with files in `folder`."""
    if case.task == "tokenize":
        tokenizer = Tokenizer(read_vocab(folder / "vocab.txt"), case.flags["do_lower_case"])
        return {"pieces.json": json.dumps([tokenizer.tokenize(text) for text in case.content]).encode()}
    if case.task == "answer":
        # Without version 2, Google's script ignores the threshold, and npy2json.py refuses it.
        ignored = () if case.flags["version_2_with_negative"] else ("null_score_diff_threshold",)
        result = run_in_process(
            npy2json.main,
            "npy2json.py",
            all_results_file=folder / "all_results.npy",
            predict_file=folder / "content.json",
            vocab_file=folder / "vocab.txt",
            output_dir=folder / "answers",
            **{name: value for name, value in case.flags.items() if name not in ignored},
        )
        assert result.returncode == 0, result.stderr
        return {path.name: path.read_bytes() for path in (folder / "answers").iterdir()}
    records = read_records(folder / "parts")
    return {name: np.array([record[name] for record in records], np.int32) for name in records[0]}


def google_output(bert_repo, case, folder):
    """Returns the output of google-research/bert's run_squad.py for the case with files in `folder`."""
    (folder / "google").mkdir()
    paths = {"answer": folder / "all_results.npy", "tokenize": folder / "google/pieces.json"}
    path = paths.get(case.task, folder / "features.json")
    flags = {
        "train_file" if case.task == "train" else "predict_file": folder / "content.json",
        "vocab_file": folder / "vocab.txt",
        "output_dir": folder / "google",
        **case.flags,
    }
    command = [sys.executable, ROOT / "benchmarks/google_squad.py", bert_repo, path, f"--task={case.task}"]
    subprocess.run([*command, *(f"--{name}={value}" for name, value in flags.items())], check=True)
    if case.task in paths:
        return {path.name: path.read_bytes() for path in (folder / "google").iterdir()}
    features = json.loads(path.read_text())
    names = TRAIN_FEATURES if case.task == "train" else EVAL_FEATURES
    return {
        ours: np.array([np.ravel(feature[googles]) for feature in features], np.int32)
        for ours, googles in names.items()
    }
