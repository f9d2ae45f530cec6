"""Snapshots of a small BERT with seeded weights and a vocabulary of hard_text, for the tools that use a model."""

import dataclasses
import os
from unittest import mock

import numpy as np

import hard_text
from in_process import run_in_process
from running import ROOT
from snapshots import layout, model_files, variables

HEADS = 4
VOCAB = list(hard_text.VOCAB)
SIZE = variables.ModelSize(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=HEADS,
    intermediate_size=40,
    max_position_embeddings=48,
    type_vocab_size=2,
)


def values(heads=(), size=SIZE, seed=0, deviation=0.3):
    """Returns name in a snapshot -> float32 array, of the encoder and `heads` of variables.head_shapes."""
    shapes = variables.encoder_shapes(size)
    for head in heads:
        shapes |= variables.head_shapes(size)[head]
    # NumPy guarantees that this generator's numbers never change.
    generator = np.random.RandomState(seed)
    return {
        name: generator.normal(1.0 if name.endswith("gamma") else 0.0, deviation, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_snapshot(folder, arrays, size=SIZE, vocab=VOCAB, do_lower_case=True, config=True):
    """Writes a snapshot of `arrays`, name -> array; without what is None or False of the files that describe it."""
    files = model_files.encode(
        model_files.config_of(size) if config else None,
        "".join(f"{piece}\n" for piece in vocab).encode() if vocab is not None else None,
        do_lower_case,
    )
    with layout.open_writer(folder) as write:
        for name, array in arrays.items():
            write(name, array, files if name == variables.WORD_EMBEDDINGS else None)
    return folder


def write_squad_snapshot(folder):
    """Writes a snapshot of a SQuAD model for 64 pieces, with the vocabulary of dataset/; returns the folder."""
    size = dataclasses.replace(SIZE, vocab_size=30522, max_position_embeddings=64)
    vocab = (ROOT / "dataset/vocab.txt").read_text(encoding="utf-8").splitlines()
    return write_snapshot(folder, values(["squad"], size), size, vocab)


def write_tiny_squad_snapshot(folder):
    """Writes a snapshot of a SQuAD model of running.TINY_MODEL's size, without moments; returns the folder."""
    size = variables.ModelSize(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=40,
        type_vocab_size=2,
    )
    return write_snapshot(folder, values(["squad"], size, deviation=0.02), size, vocab=None)


def run_tool(main, script, snapshot, *arguments, **flags):
    """Like run_in_process, for a tool that loads OneFlow: here into this process, and not into a child."""
    with mock.patch.dict(os.environ, BERT_SUPERVISE="0"):
        return run_in_process(main, script, *arguments, model_load_dir=snapshot, **flags)
