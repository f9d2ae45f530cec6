"""The native kernels, one by one, against NumPy in float64: all instruction sets that this processor can run.

tests/engine/test_operators.py has them within OneFlow.
"""

import contextlib
import ctypes
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import int8_reference
import rank_sums
from engine import kernel_files, native
from running import ROOT

pytestmark = pytest.mark.skipif(not kernel_files.built_sets(), reason="no native kernels: make kernels builds them")

I64, F32, F64, INT, BOOL = ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_int, ctypes.c_bool

ROW_SHAPES = [(1, 1), (1, 7), (3, 64), (5, 768), (65, 100), (130, 33), (2, 30522)]


@pytest.fixture(scope="module", params=kernel_files.built_sets())
def library(request):
    library = native.open_library(request.param)
    library.instruction_set = request.param
    library.bert_set_thread_count(3)
    library.bert_sum_of_squares.restype = F64
    library.bert_stream_seed.restype = ctypes.c_uint64
    return library


def pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def unaligned(array):
    """A copy of `array` that starts one element off any wider alignment."""
    room = np.empty(array.nbytes + 68, np.uint8)
    start = (-room.ctypes.data) % 64 + array.itemsize
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def values(shape, kind="normal", seed=0):
    """float32 values: `normal`, or one of the extremes."""
    normal = np.random.default_rng(seed).standard_normal(shape)
    made = {
        "normal": normal,
        "large": normal * 1e4,
        "huge": normal * 1e18,
        "tiny": normal * 1e-30,
        "denormal": normal * 1e-40,
        "zero": normal * 0,
        "shifted": normal + 1000,
    }[kind]
    return unaligned(made.astype(np.float32))


KINDS = ["normal", "large", "huge", "tiny", "denormal", "zero", "shifted"]


def empty(*shape):
    return unaligned(np.full(shape, np.nan, np.float32))


def assert_close(actual, expected, relative=2e-6, floor=1e-44):
    """`actual` differs from `expected` by at most `relative` of the largest value in `expected`.

    Denormal values count too: `floor` is a few units in their last place.
    """
    tolerance = relative * np.abs(expected).max(initial=0) + floor
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def double(*arrays):
    return [array.astype(np.float64) for array in arrays]


erf = np.vectorize(math.erf)


def gelu64(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def gelu_derivative64(x):
    return 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("shape", ROW_SHAPES[:6])
@pytest.mark.parametrize("kind", KINDS)
def test_gelu(library, shape, kind):
    x, bias, dy = values(shape, kind), values(shape[1:], "normal", 1), values(shape, "normal", 2)
    y, dx, dbias = empty(*shape), empty(*shape), empty(shape[1])
    library.bert_gelu(I64(shape[0]), I64(shape[1]), pointer(x), None, pointer(y))
    assert_close(y, gelu64(x.astype(np.float64)), 3e-7)
    library.bert_gelu(I64(shape[0]), I64(shape[1]), pointer(x), pointer(bias), pointer(y))
    total = (x + bias).astype(np.float64)
    assert_close(y, gelu64(total), 3e-7)
    library.bert_bias_gelu_grad(*map(I64, shape), pointer(x), pointer(bias), pointer(dy), pointer(dx), pointer(dbias))
    expected = dy * gelu_derivative64(total)
    assert_close(dx, expected, 1e-6)
    assert_close(dbias, expected.sum(axis=0), 1e-5)
    library.bert_gelu_grad(*map(I64, shape), pointer(x), pointer(bias), pointer(dy), pointer(dx))
    assert_close(dx, expected, 1e-6)


def test_gelu_is_exact_far_out(library):
    x = unaligned(np.array([-1e30, -50, -13, -5.5, 0, -0.0, 50, 1e30, np.inf, np.nan], np.float32))
    y = empty(len(x))
    library.bert_gelu(I64(1), I64(len(x)), pointer(x), None, pointer(y))
    np.testing.assert_allclose(y[:3], 0, atol=1e-30)
    # The tail keeps its relative precision, which 1 + erf(x) would have lost.
    assert y[3] == pytest.approx(-5.5 * 0.5 * math.erfc(5.5 / math.sqrt(2)), rel=2e-6)
    np.testing.assert_array_equal(y[4:], x[4:])


def layer_norm64(x, gamma, beta, epsilon):
    x = x.astype(np.float64)
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + epsilon)
    normalised = (x - x.mean(axis=1, keepdims=True)) / deviation
    return normalised * gamma + beta, normalised, 1 / deviation


def layer_norm_gradient64(dy, normalised, inverse_deviation, gamma):
    dy = dy.astype(np.float64)
    g = dy * gamma
    mean = g.mean(axis=1, keepdims=True)
    projection = (g * normalised).mean(axis=1, keepdims=True)
    return inverse_deviation * (g - mean - normalised * projection), (dy * normalised).sum(axis=0), dy.sum(axis=0)


@pytest.mark.parametrize("shape", ROW_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_affine", [True, False])
def test_layer_norm(library, shape, kind, is_affine):
    rows, columns = shape
    epsilon = 1e-12
    x, dy = values(shape, kind), values(shape, "normal", 1)
    gamma, beta = (values(columns, "normal", seed) if is_affine else None for seed in (2, 3))
    added = values(shape, "normal", 4)
    y, mean, inverse_deviation = empty(*shape), empty(rows), empty(rows)
    library.bert_layer_norm(
        I64(rows), I64(columns), F64(epsilon), *map(pointer, (x, gamma, beta, y, mean, inverse_deviation))
    )
    factor, shift = (gamma, beta) if is_affine else (1.0, 0.0)
    expected, normalised, inverse64 = layer_norm64(x, factor, shift, epsilon)
    assert_close(y, expected, 1e-6)
    dx, dgamma, dbeta = empty(*shape), empty(columns), empty(columns)
    saved = (pointer(dy), pointer(x), pointer(mean), pointer(inverse_deviation))
    library.bert_layer_norm_grad(I64(rows), I64(columns), *saved, pointer(gamma), None, pointer(dx))
    dx64, dgamma64, dbeta64 = layer_norm_gradient64(dy, normalised, inverse64, factor)
    # The mean is kept in float32: of values around 1000, and of denormal ones, it costs that many digits.
    precision = {"shifted": 2e-4, "denormal": 1e-4}.get(kind, 1e-5)
    # A gradient that comes out as zero, as that of a row of one element, is a difference of ones as large as these.
    rounding = 1e-6 * np.abs(dy).max() * np.abs(factor).max() * inverse64.max()
    assert_close(dx, dx64, precision, rounding)
    library.bert_layer_norm_grad(I64(rows), I64(columns), *saved, pointer(gamma), pointer(added), pointer(dx))
    assert_close(dx, dx64 + added, precision, rounding)
    library.bert_layer_norm_param_grad(I64(rows), I64(columns), *saved, pointer(dgamma), pointer(dbeta))
    assert_close(dgamma, dgamma64, precision)
    assert_close(dbeta, dbeta64, precision)
    library.bert_layer_norm_param_grad(I64(rows), I64(columns), *saved, None, pointer(dbeta))
    assert_close(dbeta, dbeta64, precision)


@pytest.mark.parametrize("shape", ROW_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_softmax(library, shape, kind):
    x, dy = values(shape, kind), values(shape, "normal", 1)
    y, dx = empty(*shape), empty(*shape)
    x64, dy64 = double(x, dy)
    exponentials = np.exp(x64 - x64.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    library.bert_softmax(*map(I64, shape), pointer(x), pointer(y))
    # The relative error of e^x grows with the rounding of x.
    precision = 2e-6
    assert_close(y, expected, precision)
    library.bert_softmax_grad(*map(I64, shape), pointer(y), pointer(dy), pointer(dx))
    assert_close(dx, expected * (dy64 - (expected * dy64).sum(axis=1, keepdims=True)), 1e-5, 1e-7)
    library.bert_log_softmax(*map(I64, shape), pointer(x), pointer(y))
    log64 = x64 - x64.max(axis=1, keepdims=True) - np.log(exponentials.sum(axis=1, keepdims=True))
    assert_close(y, log64, 1e-6, 1e-7)
    library.bert_log_softmax_grad(*map(I64, shape), pointer(y), pointer(dy), pointer(dx))
    assert_close(dx, dy64 - expected * dy64.sum(axis=1, keepdims=True), 1e-5, 1e-7)


def test_softmax_of_masked_rows(library):
    x = values((4, 100))
    x[1] -= 10000
    x[2, 1:] = -np.inf
    x[3, ::2] -= 10000
    y = empty(4, 100)
    library.bert_softmax(I64(4), I64(100), pointer(x), pointer(y))
    exponentials = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    assert_close(y, exponentials / exponentials.sum(axis=1, keepdims=True), 1e-6)


def test_softmax_of_nothing_but_infinities(library):
    """0 / 0, as in NumPy: no number may come of it."""
    x, y = unaligned(np.full((2, 100), -np.inf, np.float32)), empty(2, 100)
    x[1] = 0
    for softmax in (library.bert_softmax, library.bert_log_softmax):
        softmax(I64(2), I64(100), pointer(x), pointer(y))
        assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


@pytest.mark.parametrize("shape", ROW_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_gradient(library, shape, kind):
    rows, columns = shape
    x, dy = values(shape, kind), values((rows,), "normal", 1)
    label = unaligned(np.random.default_rng(2).integers(0, columns, rows))
    label[0], label[-1] = columns - 1, 0
    log_probability, dx = empty(*shape), empty(*shape)
    library.bert_log_softmax(*map(I64, shape), pointer(x), pointer(log_probability))
    library.bert_cross_entropy_grad(
        *map(I64, shape), pointer(log_probability), pointer(label), pointer(dy), pointer(dx)
    )
    (x64,) = double(x)
    exponentials = np.exp(x64 - x64.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected[np.arange(rows), label] -= 1
    assert_close(dx, expected * dy[:, None], 2e-6, 3e-7 * np.abs(dy).max())
    # OneFlow may let the gradient take the place of the probabilities.
    library.bert_cross_entropy_grad(
        *map(I64, shape), pointer(log_probability), pointer(label), pointer(dy), pointer(log_probability)
    )
    np.testing.assert_array_equal(log_probability, dx)


MATMUL_SIZES = [
    (1, 1, 1, 1),
    (1, 3, 5, 7),
    (2, 64, 64, 64),
    (1, 129, 257, 63),
    (1, 300, 1000, 70),
    (12, 128, 64, 128),
    (1, 5, 4, 0),
]


@pytest.mark.parametrize("size", MATMUL_SIZES)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["normal", "huge", "tiny", "denormal", "zero"])
def test_matmul(library, size, transposed, kind):
    batch, m, n, k = size
    transpose_a, transpose_b = transposed
    a = values((batch, k, m) if transpose_a else (batch, m, k), kind)
    b = values((batch, n, k) if transpose_b else (batch, k, n), "normal", 1)
    c = values((batch, m, n), "normal", 2)
    a64, b64, c64 = double(a, b, c)
    product = (a64.swapaxes(1, 2) if transpose_a else a64) @ (b64.swapaxes(1, 2) if transpose_b else b64)
    for alpha, beta in ((1.0, 0.0), (0.125, 1.0)):
        out = c.copy() if beta else empty(*c.shape)
        library.bert_matmul(
            BOOL(transpose_a), BOOL(transpose_b), I64(batch), I64(m), I64(n), I64(k),
            F32(alpha), pointer(a), I64(max(1, a.shape[2])), I64(m * k),
            pointer(b), I64(max(1, b.shape[2])), I64(k * n),
            F32(beta), pointer(out), I64(n), I64(m * n),
        )  # fmt: skip
        assert_close(out, alpha * product + beta * c64, 3e-6)


@pytest.mark.parametrize("size", [(70, 33, 50), (1, 1, 1), (1, 768, 3), (131, 65, 2049)])
@pytest.mark.parametrize("kind", KINDS)
def test_linear(library, size, kind):
    rows, inputs, outputs = size
    x, weight, bias = values((rows, inputs), kind), values((inputs, outputs), "normal", 1), values((outputs,), kind, 2)
    y = empty(rows, outputs)
    library.bert_linear(*map(I64, size), *map(pointer, (x, weight, bias, y)))
    x64, weight64, bias64 = double(x, weight, bias)
    assert_close(y, x64 @ weight64 + bias64, 3e-6, 1e-43)


def test_no_rows(library):
    """Sums over no rows are zero, and nothing else is touched."""
    nothing, parameter = empty(0, 5), values((5,))
    rows, columns = I64(0), I64(5)
    untouched = [pointer(nothing)] * 3
    library.bert_gelu(rows, columns, pointer(nothing), pointer(parameter), pointer(nothing))
    library.bert_layer_norm(rows, columns, F64(1e-12), pointer(nothing), pointer(parameter), None, *untouched)
    library.bert_softmax(rows, columns, pointer(nothing), pointer(nothing))
    library.bert_log_softmax(rows, columns, pointer(nothing), pointer(nothing))
    library.bert_linear(
        rows, columns, I64(1), pointer(nothing), pointer(parameter), pointer(parameter), pointer(nothing)
    )
    assert library.bert_sum_of_squares(I64(0), pointer(nothing)) == 0
    sums = [empty(5) for _ in range(4)]
    library.bert_sum_rows(rows, columns, pointer(nothing), pointer(sums[0]))
    library.bert_bias_gelu_grad(rows, columns, pointer(nothing), pointer(parameter), *untouched[:2], pointer(sums[1]))
    library.bert_layer_norm_param_grad(rows, columns, *untouched, pointer(nothing), pointer(sums[2]), pointer(sums[3]))
    for total in sums:
        np.testing.assert_array_equal(total, 0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_random_mask(library, rate):
    count = 300_001
    mask = np.full(count, 9, np.uint8)
    library.bert_random_mask(I64(count), F32(rate), ctypes.c_uint64(7), ctypes.c_uint64(3), pointer(mask))
    assert set(np.unique(mask)) <= {0, 1}
    deviation = math.sqrt(rate * (1 - rate) / count)
    assert abs(1 - mask.mean() - rate) <= 5 * deviation + 1e-9
    if 0 < rate < 1:
        # Neighbours, and masks of other calls and seeds, are independent.
        centred = mask - mask.mean()
        for lag in (1, 4, 16, 64):
            assert abs((centred[lag:] * centred[:-lag]).mean()) < 5 * rate * (1 - rate) / math.sqrt(count)
        for seed, call in ((8, 3), (7, 4)):
            other = np.empty(count, np.uint8)
            library.bert_random_mask(
                I64(count), F32(rate), ctypes.c_uint64(seed), ctypes.c_uint64(call), pointer(other)
            )
            correlation = (centred * (other - other.mean())).mean()
            assert abs(correlation) < 5 * rate * (1 - rate) / math.sqrt(count)


def test_random_mask_is_a_function_of_the_index(library):
    long, short = np.empty(1000, np.uint8), np.empty(77, np.uint8)
    for mask in (long, short):
        library.bert_random_mask(I64(len(mask)), F32(0.3), ctypes.c_uint64(1), ctypes.c_uint64(0), pointer(mask))
    np.testing.assert_array_equal(long[:77], short)


def test_philox_known_answer(library):
    # The known answer of Random123 for philox4x32-10 with counter and key 0. An element is kept if its 32 bits are at
    # least rate * 2^32; the first 16 elements hold word 0 of the counters 0 to 15, the next 16 word 1...
    mask = np.empty(64, np.uint8)
    for position, word in zip((0, 16, 32, 48), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), strict=True):
        for distance in (-64, 256):
            rate = np.float32((word + distance) / 2**32)
            library.bert_random_mask(I64(64), F32(rate), ctypes.c_uint64(0), ctypes.c_uint64(0), pointer(mask))
            assert mask[position] == (word >= int(float(rate) * 2**32))


def test_apply_mask(library):
    x, added = values((37, 21)), values((37, 21), "normal", 1)
    keep = unaligned((np.random.default_rng(0).random((37, 21)) > 0.3).astype(np.uint8))
    x[keep == 0] = np.inf
    y = empty(37, 21)
    kept = np.where(keep, x, 0)
    library.bert_apply_mask(I64(x.size), F32(1.25), pointer(x), pointer(keep), None, pointer(y))
    np.testing.assert_array_equal(y, kept * np.float32(1.25))
    library.bert_apply_mask(I64(x.size), F32(1.25), pointer(x), pointer(keep), pointer(added), pointer(y))
    assert_close(y, kept.astype(np.float64) * 1.25 + added, 1e-6)


@pytest.mark.parametrize("shape", [(400, 33, 50), (1, 1, 1), (3, 768, 2), (1000, 130, 7), (0, 5, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_embedding(library, shape, kind):
    count, columns, table_rows = shape
    table, dy = values((table_rows, columns), kind), values((count, columns), kind, 1)
    # Ids outside of the part of the table that a rank holds give zeros and take no gradient.
    ids = unaligned(np.random.default_rng(0).integers(95, 105 + table_rows, count))
    y, dtable = empty(count, columns), empty(table_rows, columns)
    library.bert_gather(I64(count), I64(columns), pointer(table), I64(table_rows), pointer(ids), I64(100), pointer(y))
    held = (ids >= 100) & (ids < 100 + table_rows)
    np.testing.assert_array_equal(y, np.where(held[:, None], table[np.clip(ids - 100, 0, table_rows - 1)], 0))
    library.bert_gather_grad(
        I64(count), I64(columns), pointer(dy), pointer(ids), I64(100), pointer(dtable), I64(table_rows)
    )
    expected = np.zeros((table_rows, columns))
    np.add.at(expected, ids[held] - 100, dy[held].astype(np.float64))
    assert_close(dtable, expected, 1e-5)


@pytest.mark.parametrize("shape", ROW_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sums(library, shape, kind):
    x, bias = values(shape, kind), values(shape[1:], kind, 1)
    (x64,) = double(x)
    y, total = empty(*shape), empty(shape[1])
    library.bert_bias_add(*map(I64, shape), pointer(x), pointer(bias), pointer(y))
    np.testing.assert_array_equal(y, x + bias)
    library.bert_sum_rows(*map(I64, shape), pointer(x), pointer(total))
    assert_close(total, x64.sum(axis=0), 1e-5)
    assert library.bert_sum_of_squares(I64(x.size), pointer(x)) == pytest.approx((x64**2).sum(), rel=1e-12)


@pytest.mark.parametrize("inputs", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 17, 1003, 40_001])
@pytest.mark.parametrize("kind", KINDS)
def test_add_n(library, inputs, count, kind):
    arrays = [values((count,), kind, seed) for seed in range(inputs)]
    addresses = (ctypes.c_void_p * inputs)(*(array.ctypes.data for array in arrays))
    y = empty(count)
    library.bert_add_n(I64(count), INT(inputs), addresses, pointer(y))
    assert_close(y, np.sum(arrays, axis=0, dtype=np.float64), 1e-6)
    # The output may be the first input.
    library.bert_add_n(I64(count), INT(inputs), addresses, pointer(arrays[0]))
    np.testing.assert_array_equal(arrays[0], y)


@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (1, 1, 1, 1), (2, 128, 12, 64), (1, 3, 1, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_swap_middle(library, shape, kind):
    a, b, c, d = shape
    x, y = values(shape, kind), empty(a, c, b, d)
    library.bert_swap_middle(*map(I64, shape), pointer(x), pointer(y))
    np.testing.assert_array_equal(y, x.swapaxes(1, 2))


class Adam(ctypes.Structure):
    """BertAdam."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "gradient_scale", "l1", "l2",
            "bias_correction1", "bias_correction2",
        )
    ]  # fmt: skip


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 17, 20_003])
def test_adam(library, kind, amsgrad, count):
    settings = Adam(1e-3, 0.9, 0.999, 1e-6, 0.01, 0.5, 0.1, 0.2, 0.7, 0.8)
    s = {name: float(getattr(settings, name)) for name, _ in Adam._fields_}
    gradient, parameter = values((count,), kind), values((count,), "normal", 1)
    m, v, max_v = values((count,), "normal", 2), np.abs(values((count,), "normal", 3)), np.abs(values((count,)))
    g64, p64, m64, v64, max64 = double(gradient, parameter, m, v, max_v)
    library.bert_adam(
        I64(count), ctypes.byref(settings), *map(pointer, (gradient, parameter, m, v, max_v if amsgrad else None))
    )
    g = g64 * s["gradient_scale"] + s["l1"] * np.sign(p64) + s["l2"] * p64
    m64 = s["beta1"] * m64 + (1 - s["beta1"]) * g
    v64 = s["beta2"] * v64 + (1 - s["beta2"]) * g * g
    second = np.maximum(v64, max64) if amsgrad else v64
    step = m64 / s["bias_correction1"] / (np.sqrt(second / s["bias_correction2"]) + s["epsilon"])
    # 1 - beta2 is rounded to float32 by the kernel.
    assert_close(m, m64, 1e-6)
    assert_close(v, v64, 1e-4)
    assert_close(parameter, p64 - s["learning_rate"] * (step + s["weight_decay"] * p64), 1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 17, 257, 20_003, 50_000])
def test_lamb(library, kind, decay, count):
    settings = Adam(1e-3, 0.9, 0.999, 1e-6, decay, 0.5, 0.0, 0.0, 0.7, 0.8)
    s = {name: float(getattr(settings, name)) for name, _ in Adam._fields_}
    gradient, parameter = values((count,), kind), values((count,), "normal", 1)
    m, v = values((count,), "normal", 2), np.abs(values((count,), "normal", 3))
    g64, p64, m64, v64 = double(gradient, parameter, m, v)
    library.bert_lamb(I64(count), ctypes.byref(settings), *map(pointer, (gradient, parameter, m, v)))
    g = g64 * s["gradient_scale"]
    m64 = s["beta1"] * m64 + (1 - s["beta1"]) * g
    v64 = s["beta2"] * v64 + (1 - s["beta2"]) * g * g
    step = m64 / s["bias_correction1"] / (np.sqrt(v64 / s["bias_correction2"]) + s["epsilon"])
    step += s["weight_decay"] * p64
    ratio = np.linalg.norm(p64) / np.linalg.norm(step) if decay and count else 1.0
    # 1 - beta2 is rounded to float32 by the kernel.
    assert_close(m, m64, 1e-6)
    assert_close(v, v64, 1e-4)
    assert_close(parameter, p64 - s["learning_rate"] * ratio * step, 1e-6)


def test_lamb_without_a_ratio(library):
    """A variable of zeros has none. One without gradients decays by the learning rate, whatever the rate of decay."""
    settings = Adam(1e-3, 0.9, 0.999, 1e-6, 0.01, 1.0, 0.0, 0.0, 0.1, 0.001)
    zeros, moments = np.zeros(100, np.float32), [np.zeros(100, np.float32) for _ in range(4)]
    gradient = values((100,))
    library.bert_lamb(I64(100), ctypes.byref(settings), *map(pointer, (gradient, zeros, *moments[:2])))
    assert_close(zeros, -1e-3 * gradient / (np.abs(gradient) + 1e-6), 1e-4)
    parameter = values((100,), "normal", 1)
    before = parameter.astype(np.float64)
    library.bert_lamb(I64(100), ctypes.byref(settings), *map(pointer, (zeros * 0, parameter, *moments[2:])))
    assert_close(parameter, before * (1 - 1e-3), 1e-6)


class AttentionShape(ctypes.Structure):
    """BertAttention."""

    _fields_ = [
        ("batch", I64), ("length", I64), ("heads", I64), ("head_size", I64), ("rate", F32),
    ]  # fmt: skip


def attention_reference(query, key, value, mask, dropout, shape):
    """float64 attention: (out, function from dout to the gradients of query, key and value)."""
    batch, length, heads, head_size = shape

    def split(x):
        return x.astype(np.float64).reshape(batch, length, heads, head_size).transpose(0, 2, 1, 3)

    def join(x):
        return x.transpose(0, 2, 1, 3).reshape(batch * length, heads * head_size)

    q, k, v = split(query), split(key), split(value)
    scores = q @ k.swapaxes(2, 3) / math.sqrt(head_size) + mask[:, None, None, :].astype(np.float64)
    p = np.exp(scores - scores.max(axis=3, keepdims=True))
    p /= p.sum(axis=3, keepdims=True)

    def gradients(dout):
        do = split(dout)
        dp = do @ v.swapaxes(2, 3) * dropout
        ds = p * (dp - (p * dp).sum(axis=3, keepdims=True)) / math.sqrt(head_size)
        return join(ds @ k), join(ds.swapaxes(2, 3) @ q), join((p * dropout).swapaxes(2, 3) @ do)

    return join((p * dropout) @ v), gradients


def run_attention(library, shape, rate, query, key, value, mask, dout):
    batch, length, heads, head_size = shape
    settings = AttentionShape(batch, length, heads, head_size, rate)
    rows, hidden = query.shape
    random = np.full(rows, 1234567, np.int64)
    out = empty(rows, hidden)
    inputs = (query, key, value, mask)
    library.bert_attention(ctypes.byref(settings), *map(pointer, (*inputs, random, out)))
    gradients = [empty(rows, hidden) for _ in range(3)]
    library.bert_attention_grad(ctypes.byref(settings), *map(pointer, (dout, *inputs, random, *gradients)))
    return out, gradients


ATTENTION_SHAPES = [(1, 1, 1, 1), (2, 7, 3, 5), (2, 64, 2, 64), (1, 130, 2, 16), (1, 384, 1, 32)]


@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
@pytest.mark.parametrize("kind", ["normal", "zero", "tiny", "denormal", "large"])
def test_attention(library, shape, kind):
    batch, length, heads, head_size = shape
    query, key = (
        values((batch * length, heads * head_size), kind),
        values((batch * length, heads * head_size), "normal", 1),
    )
    value, dout = values(query.shape, "normal", 2), values(query.shape, "normal", 3)
    mask = np.zeros((batch, length), np.float32)
    mask[0, length // 2 + 1 :] = -10000
    mask[-1, :] += -10000 if batch > 1 else 0  # a sequence that is padding only
    out, gradients = run_attention(library, shape, 0.0, query, key, value, mask, dout)
    expected, gradients_of = attention_reference(query, key, value, mask, 1.0, shape)
    # Scores of 10,000 carry a rounding of 1e-3, and so do their exponentials.
    precision = 1e-5 if kind != "large" and batch == 1 else 2e-2
    assert_close(out, expected, precision)
    for gradient, expected in zip(gradients, gradients_of(dout), strict=True):
        assert_close(gradient, expected, precision, 1e-6)


def keep_factors(library, shape, rate):
    """The dropout factors of run_attention's key, by their definition: rows of `length`, padded to 64."""
    batch, length, heads, _ = shape
    padded = (length + 63) // 64 * 64
    mask = np.empty((batch, heads, length, padded), np.uint8)
    library.bert_random_mask(I64(mask.size), F32(rate), ctypes.c_uint64(1234567), ctypes.c_uint64(0), pointer(mask))
    return mask[..., :length] / (1 - np.float64(np.float32(rate)))


@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
def test_attention_dropout(library, shape):
    batch, length, heads, head_size = shape
    query, key, value, dout = (values((batch * length, heads * head_size), "normal", seed) for seed in range(4))
    mask = np.zeros((batch, length), np.float32)
    out, gradients = run_attention(library, shape, 0.3, query, key, value, mask, dout)
    expected, gradients_of = attention_reference(query, key, value, mask, keep_factors(library, shape, 0.3), shape)
    assert_close(out, expected, 1e-5, 1e-6)
    for gradient, expected in zip(gradients, gradients_of(dout), strict=True):
        assert_close(gradient, expected, 1e-5, 1e-6)


@pytest.mark.parametrize("shape", ROW_SHAPES)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_norm(library, shape, rate, kind):
    rows, columns = shape
    x, residual, dy = values(shape, kind), values(shape, "normal", 1), values(shape, "normal", 2)
    bias, gamma, beta = (values(columns, "normal", seed) for seed in (3, 4, 5))
    random = np.full(rows, 99, np.int64)
    padded = (columns + 63) // 64 * 64
    keep = np.empty((rows, padded), np.uint8)
    library.bert_random_mask(I64(keep.size), F32(rate), ctypes.c_uint64(99), ctypes.c_uint64(0), pointer(keep))
    factor = keep[:, :columns] / (1 - np.float64(np.float32(rate)))
    y, normalised, inverse_deviation = empty(*shape), empty(*shape), empty(rows)
    library.bert_residual_norm(
        I64(rows), I64(columns), F32(rate), F64(1e-12),
        *map(pointer, (x, bias, residual, gamma, beta, random)), None,
        *map(pointer, (y, normalised, inverse_deviation)),
    )  # fmt: skip
    x64, residual64, bias64 = double(x, residual, bias)
    expected, normalised64, inverse64 = layer_norm64((x64 + bias64) * factor + residual64, gamma, beta, 1e-12)
    precision = 1e-4 if kind in ("large", "shifted") else 2e-6
    assert_close(y, expected, precision)
    gradients = [empty(*shape), empty(*shape), empty(columns), empty(columns), empty(columns)]
    library.bert_residual_norm_grad(
        I64(rows), I64(columns), F32(rate),
        *map(pointer, (dy, normalised, inverse_deviation, gamma, random)), None, *map(pointer, gradients),
    )  # fmt: skip
    dresidual64, dgamma64, dbeta64 = layer_norm_gradient64(dy, normalised64, inverse64, gamma)
    expected = (dresidual64 * factor, dresidual64, (dresidual64 * factor).sum(axis=0), dgamma64, dbeta64)
    # See test_layer_norm.
    rounding = 1e-6 * np.abs(dy * gamma).max() * inverse64.max()
    for actual, wanted in zip(gradients, expected, strict=True):
        assert_close(actual, wanted, max(precision, 1e-5), rounding)


# Tokens of each sequence: odd, one, all, none (which counts as all), and a hole.
LENGTHS, WHOLE = [5, 1, 130, 0, 77], 130


def packed_batch(library):
    """The input mask [B, S], the layout that the library makes of it, and the places of the stored rows."""
    input_mask = (np.arange(WHOLE) < np.array(LENGTHS)[:, None]).astype(np.float32)
    input_mask[4, 3] = 0
    layout = empty(*input_mask.shape)
    library.bert_layout(I64(len(LENGTHS)), I64(WHOLE), pointer(input_mask), pointer(layout))
    stored = np.arange(WHOLE) < np.array([length or WHOLE for length in LENGTHS])[:, None]
    return input_mask, layout, np.flatnonzero(stored)


@pytest.mark.parametrize("columns", [1, 7, 64])
def test_packing(library, columns):
    input_mask, layout, places = packed_batch(library)
    stored = np.isin(np.arange(input_mask.size), places).reshape(input_mask.shape)
    np.testing.assert_array_equal(layout, np.where(stored, (input_mask - 1) * 10000, -np.inf))
    size = (I64(len(LENGTHS)), I64(WHOLE))
    found = np.full(len(places), -1, np.int64)
    library.bert_stored_rows.restype = I64
    assert library.bert_stored_rows(*size, pointer(layout), None) == len(places)
    assert library.bert_stored_rows(*size, pointer(layout), pointer(found)) == len(places)
    np.testing.assert_array_equal(found, places)
    x = values((input_mask.size, columns))
    packed, unpacked = empty(len(places), columns), empty(*x.shape)
    library.bert_pack(*size, I64(columns), *map(pointer, (layout, x, packed)))
    np.testing.assert_array_equal(packed, x[places])
    library.bert_unpack(*size, I64(columns), *map(pointer, (layout, packed, unpacked)))
    np.testing.assert_array_equal(unpacked, np.where(stored.reshape(-1, 1), x, 0))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_packed_attention(library, rate):
    """A packed batch: what float64 gives for the padded one, with its dropout."""
    shape = (len(LENGTHS), WHOLE, 2, 16)
    _, layout, places = packed_batch(library)
    query, key, value, dout = (values((len(LENGTHS) * WHOLE, 32), "normal", seed) for seed in range(4))
    packed = [np.ascontiguousarray(array[places]) for array in (query, key, value)]
    out, gradients = run_attention(library, shape, rate, *packed, layout, np.ascontiguousarray(dout[places]))
    dropout = keep_factors(library, shape, rate)
    mask = np.where(np.isinf(layout), np.float32(-1e30), layout)
    out64, gradients_of = attention_reference(query, key, value, mask, dropout, shape)
    only_stored = np.zeros_like(dout)
    only_stored[places] = dout[places]
    for found, expected in zip((out, *gradients), (out64, *gradients_of(only_stored)), strict=True):
        for sequence, length in enumerate(LENGTHS):
            rows = places // WHOLE == sequence
            # Scores of -10,000, as all are in a sequence without tokens, carry a rounding of 1e-3.
            assert_close(found[rows], expected[places[rows]], 1e-5 if length else 2e-2, 1e-6)


def test_packed_residual_norm(library):
    """Rows of a packed batch: to the bit what they are in the padded one."""
    _, _, places = packed_batch(library)
    rows, columns = len(LENGTHS) * WHOLE, 70
    arrays = {name: values((rows, columns), "normal", seed) for seed, name in enumerate(("x", "residual", "dy"))}
    bias, gamma, beta = (values(columns, "normal", seed) for seed in (3, 4, 5))

    def run(x, residual, dy, places):
        random = np.full(len(x), 99, np.int64)
        results = [empty(*x.shape), empty(*x.shape), empty(len(x)), empty(*x.shape), empty(*x.shape)]
        sizes, sums = (I64(len(x)), I64(columns), F32(0.3)), [empty(columns) for _ in range(3)]
        places = None if places is None else pointer(places)
        library.bert_residual_norm(
            *sizes, F64(1e-12), *map(pointer, (x, bias, residual, gamma, beta, random)), places,
            *map(pointer, results[:3]),
        )  # fmt: skip
        library.bert_residual_norm_grad(
            *sizes, *map(pointer, (dy, *results[1:3], gamma, random)), places, *map(pointer, (*results[3:], *sums)),
        )  # fmt: skip
        return results

    packed = {name: np.ascontiguousarray(array[places]) for name, array in arrays.items()}
    for found, expected in zip(run(**packed, places=places), run(**arrays, places=None), strict=True):
        np.testing.assert_array_equal(found, expected[places])


def test_results_do_not_depend_on_the_threads(library):
    shape = (2, 130, 3, 16)
    arrays = [values((260, 48), "normal", seed) for seed in range(4)]
    mask = np.zeros((2, 130), np.float32)
    a, b = values((333, 777)), values((777, 555), "normal", 1)
    results = []
    for threads in (1, 2, 3, 5, 2):
        library.bert_set_thread_count(threads)
        assert library.bert_thread_count() == threads
        out, gradients = run_attention(library, shape, 0.1, *arrays[:3], mask, arrays[3])
        product, sums = empty(333, 555), empty(777)
        library.bert_matmul(
            BOOL(False), BOOL(False), I64(1), I64(333), I64(555), I64(777), F32(1), pointer(a), I64(777), I64(0),
            pointer(b), I64(555), I64(0), F32(0), pointer(product), I64(555), I64(0),
        )  # fmt: skip
        library.bert_sum_rows(I64(333), I64(777), pointer(a), pointer(sums))
        in_int8 = int8_linear(library, a, b)
        norm = np.array(library.bert_sum_of_squares(I64(a.size), pointer(a)))
        results.append([array.tobytes() for array in (out, *gradients, product, sums, in_int8, norm)])
    library.bert_set_thread_count(3)
    assert all(result == results[0] for result in results)


def test_all_processors_by_default(library):
    library.bert_set_thread_count(0)
    assert library.bert_thread_count() == len(os.sched_getaffinity(0))
    library.bert_set_thread_count(3)


def test_stream_seeds(library):
    library.bert_set_seed(ctypes.c_uint64(1))
    first = library.bert_stream_seed(b"layer_0")
    assert first == library.bert_stream_seed(b"layer_0") != library.bert_stream_seed(b"layer_1")
    library.bert_set_seed(ctypes.c_uint64(2))
    assert first != library.bert_stream_seed(b"layer_0")


def to_bfloat16(x):
    """`x`, of finite values, rounded to the nearest bfloat16, ties to even; what is denormal there becomes zero."""
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.abs(rounded) < np.finfo(np.float32).tiny, np.float32(0), rounded)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("m, n, k", [(96, 128, 256), (131, 257, 101), (1, 2048, 600), (1030, 30, 70)])
def test_bfloat16_product(library, transpose_a, transpose_b, beta, m, n, k):
    a = values((k, m) if transpose_a else (m, k))
    b = values((n, k) if transpose_b else (k, n), seed=1)
    c = values((m, n), seed=2)
    narrow_a, narrow_b = double(to_bfloat16(a * np.float32(0.5)), to_bfloat16(b))
    expected = (narrow_a.T if transpose_a else narrow_a) @ (narrow_b.T if transpose_b else narrow_b) + beta * c
    library.bert_set_bfloat16(BOOL(True))
    try:
        library.bert_matmul(
            BOOL(transpose_a), BOOL(transpose_b), I64(1), I64(m), I64(n), I64(k), F32(0.5), pointer(a),
            I64(a.shape[1]), I64(0), pointer(b), I64(b.shape[1]), I64(0), F32(beta), pointer(c), I64(n), I64(0),
        )  # fmt: skip
    finally:
        library.bert_set_bfloat16(BOOL(False))
    assert_close(c, expected, relative=1e-5)


def test_bfloat16_product_of_extremes(library):
    m, n, k = 128, 96, 128
    a, b, c = values((m, k)), values((k, n), seed=1), empty(m, n)
    a[0], a[1], a[2] = a[0] * np.float32(1e36), a[1] * np.float32(1e-30), 0
    a[3, 5], a[4, 7], a[5, 9], a[6, 11] = np.nan, np.inf, -np.inf, np.finfo(np.float32).max
    # Of either sign, ties to even and NaNs whose rounding would carry into the exponent or the sign included.
    a[7] *= np.float32(1e-40)
    a[8] = np.float32(1) + np.arange(k, dtype=np.float32) * np.float32(2**-8)
    a[9, 3] = np.uint32(0xFFFFFFFF).view(np.float32)
    a[10, 3] = np.uint32(0x7F800001).view(np.float32)
    library.bert_set_bfloat16(BOOL(True))
    try:
        library.bert_matmul(
            BOOL(False), BOOL(False), I64(1), I64(m), I64(n), I64(k), F32(1), pointer(a), I64(k), I64(0),
            pointer(b), I64(n), I64(0), F32(0), pointer(c), I64(n), I64(0),
        )  # fmt: skip
    finally:
        library.bert_set_bfloat16(BOOL(False))
    narrow_a, narrow_b = double(to_bfloat16(a), to_bfloat16(b))
    # The largest float32 is nearer to 2^128, which bfloat16 has as infinity, than to any other of its numbers.
    assert narrow_a[6, 11] == np.inf
    narrow_a[[3, 9, 10]] = np.nan
    assert not narrow_a[7].any()
    with np.errstate(invalid="ignore"):
        expected = narrow_a @ narrow_b
    for row, (actual, wanted) in enumerate(zip(c, expected, strict=True)):
        largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * largest, err_msg=f"row {row}")


def int8_linear(library, x, weight, bias=None):
    library.bert_round_to_int8.restype = ctypes.c_void_p
    y = empty(len(x), weight.shape[1])
    rounded = ctypes.c_void_p(library.bert_round_to_int8(*map(I64, weight.shape), pointer(weight)))
    library.bert_int8_linear(I64(len(x)), pointer(x), rounded, pointer(bias), pointer(y))
    library.bert_free_int8(rounded)
    return y


INT8_SIZES = [(1, 1, 1), (3, 5, 7), (70, 33, 50), (131, 65, 2049), (300, 768, 768), (1030, 2049, 70), (257, 131, 1030)]


def int8_operands(rows, inputs, outputs, kind="normal"):
    """x [rows, inputs] and a weight [inputs, outputs], whose rounding does not depend on that of float32."""
    x, weight = values((rows, inputs), kind), values((inputs, outputs), seed=1)
    x = int8_reference.away_from_ties(x, int8_reference.scale_of_rows)
    return unaligned(x), unaligned(int8_reference.away_from_ties(weight, int8_reference.scale_of_columns))


@pytest.mark.parametrize("size", [*INT8_SIZES, (5, 0, 4), (0, 5, 4), (4, 5, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_int8_linear(library, size, kind):
    x, weight = int8_operands(*size, kind)
    for bias in (values((size[2],), kind, 2), None):
        assert_close(int8_linear(library, x, weight, bias), int8_reference.linear(x, weight, bias), 1e-6, 1e-43)


@pytest.mark.parametrize("inputs", [1, 2, 3, 63, 64, 768, 3073])
def test_int8_sums_do_not_saturate(library, inputs):
    """The largest sums that there can be, of pairs and of all, are those of integers."""
    rows, outputs = 37, 129
    generator = np.random.default_rng(0)
    signs, pairs = (np.where(np.arange(inputs) // count % 2, -1.0, 1.0) for count in (1, 2))
    random = generator.choice([-1.0, 0.0, 1.0], (rows, inputs)), generator.choice([-1.0, 0.0, 1.0], (inputs, outputs))
    for x in (
        np.ones((rows, inputs)),
        -np.ones((rows, inputs)),
        np.float64([signs > 0, signs, -signs, pairs]),
        random[0],
    ):
        for column in (np.ones(inputs), -np.ones(inputs), signs, pairs, pairs * (signs > 0), None):
            weight = random[1] if column is None else np.repeat(column[:, None], outputs, axis=1)
            narrow = unaligned(np.float32(x)), unaligned(np.float32(weight))
            assert_close(int8_linear(library, *narrow), int8_reference.linear(*narrow), 2e-7)


def test_int8_of_integers_is_exact(library):
    """Of all integers in -127..127, in rows and columns that hold the largest."""
    generator = np.random.default_rng(1)
    x, weight = generator.integers(-127, 129, (300, 777)), generator.integers(-63, 64, (777, 555))
    x[:, 5:7], weight[6:8] = [[-127, 128]], [[-127], [0]]
    weight[8:10] = [[64], [63]]
    x[17] = 0
    scales = 2.0 ** generator.integers(-30, 30, (300, 1)), 2.0 ** generator.integers(-30, 30, (1, 555))
    y = int8_linear(library, unaligned(np.float32(x * scales[0])), unaligned(np.float32(weight * scales[1])))
    # Sums above 2^24 are rounded to float32.
    np.testing.assert_array_equal(y, np.float32(np.float64(x) @ np.float64(weight)) * np.float32(scales[0] * scales[1]))


def test_int8_of_what_is_not_finite(library):
    """NaN in the rows and columns that hold such a value; the others are as they are without."""
    x, weight = values((9, 130)), values((130, 70), seed=1)
    expected = int8_linear(library, x, weight)
    x[1, 3], x[2, 0], x[3, 129] = np.nan, np.inf, -np.inf
    x[4, 5] = np.uint32(0xFFFFFFFF).view(np.float32)
    x[5, 5:7] = [-3e38, 3e38]
    weight[2, 8], weight[3, 69], weight[129, 0], weight[6:8, 11] = np.nan, np.inf, -np.inf, 3e38
    expected[1:6] = np.nan
    expected[:, [0, 8, 11, 69]] = np.nan
    np.testing.assert_array_equal(int8_linear(library, x, weight), expected)


def test_int8_of_the_largest_values(library):
    x, weight = int8_operands(5, 33, 9)
    x[:, 5] = [300, -300, 300, -300, 30]
    x = unaligned(int8_reference.away_from_ties(x * np.float32(1e36), int8_reference.scale_of_rows))
    weight *= np.float32(1e-3)
    assert_close(int8_linear(library, x, weight), int8_reference.linear(x, weight), 1e-6)


def test_random_streams(library):
    library.bert_open_stream.restype = ctypes.c_void_p
    library.bert_next_call.restype = ctypes.c_uint64
    library.bert_list_streams.restype = I64

    def opened(name):
        return ctypes.c_void_p(library.bert_open_stream(name))

    def listed():
        lines = ctypes.create_string_buffer(library.bert_list_streams(None, I64(-1)))
        assert library.bert_list_streams(lines, I64(len(lines))) == len(lines)
        return lines.raw.decode().splitlines()

    second, first = opened(b"layer 2"), opened(b"layer 1")
    assert [library.bert_next_call(second) for _ in range(3)] == [0, 1, 2]
    assert listed() == ["0 layer 1", "3 layer 2"]
    # A restored count is that of the next stream of the name, which is told instead of the one before.
    library.bert_restore_stream(b"layer 2", ctypes.c_uint64(2**63 + 5))
    restored, fresh = opened(b"layer 2"), opened(b"layer 3")
    assert library.bert_next_call(restored) == 2**63 + 5
    library.bert_close_stream(second)
    assert listed() == ["0 layer 1", f"{2**63 + 6} layer 2", "0 layer 3"]
    library.bert_close_stream(restored)
    again = opened(b"layer 2")
    assert library.bert_next_call(again) == 0
    for stream in (first, fresh, again):
        library.bert_close_stream(stream)
    assert listed() == []


def test_a_product_that_onednn_refuses_ends_the_process(library):
    """There is no result, and the memory that was to hold it has anything in it."""
    code = f"""
import ctypes
library = ctypes.CDLL({library._name!r})
a = (ctypes.c_float * 4)()
sizes = [ctypes.c_int64(2)] * 3
too_short = ctypes.c_int64(1)
none = ctypes.c_int64(0)
library.bert_matmul(False, False, ctypes.c_int64(1), *sizes, ctypes.c_float(1), a, too_short, none, a, sizes[0], none,
                    ctypes.c_float(0), a, sizes[0], none)
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": os.path.dirname(kernel_files.load_onednn()._name)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (-signal.SIGABRT, "oneDNN: dnnl_sgemm: invalid_arguments\n")


def test_sums_over_processes(library, tmp_path):
    """In the order of the ranks, so all get the same bits. Who waits for one that has ended ends too."""
    ranks = 3
    memory = library.bert_make_rank_memory(ranks)
    program = [sys.executable, str(ROOT / "tests" / "helpers" / "rank_sums.py"), library.instruction_set]
    program += [f"/proc/{os.getpid()}/fd/{memory}", str(ranks)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            command = [*program, str(rank), str(tmp_path / f"{rank}.npz")]
            processes.append(stack.enter_context(subprocess.Popen(command, **pipes)))
            stack.callback(processes[-1].kill)
        assert [process.stdout.readline() for process in processes] == ["joined\n"] * ranks
        os.close(memory)
        for process in processes:
            process.stdin.write("begin\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=120) for process in processes]
    with np.errstate(all="ignore"):
        expected = [(x + y) + z for x, y, z in zip(*map(rank_sums.values, range(ranks)), strict=True)]
    for rank, process in enumerate(processes):
        for name in (f"{rank}.npz", f"{rank}.npz.in_place.npz", f"{rank}.npz.by_halves.npz"):
            found = np.load(tmp_path / name)
            for i, array in enumerate(expected):
                np.testing.assert_array_equal(found[f"arr_{i}"], array)
        if rank < ranks - 1:
            assert process.returncode == -signal.SIGABRT, ends[rank]
            # The first to notice that rank 2 has ended ends itself, which the other may notice before.
            assert re.match(rf"rank [012] of this machine has ended while rank {rank} ", ends[rank][1]), ends[rank]
        else:
            assert process.returncode == 0, ends[rank]
