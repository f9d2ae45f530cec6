"""The linear layers of --use_int8 in NumPy: what kernels/kernels.h says of bert_int8_linear.

In float64, which holds all sums of integers exactly.
"""

import numpy as np

_SMALLEST = np.float32(1e-36)


def scale(ranges, most):
    """Returns (step, its inverse) on which each of the float32 `ranges` has `most` steps, in float64."""
    counts = ranges >= _SMALLEST
    steps = np.where(counts, ranges / np.float32(most), 0)
    inverses = np.where(counts, np.float32(most) / np.maximum(ranges, _SMALLEST), 0)
    return steps.astype(np.float64), inverses.astype(np.float64)


def scale_of_rows(x):
    """Returns the scale of x, float32 [N, inputs]: two arrays [N, 1]."""
    return scale(x.max(axis=1, keepdims=True, initial=0) - x.min(axis=1, keepdims=True, initial=0), 255)


def scale_of_columns(weight):
    """Returns the scale of a weight, float32 [inputs, outputs]: two arrays [1, outputs]."""
    sums = weight[:-1:2] + weight[1::2]
    return scale(np.maximum(*(np.abs(each).max(axis=0, keepdims=True, initial=0) for each in (weight, sums))), 127)


def linear(x, weight, bias=None):
    """x weight (+ bias): float32 [N, inputs], [inputs, outputs], [outputs] -> float64 [N, outputs]."""
    x_step, x_inverse = scale_of_rows(x)
    weight_step, weight_inverse = scale_of_columns(weight)
    zero = np.rint(-x.min(axis=1, keepdims=True, initial=0) * x_inverse)
    integers = np.clip(np.rint(x * x_inverse) + zero, 0, 255) - zero
    return integers @ np.rint(weight * weight_inverse) * (x_step * weight_step) + (0 if bias is None else bias)


def nearness_to_ties(x, scale):
    """Returns how near values of x are to a tie of its `scale`, in steps."""
    scaled = x * scale[1]
    return 0.5 - np.abs(scaled - np.rint(scaled))


def away_from_ties(x, scale_of):
    """Returns `x` with zeros for values so near a tie that float32 and float64 may round them differently."""
    while (near := nearness_to_ties(x, scale_of(x)) < 1e-3).any():
        x = np.where(near, np.float32(0), x)
    return x
