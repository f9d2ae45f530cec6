"""Models with random weights, a batch for them, and their outputs from Hugging Face Transformers.

Everything is generated from seeds by the NumPy generator whose numbers never change.
"""

import json
import os
import subprocess
from typing import Any, NamedTuple

import numpy as np

from hugging_face_folders import ENCODER, HIDDEN, MODELS, POOLER, VOCAB, write_hf_folder
from running import ROOT

BATCH, SEQ_LENGTH, PREDICTIONS = 3, 20, 5


class Case(NamedTuple):
    class_name: str
    table: dict[str, Any]  # of hugging_face_folders
    batch: dict[str, np.ndarray]  # as the suite has it
    labels: dict[str, np.ndarray]  # what Transformers takes beside the inputs
    config: dict[str, Any]


def cases():
    """Returns name -> Case."""
    batch = random_batch(VOCAB)
    # Transformers computes logits of all positions; the loss ignores those with the label -100.
    masked_lm = np.full((BATCH, SEQ_LENGTH), -100)
    for row in range(BATCH):
        used = batch["masked_lm_weights"][row] == 1
        masked_lm[row, batch["masked_lm_positions"][row][used]] = batch["masked_lm_ids"][row][used]
    next_sentence = batch["next_sentence_labels"][:, 0]
    positions = {name: batch[name][:, 0] for name in ("start_positions", "end_positions")}
    found = {
        name: Case(name, MODELS[name], batch, labels, {})
        for name, labels in {
            "BertForPreTraining": {"labels": masked_lm, "next_sentence_label": next_sentence},
            "BertForQuestionAnswering": positions,
        }.items()
    }
    for num_labels, label_ids in {3: np.array([2, 0, 1]), 1: np.array([0.5, -1.25, 3.0], np.float32)}.items():
        head = {
            "classifier.weight": ("output_weights", (num_labels, HIDDEN)),
            "classifier.bias": ("output_bias", (num_labels,)),
        }
        name = "BertForSequenceClassification"
        found[f"{name}, labels: {num_labels}"] = Case(
            name,
            ENCODER | POOLER | head,
            batch | {"label_ids": label_ids[:, np.newaxis]},
            {"labels": label_ids},
            {"num_labels": num_labels},
        )
    return found


def random_batch(vocab_size):
    """Returns a batch with padding, unused predictions and labels of every task except classification."""
    generator = np.random.RandomState(1)
    lengths = np.array([[SEQ_LENGTH], [13], [8]])
    mask = (np.arange(SEQ_LENGTH) < lengths).astype(np.int64)
    return {
        "input_ids": generator.randint(0, vocab_size, (BATCH, SEQ_LENGTH)) * mask,
        "input_mask": mask,
        "segment_ids": generator.randint(0, 2, (BATCH, SEQ_LENGTH)) * mask,
        "masked_lm_positions": np.stack([generator.permutation(8)[:PREDICTIONS] for _ in range(BATCH)]),
        "masked_lm_ids": generator.randint(0, vocab_size, (BATCH, PREDICTIONS)),
        "masked_lm_weights": (np.arange(PREDICTIONS) < np.array([[5], [3], [4]])).astype(np.float32),
        "next_sentence_labels": np.array([[0], [1], [1]]),
        "start_positions": np.array([[2], [0], [7]]),
        "end_positions": np.array([[19], [3], [7]]),
    }


def tensors_of(case):
    """Returns random weights under their names in Transformers."""
    generator = np.random.RandomState(0)
    return {
        key: generator.normal(1.0 if key.endswith("LayerNorm.weight") else 0.0, 0.2, shape).astype(np.float32)
        for key, (_, shape, *_) in case.table.items()
    }


def transformers_output(python, case, folder):
    """Runs the case's model in Transformers, with the interpreter `python`. Returns (outputs, versions) by name."""
    write_hf_folder(folder / "hf", tensors_of(case), **case.config)
    outputs, report = run_transformers(python, case.class_name, folder, case.batch, **case.labels)
    assert_all_loaded(report)
    return outputs, report["versions"]


def run_transformers(python, class_name, folder, batch, **labels):
    """Runs the model in `folder`/hf. Returns (outputs by name, report of transformers_outputs.py)."""
    np.savez(
        folder / "batch.npz",
        input_ids=batch["input_ids"],
        attention_mask=batch["input_mask"],
        token_type_ids=batch["segment_ids"],
        **labels,
    )
    printed = subprocess.run(
        [
            python,
            ROOT / "tests" / "helpers" / "transformers_outputs.py",
            class_name,
            *(folder / file for file in ("hf", "batch.npz", "outputs.npz")),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
    ).stdout
    with np.load(folder / "outputs.npz") as outputs:
        return dict(outputs), json.loads(printed)


def assert_all_loaded(report):
    """Asserts that Transformers used every weight and missed none."""
    loading = report["loading"]
    assert {"missing_keys", "unexpected_keys"} <= loading.keys()
    assert all(found == [] for found in loading.values()), loading
