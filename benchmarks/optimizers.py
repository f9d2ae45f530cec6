"""Times the updates of Adam and LAMB by the native kernels, side by side, on all variables of a BERT.

    python benchmarks/optimizers.py --turns=20

In each turn both update every variable once. The ratio is the median of those of the turns.
"""

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine import kernel_files, native  # noqa: E402

# BERT-base: name of a kind of variables -> (numbers in each, how many there are, whether they decay).
VARIABLES = {
    "word embeddings": (30522 * 768, 1, True),
    "position embeddings": (512 * 768, 1, True),
    "768 x 768": (768 * 768, 12 * 4 + 2, True),
    "768 x 3072": (768 * 3072, 12 * 2, True),
    "biases, LayerNorm": (768, 12 * 12 + 4, False),  # those of 3072 numbers as four
}


class Settings(ctypes.Structure):
    """BertAdam of kernels/kernels.h."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "gradient_scale", "l1", "l2",
            "bias_correction1", "bias_correction2",
        )
    ]  # fmt: skip


class Variable:
    """A variable with its gradient and moments, and the arguments of the kernels."""

    def __init__(self, count, decays, generator):
        normal = [generator.standard_normal(count, np.float32) * np.float32(0.02) for _ in range(3)]
        self._arrays = [*normal, np.full(count, 1e-4, np.float32)]
        self._settings = Settings(1e-6, 0.9, 0.999, 1e-6, 0.01 * decays, 1.0, 0.0, 0.0, 1.0, 1.0)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in self._arrays]
        self.arguments = (ctypes.c_int64(count), ctypes.byref(self._settings), *pointers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20, metavar="N")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all processors")
    parser.add_argument("--set", default=kernel_files.built_sets()[0], help="instruction set")
    args = parser.parse_args()
    library = native.open_library(args.set)
    library.bert_set_thread_count(args.threads)
    generator = np.random.default_rng(0)
    print(f"{processor()}, {args.set}, {library.bert_thread_count()} thread(s), {args.turns} turns")
    print("| variables | millions | Adam, ms | LAMB, ms | LAMB / Adam |")
    print("| --- | --- | --- | --- | --- |")
    kinds = {
        name: [Variable(count, decays, generator) for _ in range(number)]
        for name, (count, number, decays) in VARIABLES.items()
    }
    seconds = [[update(library, variables) for variables in kinds.values()] for _ in range(args.turns + 1)][1:]
    for index, (name, (count, number, _)) in enumerate(VARIABLES.items()):
        tell(name, count * number, [turn[index] for turn in seconds])
    total = sum(count * number for count, number, _ in VARIABLES.values())
    tell("all", total, [tuple(map(sum, zip(*turn, strict=True))) for turn in seconds])


def update(library, variables):
    """Updates each variable once by both; returns the (seconds of Adam, of LAMB)."""
    started = time.perf_counter()
    for variable in variables:
        library.bert_adam(*variable.arguments, None)
    between = time.perf_counter()
    for variable in variables:
        library.bert_lamb(*variable.arguments)
    return between - started, time.perf_counter() - between


def tell(name, count, seconds):
    """Prints a line of the table for [(seconds of Adam, of LAMB)], one for each turn."""
    adam, lamb = (statistics.median(times) * 1e3 for times in zip(*seconds, strict=True))
    ratio = statistics.median(second / first for first, second in seconds)
    print(f"| {name} | {count / 1e6:.1f} | {adam:.1f} | {lamb:.1f} | {ratio:.2f} |")


def processor():
    """Returns the processor's name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))


if __name__ == "__main__":
    main()
