"""Compares training and prediction of BERT with other frameworks: medians, and ratios to this project in float32.

The sides take turns, each in its own process, for --rounds rounds. A process takes 15 to 60 seconds on two cores;
TABLES lists the processes of a round.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch_environment  # noqa: E402
from system.command_line import ArgumentParser, add_number, positive_int, probability  # noqa: E402
from system.errors import UserError  # noqa: E402
from util import run_script  # noqa: E402

INSTRUCTION_SETS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# OneFlow as installed: its own kernels, BLAS and defaults.
AS_INSTALLED = {"BERT_KERNELS": "none", "ONEFLOW_ENABLE_ONEDNN_OPTS": "1"}
SIDES = (
    "this project", "this project, bfloat16", "OneFlow as installed", "Transformers", "Transformers, bfloat16",
    "PyTorch", "PyTorch, compiled", "PyTorch, bfloat16", "PyTorch, bfloat16, compiled", "PyTorch, bfloat16 weights",
    "TensorFlow", "matrix products alone",
)  # fmt: skip

TRAINING = ("this project", "this project, bfloat16", "Transformers", "PyTorch", "matrix products alone")
# The others are padded to the full length, or with `, sorted` each batch to its longest window. The matrix products are
# those of the windows without padding.
PREDICTION = (
    "this project", "this project, --skip_padding", "this project, bfloat16",
    "this project, int8", "this project, int8, --skip_padding",
    "ONNX Runtime", "ONNX Runtime, sorted", "ONNX Runtime, int8, sorted", "OpenVINO", "OpenVINO, sorted",
    "OpenVINO, bfloat16, sorted", "Transformers", "Transformers, sorted", "Transformers, compiled",
    "Transformers, bfloat16, sorted", "matrix products alone",
)  # fmt: skip
# With --num_accumulation_steps=4 and --activation_checkpointing.
MEMORY = ("this project", "accumulation", "checkpointing", "accumulation, checkpointing")
BASE, LARGE = {"layers": 12, "heads": 12}, {"layers": 24, "heads": 16}
SHORT, LONG = {"length": 128, "predictions": 20}, {"length": 512, "predictions": 80}
# name -> list of (changes to the flags, sides).
TABLES = {
    "step": [({}, SIDES)],
    "no_dropout": [({"dropout": 0.0}, SIDES)],
    "batch": [({"batch": batch}, TRAINING) for batch in (1, 2, 4, 8, 16, 32)],
    "length": [({"length": length}, TRAINING) for length in (128, 256, 384, 512)],
    "memory": [
        ({**model, **length, "batch": batch}, MEMORY)
        for model, length, batch in ((BASE, SHORT, 16), (BASE, LONG, 4), (LARGE, SHORT, 8), (LARGE, LONG, 4))
    ],
    "prediction": [({"length": 384, "windows": 64}, PREDICTION)],
}


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_number(parser, "--num_hidden_layers", positive_int, 12, "layers of the model")
    add_number(parser, "--batch_size", positive_int, 8, "sequences in a batch")
    add_number(parser, "--seq_length", positive_int, 128, "tokens in a sequence")
    add_number(parser, "--max_predictions_per_seq", positive_int, 20, "masked tokens")
    add_number(parser, "--dropout", probability, 0.1, "dropout everywhere")
    add_number(parser, "--steps", positive_int, 5, "timed steps per process")
    add_number(parser, "--rounds", positive_int, 3, "processes per side")
    parser.add_argument("--table", choices=(*TABLES, "all"), default="all", help="which comparison to run")
    parser.add_argument("--sides", metavar="A;B;...", help="sides to run (default: those of the table)")
    parser.add_argument(
        "--torch_python", metavar="FILE", help="Python with PyTorch and Transformers (default: create one)"
    )
    args = parser.parse_args()
    chosen = args.sides.split(";") if args.sides else None
    for side in chosen or ():
        if side not in (*SIDES, *MEMORY, *PREDICTION):
            raise UserError(f"--sides: '{side}' is none of {'; '.join(dict.fromkeys((*SIDES, *MEMORY, *PREDICTION)))}")
    tables = list(TABLES) if args.table == "all" else [args.table]
    of_tables = {side for table in tables for _, sides in TABLES[table] for side in sides}
    needs_torch = any(map(is_in_torch_environment, chosen or of_tables))
    torch_python = args.torch_python or (torch_environment.find_or_make() if needs_torch else None)
    size = {
        "layers": args.num_hidden_layers, "batch": args.batch_size, "length": args.seq_length,
        "predictions": args.max_predictions_per_seq, "dropout": args.dropout, "steps": args.steps,
    }  # fmt: skip
    print(describe_processor())
    for table in tables:
        for changes, sides in TABLES[table]:
            print(f"\n{table}: {json.dumps({**size, **changes})}", flush=True)
            known = {"prediction": PREDICTION, "memory": MEMORY}.get(table, SIDES)
            results = {side: [] for side in chosen or sides if side in known}
            for round_ in range(args.rounds):
                for side, runs in results.items():
                    print(f"round {round_ + 1}: {side}", file=sys.stderr, flush=True)
                    runs.append(run_side(side, {**size, **changes}, torch_python))
            print_table(results)


def is_in_torch_environment(side):
    return any(name in side for name in ("Torch", "Transformers", "ONNX Runtime", "OpenVINO"))


def describe_processor():
    """Returns the processors that may be used, their name, and those of their instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    has = set(re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)[1].split())
    sets = [known for known in INSTRUCTION_SETS if known in has]
    return f"{len(os.sched_getaffinity(0))} processors: {name[1]}, {' '.join(sets)}"


def run_side(side, size, torch_python):
    """Runs a side in its process; returns its report. If it fails, prints its last line to stderr and returns None."""
    python = torch_python if is_in_torch_environment(side) else sys.executable
    environment = {**os.environ, **(AS_INSTALLED if side == "OneFlow as installed" else {})}
    script = "bench_prediction.py" if "windows" in size else "bench_side.py"
    command = [python, ROOT / "benchmarks" / script, side, json.dumps(size)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        print(f"{side}: failed: {(result.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr, flush=True)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def print_table(results):
    """Prints a row for each side: median step, ratio to this project, first step, peak memory, processor seconds."""
    medians = {}
    for side, runs in results.items():
        runs = [run for run in runs if run is not None]
        if runs:
            medians[side] = {
                "step": statistics.median(second for run in runs for second in run["seconds"]),
                "processor": statistics.median(second for run in runs for second in run["processor_seconds"]),
                "first": statistics.median(run["first_step"] for run in runs),
                "peak": statistics.median(run["peak_gb"] for run in runs),
            }
    reference = medians.get("this project", {}).get("step")
    print(f"{'':34} {'s/step':>8} {'ratio':>7} {'first s':>8} {'peak GB':>8} {'processor s':>12}")
    for side, median in medians.items():
        processor = median["processor"]
        ratio = f"{median['step'] / reference:7.2f}" if reference else f"{'':7}"
        print(f"{side:34} {median['step']:8.2f} {ratio} {median['first']:8.1f} {median['peak']:8.2f} {processor:12.2f}")


if __name__ == "__main__":
    run_script(main)
