"""One of several processes that sum arrays with each other through shared memory (kernels/rank_sum.cpp).

    rank_sums.py INSTRUCTION_SET MEMORY RANKS RANK FILE.npz

MEMORY is a path at which the memory can be opened. Says when it has joined, and begins at a line of stdin. The last
rank ends after its sums; the others begin another.
"""

import ctypes
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from engine import native  # noqa: E402

# Empty ones, some that are smaller than a cache line, and one that is larger than what is summed at a time.
SIZES = [0, 1, 17, 5, 0, 768, 2_000_003, 33]


def values(rank):
    """The arrays of a rank: normal, large, and tiny numbers, infinities and nan."""
    random = np.random.default_rng(rank)
    arrays = [random.standard_normal(size).astype(np.float32) for size in SIZES]
    arrays[2] *= np.float32(1e38)
    arrays[3] *= np.float32(1e-44)
    arrays[-1][:4] = [np.inf, -np.inf, np.nan, 1]
    return arrays


def main():
    instruction_set, path, ranks, rank, file = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    library = native.open_library(instruction_set)
    library.bert_set_thread_count(2)
    memory = os.open(path, os.O_RDWR)
    problem = library.bert_join_ranks(memory, ranks, rank)
    os.close(memory)
    print("joined" if problem == 0 else os.strerror(problem), flush=True)
    sys.stdin.readline()
    arrays = values(rank)
    sums = [np.full_like(array, 7) for array in arrays]

    counts = (ctypes.c_int64 * len(SIZES))(*SIZES)

    def pointers(group):
        return (ctypes.c_void_p * len(group))(*(array.ctypes.data for array in group))

    def add_up(inputs, outputs):
        library.bert_sum_over_ranks(len(SIZES), counts, pointers(inputs), pointers(outputs))

    add_up(arrays, sums)
    np.savez(file, *sums)
    library.bert_slices_size.restype = ctypes.c_int64
    slices = np.full(library.bert_slices_size(ctypes.c_int64(sum(SIZES)), ranks), np.nan, np.float32)
    library.bert_scatter_over_ranks(len(SIZES), counts, pointers(arrays), ctypes.c_void_p(slices.ctypes.data))
    sums = [np.full_like(array, 7) for array in arrays]
    library.bert_gather_over_ranks(len(SIZES), counts, ctypes.c_void_p(slices.ctypes.data), pointers(sums))
    np.savez(f"{file}.by_halves.npz", *sums)
    add_up(arrays, arrays)
    np.savez(f"{file}.in_place.npz", *arrays)
    if rank < ranks - 1:
        add_up(arrays, sums)


if __name__ == "__main__":
    main()
