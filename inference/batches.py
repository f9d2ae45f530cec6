"""Texts as batches of a model's inputs, of little padding."""

import re

import numpy as np

from records import squad_batches
from system.errors import UserError
from system.input_files import open_input, reading
from text.classification import input_arrays

# [CLS], two [SEP], and one piece of each text.
SHORTEST_INPUT = 5

_SEQUENCE = ("input_ids", "input_mask", "segment_ids")
# As in google-research/bert's extract_features.py.
_PAIR = re.compile(r"^(.*) \|\|\| (.*)$")


def read_texts(path):
    """Reads the lines of a file: a list of (text, None), or of (text, second text) for a line `text ||| second text`.

    Raises UserError if it cannot be read, is not UTF-8 or has no line.
    """
    with reading(f"--input_file={path}"), open_input(path, newline="\n") as file:
        texts = [split_pair(line) for line in file]
    if not texts:
        raise UserError(f"--input_file={path}: is empty; give a text a line")
    return texts


def split_pair(line):
    """Returns (text, second text or None) of a line."""
    line = line.strip()
    match = _PAIR.match(line)
    return match.groups() if match else (line, None)


def encode(texts, tokenizer, max_seq_length):
    """Returns the inputs of (text, second text or None) pairs, as text.classification.input_arrays does."""
    pieces = [
        tuple(np.frombuffer(tokenizer.encode(text or ""), np.int32) for text in pair) for pair in texts
    ]  # fmt: skip
    return input_arrays(pieces, tokenizer.vocab, max_seq_length)


def score(scorer, features, batch_size):
    """Runs a training.scoring.Scorer on all rows of `features`, name -> int32 [N, ...].

    Yields (row, its outputs) for each row, by length: [S, ...] of outputs for tokens, cut as the batch is.
    """
    lengths = squad_batches.make_batches(features["input_mask"], batch_size, scorer.lengths)
    pending = np.ones(len(features["input_mask"]), bool)
    for length, rows in lengths:
        inputs = {name: features[name][rows] for name in scorer.inputs}
        inputs |= {name: inputs[name][:, :length] for name in _SEQUENCE}
        outputs = scorer.score(inputs, length)
        for index, row in enumerate(rows):
            # Rows are repeated to fill the last batch.
            if pending[row]:
                pending[row] = False
                yield row, [output[index] for output in outputs]
