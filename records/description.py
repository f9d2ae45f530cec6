"""Describes how the records of a folder were made, in small files beside the parts.

    <folder>/records.json   kind of record, vocabulary, case, lengths, and for SQuAD the windows and the questions
    <folder>/vocab.txt      the vocabulary
    <folder>/labels.txt     for classification: the labels, one per line in the order of their ids

A description is a JSON-serialisable dict. Parts from older versions or other programs have none.
"""

import hashlib
import json
import os
from pathlib import Path

from system.errors import UserError
from system.input_files import read_json
from system.output_files import atomic_file
from text.classification import encode_labels, read_labels
from text.tokenization import vocab_checksum

FILE = "records.json"
VOCAB_FILE = "vocab.txt"
LABELS_FILE = "labels.txt"

# The kinds of record.
PRETRAINING = "pre-training"
SQUAD_TRAINING = "SQuAD training"
SQUAD_PREDICTION = "SQuAD prediction"
CLASSIFICATION = "classification"

_TYPES = {
    "kind": str,
    "vocab_size": int,
    "vocab_sha256": str,
    "do_lower_case": bool,
    "max_seq_length": int,
    "max_predictions_per_seq": int,
    "masked_lm_prob": float,
    "doc_stride": int,
    "max_query_length": int,
    "questions_sha256": str,
    "task_name": str,  # a key of text.classification.TASKS
    "is_regression": bool,
    "has_labels": bool,
    "is_shuffled": bool,  # the records are not in the order of the lines
}
# Keys of every description.
_REQUIRED = ("kind", "vocab_size", "vocab_sha256", "do_lower_case", "max_seq_length")


def describe(kind, vocab, vocab_data, do_lower_case, max_seq_length, **others):
    """Returns the description of records of a kind; `vocab`: piece -> id, `vocab_data`: the bytes of its file."""
    return {
        "kind": kind,
        "vocab_size": max(vocab.values()) + 1,
        "vocab_sha256": vocab_checksum(vocab_data),
        "do_lower_case": do_lower_case,
        "max_seq_length": max_seq_length,
        **others,
    }


def questions_checksum(paragraphs):
    """Returns the SHA-256, in hex digits, of the questions and contexts of a SQuAD file, in order.

    `paragraphs`: from squad_file.read_paragraphs.
    """
    digest = hashlib.sha256()
    for paragraph in paragraphs:
        texts = [
            paragraph.context,
            *(text for question in paragraph.questions for text in (question.id, question.text)),
        ]
        digest.update(json.dumps(texts).encode())
    return digest.hexdigest()


def write(folder, description, vocab_data, labels=None):
    """Writes the description, the vocabulary and any labels into the folder of the parts."""
    if labels is not None:
        with atomic_file(Path(folder) / LABELS_FILE) as file:
            file.write(encode_labels(labels))
    with atomic_file(Path(folder) / VOCAB_FILE) as file:
        file.write(vocab_data)
    with atomic_file(Path(folder) / FILE, "w", encoding="utf-8") as file:
        file.write(json.dumps(description, indent=2) + "\n")


def read(folder):
    """Returns the description in `folder`, or None if there is none. Raises UserError if it is damaged."""
    path = Path(folder) / FILE
    if not os.path.lexists(path):
        return None
    return check(read_json(path), path)


def read_labels_of(folder):
    """Returns the labels in `folder`, a list of strings, or None if it has none. Raises UserError if damaged."""
    path = Path(folder) / LABELS_FILE
    return read_labels(path) if os.path.lexists(path) else None


def check(description, source):
    """Returns `description`. Raises UserError, naming its `source`, if it is not a valid one."""
    is_valid = (
        isinstance(description, dict)
        and all(name in description for name in _REQUIRED)
        and all(_is_valid(description[name], kind) for name, kind in _TYPES.items() if name in description)
    )
    if not is_valid:
        raise UserError(f"{source}: damaged: not a description of records; make the records again")
    return description


def _is_valid(value, kind):
    return type(value) is kind and (kind not in (int, float) or 0 <= value < 2**31)


def check_same_text(records, model_vocab_sha256, model_do_lower_case, records_name, model_name):
    """Raises UserError if the records were made with another vocabulary or case than the model's.

    `records`: their description. The model's values are None if unknown.
    """
    if model_vocab_sha256 not in (None, records["vocab_sha256"]):
        raise UserError(
            f"{records_name}: its records were made with another vocabulary than that of {model_name}; make them again "
            f"with --vocab_file={model_name}"
        )
    if model_do_lower_case not in (None, records["do_lower_case"]):
        raise UserError(
            f"{records_name}: its records were made with --do_lower_case={records['do_lower_case']}, the model of "
            f"{model_name} has {model_do_lower_case}; make them again"
        )
