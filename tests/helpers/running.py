"""Runs the scripts like a user; shared by their tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import native

ROOT = Path(__file__).resolve().parent.parent.parent

# For tests that need the native library. The others run with and without it: BERT_KERNELS=none make test.
needs_kernels = pytest.mark.skipif(
    not native.is_built() or os.environ.get("BERT_KERNELS") == "none",
    reason="no native kernels: make kernels builds them, and BERT_KERNELS=none leaves them out",
)

# For the environment of scripts that run to their end. They do not wait for the disk (fsync), which takes 2 seconds a
# snapshot of the smallest model. Only a power failure could show the difference.
WITHOUT_FSYNC = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parent / "without_fsync"), os.environ.get("PYTHONPATH")])
    )
}

# A model with steps of a fraction of a second.
TINY_MODEL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size_per_head": 16,
    "vocab_size": 200,
    "max_position_embeddings": 40,
}


def run(script, *arguments, timeout=300, cwd=ROOT, **flags):
    """Runs a script of the suite with arguments and `--flag=value` pairs; returns the CompletedProcess, with text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    command += [f"--{name}={value}" for name, value in flags.items()]
    environment = {**os.environ, **WITHOUT_FSYNC}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def assert_fails_with_one_line(result, *fragments, status=2):
    """Asserts that the script ended with `status` and exactly one line on stderr, which has all `fragments`."""
    assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert str(fragment) in lines[0], lines[0]
