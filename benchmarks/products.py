"""The matrix products that BERT needs, by the native kernels: a lower limit for the time of all the rest."""

import ctypes
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine import kernel_files, native  # noqa: E402


def multiplier():
    """Returns multiply(a, b, c, m, n, k, batch=1, transpose_a=False, transpose_b=False): c[m, n] = a[m, k] b[k, n].

    a, b and c are float32 arrays of at least that many numbers, which are taken as contiguous matrices.
    """
    library = native.open_library(kernel_files.built_sets()[0])

    def matrix(array, rows, columns):
        return ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(columns), ctypes.c_int64(rows * columns)

    def multiply(a, b, c, m, n, k, batch=1, transpose_a=False, transpose_b=False):
        a = matrix(a, k, m) if transpose_a else matrix(a, m, k)
        b = matrix(b, n, k) if transpose_b else matrix(b, k, n)
        sizes = (ctypes.c_int64(value) for value in (batch, m, n, k))
        flags = ctypes.c_bool(transpose_a), ctypes.c_bool(transpose_b)
        library.bert_matmul(*flags, *sizes, ctypes.c_float(1), *a, *b, ctypes.c_float(0), *matrix(c, m, n))

    return multiply


class Encoder:
    """The matrix products of an encoder's forward pass. Each weight has its own memory, as in a model."""

    def __init__(self, layers, heads, head_size, intermediate_size):
        self._multiply = multiplier()
        self._heads, self._head_size = heads, head_size
        self._hidden, self._intermediate_size = heads * head_size, intermediate_size
        self._numbers = np.random.default_rng(0).standard_normal(4 * 1024 * 4096, dtype=np.float32)
        self._out = np.empty_like(self._numbers)
        sizes = [self._hidden**2] * 4 + [self._hidden * intermediate_size] * 2
        self._weights = [[self._numbers[:size].copy() for size in sizes] for _ in range(layers)]

    def multiply(self, lengths):
        """Computes the products of a batch of sequences of these lengths, without padding."""
        tokens, numbers, out = sum(lengths), self._numbers, self._out
        for *square, wide, narrow in self._weights:
            for weight in square:
                self._multiply(numbers, weight, out, tokens, self._hidden, self._hidden)
            self._multiply(numbers, wide, out, tokens, self._intermediate_size, self._hidden)
            self._multiply(numbers, narrow, out, tokens, self._hidden, self._intermediate_size)
            for length in lengths:
                self._multiply(numbers, numbers, out, length, length, self._head_size, batch=self._heads)
                self._multiply(numbers, numbers, out, length, self._head_size, length, batch=self._heads)
