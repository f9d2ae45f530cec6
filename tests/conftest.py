"""What the tests share: running the scripts as a user does, and small data sets."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import native
import ofrecord

ROOT = Path(__file__).resolve().parent.parent

# For tests of scripts that are to use the library. The others run with and without it: BERT_KERNELS=none make test.
needs_kernels = pytest.mark.skipif(
    not native.is_built() or os.environ.get("BERT_KERNELS") == "none",
    reason="no native kernels: make kernels builds them, and BERT_KERNELS=none leaves them out",
)

# A model small enough for a step in a fraction of a second.
TINY_MODEL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size_per_head": 16,
    "vocab_size": 200,
    "max_position_embeddings": 40,
}


def pytest_configure(config):
    """Without a seed hypothesis tries the same cases every time: new ones are for `make fuzz`."""
    if config.getoption("hypothesis_seed") is None:
        hypothesis.settings.register_profile("same_cases", derandomize=True)
        hypothesis.settings.load_profile("same_cases")


def run(script, *arguments, timeout=300, cwd=ROOT, **flags):
    """Runs a script of the suite with arguments and `--flag=value` pairs; returns the CompletedProcess, with text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    command += [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


def assert_fails_with_one_line(result, *fragments, status=2):
    """The script ended with `status` and told why in exactly one line on stderr, which holds all `fragments`."""
    assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert str(fragment) in lines[0], lines[0]


def random_pretraining_features(generator, seq_length, max_predictions_per_seq, vocab_size):
    """The features of one made-up pre-training record, padding and unused predictions included."""
    tokens = int(generator.integers(seq_length // 2, seq_length + 1))
    predictions = int(generator.integers(1, max_predictions_per_seq + 1))

    def padded(values, length, dtype=np.int32):
        return np.pad(np.asarray(values, dtype=dtype), (0, length - len(values)))

    return {
        "input_ids": padded(generator.integers(0, vocab_size, tokens), seq_length),
        "input_mask": padded(np.ones(tokens), seq_length),
        "segment_ids": padded(np.arange(tokens) >= tokens // 2, seq_length),
        "masked_lm_positions": padded(
            np.sort(generator.choice(tokens, predictions, replace=False)), max_predictions_per_seq
        ),
        "masked_lm_ids": padded(generator.integers(0, vocab_size, predictions), max_predictions_per_seq),
        "masked_lm_weights": padded(np.ones(predictions), max_predictions_per_seq, np.float32),
        "next_sentence_labels": generator.integers(0, 2, 1).astype(np.int32),
    }


def write_pretraining_part(path, count, seq_length=32, max_predictions_per_seq=5, vocab_size=200, seed=0):
    """Writes a part of made-up pre-training records and returns their features."""
    generator = np.random.default_rng(seed)
    records = [
        random_pretraining_features(generator, seq_length, max_predictions_per_seq, vocab_size) for _ in range(count)
    ]
    with ofrecord.open_writer(path) as write:
        for features in records:
            write(ofrecord.serialize(features))
    return records


@pytest.fixture
def tiny_data(tmp_path):
    """A folder with one part of 12 made-up pre-training records (seq_length 32, 5 predictions, 200 words)."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_pretraining_part(folder / "part-0", 12)
    return folder


def write_squad_parts(folder, count, parts=1, seq_length=32, vocab_size=200, seed=0, is_training=True):
    """Writes made-up SQuAD records, numbered from 1000000000 if not for training, in contiguous blocks to parts."""
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    records = []
    for index in range(count):
        features = random_pretraining_features(generator, seq_length, 1, vocab_size)
        features = {name: features[name] for name in ("input_ids", "input_mask", "segment_ids")}
        if is_training:
            features["start_positions"], features["end_positions"] = generator.integers(
                0, seq_length // 2, (2, 1)
            ).astype(np.int32)
        else:
            features["unique_ids"] = np.array([1000000000 + index], dtype=np.int32)
        records.append(features)
    for part, block in enumerate(np.array_split(np.arange(count), parts)):
        with ofrecord.open_writer(folder / f"part-{part}") as write:
            for index in block:
                write(ofrecord.serialize(records[index]))
    return records


@pytest.fixture(autouse=True)
def no_rank_in_the_environment(monkeypatch):
    """OneFlow, once a test has loaded it, leaves these variables behind, and scripts that are run would heed them."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def signals_are_heeded():
    """Also where the tests run in the background of a shell, or under nohup: scripts would inherit deafness to them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
