"""Checks this suite on the GPUs of this machine, and prints a report to be pasted: what `make gpu-check` runs.

    python benchmarks/gpu_check.py

It runs the tests for GPUs, then BERT-base in batches of several sizes in float32 and mixed precision. Its speed stands
beside what OneFlow's makers have published (Oneflow-Inc/DLPerf).
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from engine import device  # noqa: E402
from system.command_line import ArgumentParser, add_number, positive_int  # noqa: E402
from system.errors import RunError, UserError  # noqa: E402
from util import run_script  # noqa: E402

# Sentences a second of BERT-base of length 128 on one V100-SXM2-16GB, by (mixed precision, batch).
PUBLISHED = {(False, 32): 152.9, (False, 96): 156.0, (True, 64): 534.7}

BERT_BASE = {
    "seq_length": 128, "max_predictions_per_seq": 20, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_size_per_head": 64, "vocab_size": 30522, "max_position_embeddings": 512,
    "data_dir": ROOT / "dataset", "data_part_num": 1, "device": "cuda",
}  # fmt: skip
PRODUCTS = {"matmul", "batch_matmul", "broadcast_matmul", "broadcast_matmul_grad_b"}
# They move nothing.
VIEWS = {"reshape", "reshape_like", "identity", "amp_black_identity", "amp_white_identity", "expand_dims"}
UPDATES = {"adam_update", "multi_tensor_adam_update", "lamb_update"}


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_number(parser, "--iter_num", positive_int, 40, "iterations for each speed")
    parser.add_argument("--batches", type=positive_int, nargs="+", default=[32, 64, 96], metavar="B", help="sizes")
    args = parser.parse_args()
    gpus, problem = device.usable_gpus()
    if problem:
        raise UserError(f"OneFlow can use no GPU here: {problem}")
    print(f"{platform.platform()}, Python {platform.python_version()}")
    for gpu in gpus:
        print(f"GPU: {gpu}")
    print(f"\nTests for GPUs: {tested()}\n")
    print("| batch | precision | sentences/s | V100, published | GB | operators | GB moved by others than products |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for mixed in (False, True):
        for batch in args.batches:
            row = measured(batch, mixed, args.iter_num)
            published = PUBLISHED.get((mixed, batch), "")
            print(f"| {batch} | {'mixed' if mixed else 'float32'} | {row[0]} | {published} | {row[1]} |", end="")
            print(f" {row[2]} | {row[3]} |", flush=True)


def tested():
    """The last line that pytest prints."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-p", "no:cacheprovider", "tests"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        print(result.stdout)
    return result.stdout.strip().splitlines()[-1]


def measured(batch, mixed, iter_num):
    """Sentences a second, peak memory by OneFlow's plan in GB, operators, GB moved in a step; as they are printed."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {**BERT_BASE, "batch_size_per_device": batch, "use_fp16": mixed, "iter_num": iter_num}
        flags |= {"loss_print_every_n_iter": 1, "log_dir": folder, "model_save_dir": folder}
        result = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "helpers" / "gpu_program.py")]
            + [f"--{name}={value}" for name, value in flags.items()],
            env={**os.environ, "SCRIPT": "run_pretraining", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if "out of GPU memory" in result.stderr:
            return "out of memory", "", "", ""
        if result.returncode:
            raise RunError(f"batch {batch}: {result.stderr.strip().splitlines()[-1]}")
        seconds = [float(found) for found in re.findall(r"speed: ([\d.]+)\(sec/batch\)", result.stdout)]
        planned = re.findall(r" needs (\d+) bytes of a GPU", (Path(folder) / "oneflow.log").read_text())
        (graph,) = json.loads((Path(folder) / "structure-0.json").read_text())["graphs"]
    speed = batch / max(statistics.median(seconds[len(seconds) // 2 :]), 1e-3)
    peak = f"{int(planned[-1]) / 1e9:.2f}" if planned else "unknown, without the native kernels"
    return f"{speed:.1f}", peak, len(graph), f"{moved(graph) / 1e9:.2f}"


def moved(graph):
    """Bytes that a step's operators take and make, but for products of matrices and what moves nothing.

    An update writes three of the four arrays that it reads. A look-up does not read the whole table.
    """
    total = 0
    for operator in graph:
        if operator["type"] in UPDATES:
            total += operator["bytes"] * 7 / 4
        elif operator["type"] not in PRODUCTS | VIEWS | {"gather"}:
            total += operator["bytes"]
    return total


if __name__ == "__main__":
    run_script(main)
