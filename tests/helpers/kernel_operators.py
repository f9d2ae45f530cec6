"""Runs OneFlow's operators, eagerly and in graphs, and writes their results to a file.

tests/engine/test_operators.py runs it in separate processes with and without the native kernels, because an operator
keeps its kernel once it has run.

usage: kernel_operators.py FILE.npz
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from engine import native  # noqa: E402

# Without this, OneFlow sometimes crashes on graphs this small.
native.load_engine_fixes()

from engine import operators  # noqa: E402
from engine.oneflow_loader import flow, nn  # noqa: E402
from training import optimizer as training_optimizer  # noqa: E402

PLACEMENT = {"placement": flow.placement("cpu", [0]), "sbp": flow.sbp.broadcast}


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_gradients(function, *inputs, make_tensor=flow.tensor):
    """Returns the output of `function`, and the gradients of its randomly weighted sum by the float inputs."""
    tensors = [make_tensor(array) for array in inputs]
    floats = [tensor for tensor, array in zip(tensors, inputs, strict=True) if array.dtype.kind == "f"]
    for tensor in floats:
        tensor.requires_grad = True
    out = function(*tensors)
    (out * flow.tensor(values(*out.shape, seed=99).astype(floats[0].numpy().dtype))).sum().backward()
    return [out.numpy(), *(tensor.grad.numpy() for tensor in floats)]


def unaligned(array):
    """Returns a tensor whose memory is not aligned: it begins one element after an aligned address."""
    room = flow.tensor(np.concatenate([array.reshape(-1)[:1], array.reshape(-1)]))
    tensor = room[1:].reshape(*array.shape)
    assert tensor.storage_offset() == 1 and tensor.is_contiguous()
    return tensor


# Factors for the first input of an operator.
EXTREMES = {"large": 1e4, "tiny": 1e-30, "denormal": 1e-40, "zero": 0.0}


def at_extremes(function, first, *others):
    """Yields (name, outputs and gradients) for values far from 1, and for memory that is aligned to elements only.

    OneFlow's own kernels also compute the expected values in float64.
    """
    for kind, factor in {"normal": 1.0, **EXTREMES}.items():
        inputs = [(first * factor).astype(np.float32), *others]
        yield kind, with_gradients(function, *inputs)
        if not native.is_used_for(flow.tensor(0.0)):
            exact = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in inputs]
            yield f"{kind}-exact", with_gradients(function, *exact)
    yield "unaligned", with_gradients(function, first, *others, make_tensor=unaligned)


class OfParameters(nn.Module):
    """A function whose float inputs are parameters; other inputs are passed to the call."""

    def __init__(self, function, inputs):
        super().__init__()
        self._function = function
        self._names = [f"input_{i}" for i, array in enumerate(inputs) if array.dtype == np.float32]
        for name, array in zip(self._names, (array for array in inputs if array.dtype == np.float32), strict=True):
            self.register_parameter(name, nn.Parameter(flow.tensor(array, **PLACEMENT)))

    def forward(self, *others):
        return self._function(*(getattr(self, name) for name in self._names), *others)


def in_a_graph(function, *inputs):
    """Returns the outputs of a graph in three steps of AdamW with clipping, and the final parameters."""
    module = OfParameters(function, inputs)
    optimizer = flow.optim.AdamW(
        [{"params": list(module.parameters()), "clip_grad_max_norm": 0.5, "clip_grad_norm_type": 2.0}],
        lr=1e-2, eps=1e-6, weight_decay=0.1, do_bias_correction=False,
    )  # fmt: skip
    others = [flow.tensor(array, **PLACEMENT) for array in inputs if array.dtype != np.float32]
    shape = with_gradients(function, *inputs)[0].shape
    weights = flow.tensor(values(*shape, seed=99), **PLACEMENT)

    class Step(nn.Graph):
        def __init__(self):
            super().__init__()
            self.module = module
            self.config.allow_fuse_model_update_ops(True)
            self.config.allow_fuse_add_to_output(True)
            self.add_optimizer(optimizer)

        def build(self, weights, *others):
            out = self.module(*others)
            (out * weights).sum().backward()
            return out

    step = Step()
    outs = [step(weights, *others).numpy() for _ in range(3)]
    return [*outs, *(parameter.numpy() for parameter in module.parameters())]


def clipped(max_norm):
    """Runs three steps of AdamW with training/loop.py's clipping. Returns the norms and the final parameters."""
    inputs = [values(70, 33), values(33, 20), values(20)]
    module = OfParameters(operators.linear, inputs)
    optimizer = flow.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-6, weight_decay=0.1, do_bias_correction=False)

    class Step(nn.Graph):
        def __init__(self):
            super().__init__()
            self.module = module
            self.config.allow_fuse_model_update_ops(True)
            self.add_optimizer(optimizer)

        def build(self):
            out = self.module()
            (out * out).sum().backward()
            parameters = list(module.parameters())
            gradients = [parameter.grad for parameter in parameters]
            return training_optimizer.clip_by_global_norm(parameters, gradients, max_norm)

    step = Step()
    norms = [step().numpy() for _ in range(3)]
    return [*norms, *(parameter.numpy() for parameter in module.parameters())]


def attention(query, key, value, mask):
    return operators.attention(query, key, value, mask.to(query.dtype) * -10000.0, heads=3, rate=0.0)


def residual_norm(x, bias, residual, gamma, beta, tokens):
    layout = operators.attention_mask(tokens).to(x.dtype)
    return operators.residual_norm(x, bias, residual, gamma, beta, layout, rate=0.0)


def packed(x, bias, weight, gamma, tokens):
    """The operators of a layer on the tokens of a batch, which a graph with the library packs."""
    rows, layout = operators.pack(x, tokens)
    layout = layout.to(x.dtype)
    y = operators.bias_gelu(operators.encoder_matmul(operators.linear(rows, weight, bias), weight), bias)
    y = operators.residual_norm(y, bias, rows, gamma, bias, layout, rate=0.0)
    y = operators.unpack(operators.attention(y, y, rows, layout, 3, rate=0.0), layout)
    return y * tokens.reshape(*tokens.shape, 1).to(x.dtype)


def fused_bias_gelu(x, bias):
    """Calls OneFlow's fused operator, whose only CPU kernel is in the native library."""
    if native.is_used_for(x):
        return flow._C.fused_bias_add_gelu(x, bias, axis=1)
    return flow._C.gelu(flow._C.bias_add(x, bias, axis=1))


IDS = np.random.default_rng(1).integers(0, 40, (5, 9)).astype(np.int32)
# Masks nothing, part of a row, or all of it.
MASKS = np.array([[0] * 5, [0, 0, 0, 1, 1], [1] * 5, [1] * 5], np.int32) * -10000
C = flow._C
CASES = {
    "matmul": (C.matmul, values(33, 65), values(65, 17, seed=1)),
    "matmul_transposed": (lambda a, b: C.matmul(a, b, transpose_b=True, alpha=0.5), values(33, 65), values(17, 65)),
    "matmul_of_batches": (C.matmul, values(2, 3, 9, 8), values(2, 3, 8, 7)),
    "matmul_of_batches_transposed": (
        lambda a, b: C.matmul(a, b, transpose_a=True, transpose_b=True), values(2, 3, 8, 9), values(2, 3, 7, 8),
    ),
    "matmul_with_one_matrix": (C.matmul, values(4, 9, 8), values(8, 7)),
    "matmul_broadcast": (C.matmul, values(4, 1, 9, 8), values(3, 8, 7)),
    "gelu": (C.gelu, values(13, 70)),
    "softmax": (lambda x: C.softmax(x, dim=-1), values(3, 5, 77)),
    "log_softmax": (lambda x: C.log_softmax(x, dim=-1), values(3, 5, 77)),
    "softmax_of_first_axis": (lambda x: C.softmax(x, dim=0), values(7, 5)),
    "cross_entropy": (
        lambda x, label: C.sparse_softmax_cross_entropy(x, label), values(45, 41), IDS.reshape(-1),
    ),
    "bias_add": (lambda x, bias: C.bias_add(x, bias, axis=1), values(20, 33), values(33)),
    "bias_add_in_the_middle": (lambda x, bias: C.bias_add(x, bias, axis=1), values(4, 6, 5), values(6)),
    "gather": (lambda table, ids: C.gather(table, ids, axis=0), values(40, 24), IDS),
    "gather_of_second_axis": (lambda table, ids: C.gather(table, ids, axis=1), values(3, 40), IDS),
    "sum_of_rows": (lambda x: x.sum(dim=0) + x.mean(dim=(0,)), values(70, 30)),
    "sum_of_columns": (lambda x: x.sum(dim=1), values(70, 30)),
    "sum_of_three": (lambda x, y: x + y + x * y + y, values(11, 30), values(11, 30, seed=1)),
    "swapped_axes": (lambda x: x.permute(0, 2, 1, 3) * 2, values(2, 3, 4, 5)),
    "other_axes": (lambda x: x.permute(2, 0, 1, 3) * 2, values(2, 3, 4, 5)),
    "no_dropout": (lambda x: C.dropout(x, 0.0), values(7, 9)),
    "linear": (operators.linear, values(70, 33), values(33, 20), values(20)),
    "bias_gelu": (operators.bias_gelu, values(70, 33), values(33)),
    "layer_norm": (operators.layer_norm, values(70, 33), values(33, seed=1), values(33)),
    "attention": (
        attention, values(20, 12), values(20, 12, seed=1), values(20, 12, seed=2), IDS[:4, :5] % 3 // 2,
    ),
    "attention_to_nothing": (
        attention, values(20, 12), values(20, 12, seed=1), values(20, 12, seed=2), np.ones((4, 5), np.int32),
    ),
    "fused_bias_gelu": (fused_bias_gelu, values(70, 33), values(33)),
    "matmul_of_one": (C.matmul, values(1, 1), values(1, 1, seed=1)),
    "gelu_of_one": (C.gelu, values(1)),
    "softmax_of_one": (lambda x: C.softmax(x, dim=-1), values(1, 1)),
    "log_softmax_of_one": (lambda x: C.log_softmax(x, dim=-1), values(1, 1)),
    "softmax_of_masked": (lambda x, mask: C.softmax(x + mask, dim=-1), values(4, 50), np.repeat(MASKS, 10, axis=1)),
    "cross_entropy_of_one": (
        lambda x, label: C.sparse_softmax_cross_entropy(x, label), values(1, 3), np.array([2], np.int64),
    ),
    "gather_of_one": (lambda table, ids: C.gather(table, ids, axis=0), values(1, 1), np.zeros((1, 1), np.int64)),
    "linear_of_one": (operators.linear, values(1, 1), values(1, 1, seed=1), values(1)),
    "bias_gelu_of_one": (operators.bias_gelu, values(1, 1), values(1)),
    "attention_of_one": (
        attention, values(1, 3), values(1, 3, seed=1), values(1, 3, seed=2), np.zeros((1, 1), np.int32),
    ),
    "residual_norm": (
        residual_norm, values(70, 33), values(33), values(70, 33, seed=1), values(33, seed=2), values(33, seed=3),
        np.ones((10, 7), np.int32),
    ),
}  # fmt: skip

# An odd number, one, all.
TOKENS = (np.arange(8) < np.array([[5], [1], [8], [3]])).astype(np.int32)
CASES_OF_GRAPHS = {
    "packed": (packed, values(32, 12), values(12, seed=1), values(12, 12, seed=2), values(12, seed=3), TOKENS),
}


def dropout_statistics():
    """Returns statistics of dropout at rate 0.25: eager with seeds 1, 1, 2; in a graph of two layers, twice."""
    ones = flow.ones(64, 1000)
    masks = []
    for seed in (1, 1, 2):
        flow.manual_seed(seed)
        masks.append(C.dropout(ones, 0.25).numpy())

    class Graph(nn.Graph):
        def build(self, x):
            return C.dropout(x, 0.25), C.dropout(x + 0, 0.25)

    graph = Graph()
    for _ in range(2):
        masks.extend(mask.numpy() for mask in graph(ones.to_global(**PLACEMENT)))
    return masks


def dropout_gradients():
    """Returns output and gradient of the randomly weighted sum of dropout at rate 0.25, eager and in a graph."""
    x = values(13, 77)
    results = with_gradients(lambda x: C.dropout(x, 0.25), x)
    module = OfParameters(lambda x: C.dropout(x, 0.25), [x])
    weights = flow.tensor(values(13, 77, seed=99), **PLACEMENT)

    class Graph(nn.Graph):
        def __init__(self):
            super().__init__()
            self.module = module
            self.add_optimizer(flow.optim.SGD(module.parameters(), lr=0.0))

        def build(self):
            out = self.module()
            (out * weights).sum().backward()
            return out, module.input_0.grad

    return [*results, *(tensor.numpy() for tensor in Graph()())]


def main():
    results = {"description": native.describe()}
    operators.skip_padding(operators.has_native_operators())
    for name, (function, *inputs) in {**CASES, **CASES_OF_GRAPHS}.items():
        for i, array in enumerate(in_a_graph(function, *inputs)):
            results[f"{name}-graph-{i}"] = array
    for name, (function, *inputs) in CASES.items():
        for kind, arrays in at_extremes(function, *inputs):
            for i, array in enumerate(arrays):
                results[f"{name}-{kind}-{i}"] = array
    for max_norm in (1.0, 1e6):
        for i, array in enumerate(clipped(max_norm)):
            results[f"clipped-{max_norm}-{i}"] = array
    for i, mask in enumerate(dropout_statistics()):
        results[f"dropout-{i}"] = mask
    for i, array in enumerate(dropout_gradients()):
        results[f"dropout-gradient-{i}"] = array
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
