"""Measures how much training differs between builds of the native kernels, which differ only in rounding.

    python benchmarks/build_differences.py --steps=100

Trains the same small model with the same seed on the sample in each build that the processor supports. Compares total
losses and the parameters of the last snapshot with those of the slowest build.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine import kernel_files  # noqa: E402

# 2 layers of 256. Without dropout: its masks are equal in all builds, but its noise would hide small differences.
FLAGS = {
    "device": "cpu", "data_dir": ROOT / "dataset", "data_part_num": 1, "seq_length": 128, "max_predictions_per_seq": 20,
    "vocab_size": 1200, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size_per_head": 64,
    "max_position_embeddings": 128, "batch_size_per_device": 4, "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0, "save_last_snapshot": True,
}  # fmt: skip

ONEDNN_NAMES = {"baseline": "SSE41", "avx2": "AVX2", "avx512": "DEFAULT"}


def trained(build, steps, learning_rate, folder):
    """Trains with one build. Returns (total loss of each step, all parameters as one vector), both float64."""
    flags = {**FLAGS, "iter_num": steps, "learning_rate": learning_rate, "warmup_batches": steps // 10}
    command = [sys.executable, ROOT / "run_pretraining.py", *(f"--{name}={value}" for name, value in flags.items())]
    command += [f"--log_dir={folder}", f"--model_save_dir={folder}"]
    # Restricts oneDNN, which detects the processor itself, to the same instructions.
    environment = {**os.environ, "BERT_KERNELS": build, "ONEDNN_MAX_CPU_ISA": ONEDNN_NAMES[build]}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    if f"native kernels: {build}," not in output:
        raise SystemExit(f"build {build} is not in use; run make kernels")
    (log,) = folder.glob("metrics-*.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [record["total_loss"] for record in records if "total_loss" in record]
    (snapshot,) = folder.glob("*last_snapshot*")
    variables = sorted(path for path in snapshot.rglob("out") if not path.parent.name.endswith(("-m", "-v")))
    parameters = np.concatenate([np.fromfile(path, np.float32) for path in variables])
    return np.array(losses), parameters.astype(np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    args = parser.parse_args()
    builds = kernel_files.built_sets()[::-1]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for build in builds:
            results[build] = trained(build, args.steps, args.learning_rate, Path(folder) / build)
    losses, parameters = results[builds[0]]
    print(
        f"{builds[0]}: {args.steps} steps, total loss {losses[0]:.4f} to {losses[-1]:.4f}, {parameters.size} parameters"
    )
    for build in builds[1:]:
        other_losses, other_parameters = results[build]
        relative = np.abs(other_losses / losses - 1)
        distance = np.linalg.norm(other_parameters - parameters) / np.linalg.norm(parameters)
        print(
            f"{build}: losses differ by up to {relative.max():.1e} of {builds[0]}'s, the last by {relative[-1]:.1e}; "
            f"the parameters by {distance:.1e} of their norm"
        )


if __name__ == "__main__":
    main()
