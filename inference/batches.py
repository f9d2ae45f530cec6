"""Converts texts to batches of model inputs with little padding."""

import re
import sys

import numpy as np

from records import squad_batches
from system.errors import UserError
from system.input_files import open_input, reading
from text.classification import input_arrays
from text.tokenization import UNKNOWN, warn_of_unknown

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


def read_stdin():
    """Returns the text on stdin. Raises UserError if stdin is a terminal, or the text is not UTF-8."""
    if sys.stdin.isatty():
        raise UserError("there is no text: give it in the command, or on stdin")
    with reading("stdin"):
        return sys.stdin.buffer.read().decode("utf-8-sig")


def read_stdin_lines():
    """Returns (line, its place) pairs of stdin. Raises UserError as read_stdin does, or if it is empty.

    Only a line feed ends a line, as in a file: str.splitlines() also splits at U+2028 and others.
    """
    lines = read_stdin().split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError("stdin: is empty; give a text a line")
    return [(line.removesuffix("\r"), f"stdin: line {number}") for number, line in enumerate(lines, 1)]


def check_is_text(text, place):
    """Raises UserError, naming the `place`, if a text from the command line is not UTF-8 or is blank."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: is not UTF-8") from None
    if not text.strip():
        raise UserError(f"{place}: is empty; give a text")


def split_pair(line):
    """Returns (text, second text or None) of a line."""
    line = line.strip()
    match = _PAIR.match(line)
    return match.groups() if match else (line, None)


def encode(texts, tokenizer, max_seq_length):
    """Returns the inputs of (text, second text or None) pairs, as text.classification.input_arrays does."""
    pieces = [(ids_of(first, tokenizer), ids_of(second or "", tokenizer)) for first, second in texts]
    return input_arrays(pieces, tokenizer.vocab, max_seq_length)


def ids_of(text, tokenizer):
    """Returns the ids of the pieces of a text, int32 [S]."""
    return np.frombuffer(tokenizer.encode(text), np.int32)


def warn_of_unknown_pieces(ids, texts, model):
    """Warns, naming characters, if many of the `ids`, int32 arrays, of the `texts` are [UNK]."""
    together = np.concatenate(ids)
    unknown = np.count_nonzero(together == model.vocab[UNKNOWN])
    warn_of_unknown(model.run.model_load_dir, unknown, len(together), texts, model.vocab, model.do_lower_case)


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
