"""The operators of a BERT layer.

On a CPU with the native kernels (engine/native.py), each is one operator of the native library, with its gradient.
Otherwise it is composed of OneFlow's operators, on CUDA of its fused ones. The results are the same, except for the
dropout masks. With BERT_OPERATORS=cuda in the environment, a graph on the CPU has the operators of a CUDA graph, for
which the library has plain kernels; tests check their results.
Shapes: N rows, T rows that are tokens (see pack), H hidden units, a batch of B sequences of length S.
"""

import os

import numpy as np

from engine import native
from engine.oneflow_loader import flow

_ALWAYS_AS_ON_CUDA = os.environ.get("BERT_OPERATORS") == "cuda"
# Tensor cores need sizes that are multiples of this.
_MULTIPLE_ON_CUDA = 8
# The score of a padding key, and the logit of a padding word.
_NEVER = -10000.0

_mixed_precision = None
_skips_padding = False
_uses_int8 = False
_nodes_with_shared_memory = 0


def sum_in_shared_memory(nodes):
    """Makes sum_over_ranks() use the memory that the ranks of each of the `nodes` share since native.join_ranks()."""
    global _nodes_with_shared_memory
    _nodes_with_shared_memory = nodes


def compute_in(dtype):
    """Sets the data type of mixed precision for CUDA graphs: "float16", "bfloat16", or None for float32 only."""
    global _mixed_precision
    _mixed_precision = dtype


def has_native_operators():
    """Returns whether graphs on a CPU use operators of the native library, as packing and int8 need them."""
    return native.is_loaded() and not _ALWAYS_AS_ON_CUDA


def skip_padding(on):
    """Sets whether graphs on a CPU with the native kernels, created from now on, compute nothing for padding."""
    global _skips_padding
    _skips_padding = on


def skips_padding():
    """Returns what skip_padding() has set."""
    return _skips_padding


def use_int8(on):
    """Sets whether graphs on a CPU with the native kernels, created from now on, multiply in int8 in the encoder.

    They have no gradients, and round a weight when they first run. What changes it later has no effect.
    """
    global _uses_int8
    _uses_int8 = on


def _is_native(x):
    return native.is_used_for(x) and not _ALWAYS_AS_ON_CUDA


def _is_fused(x):
    """Whether to use OneFlow's fused CUDA operators, which take their random masks from the native library."""
    return native.is_loaded() and (x.is_cuda or _ALWAYS_AS_ON_CUDA)


def linear(x, weight, bias):
    """x W + b: [N, inputs], [inputs, outputs], [outputs] -> [N, outputs]."""
    if _is_native(x):
        return _Linear.apply(x, weight, bias)
    return flow._C.bias_add(flow._C.matmul(x, weight), bias, axis=1)


def encoder_linear(x, weight, bias):
    """As linear(), for the encoder: in int8 if use_int8() is on."""
    return _int8_linear(x, weight, bias) if _is_int8(x) else linear(x, weight, bias)


def encoder_matmul(x, weight):
    """x W, for the encoder: in int8 if use_int8() is on. [N, inputs], [inputs, outputs] -> [N, outputs]."""
    if _is_int8(x):
        return _int8_linear(x, weight)
    return _Matmul.apply(x, weight) if _is_packed(x) else flow._C.matmul(x, weight)


def _is_int8(x):
    return _uses_int8 and x.is_lazy and _is_native(x)


def _int8_linear(*tensors):
    (out,) = native.apply("bert_int8_linear", tensors)
    return out


def bias_gelu(x, bias):
    """gelu(x + bias), by erf: [N, H], [H] -> [N, H]."""
    if _is_native(x):
        return _BiasGelu.apply(x, bias)
    if x.is_cuda or _is_fused(x):
        return flow._C.fused_bias_add_gelu(x, bias, axis=1)
    return flow._C.gelu(flow._C.bias_add(x, bias, axis=1))


def layer_norm(x, gamma, beta):
    """Layer normalisation over the last axis, with epsilon 1e-12: [N, H], gamma and beta [H] -> [N, H]."""
    if x.is_cuda or native.is_used_for(x):
        return flow._C.layer_norm_affine(x, gamma, beta, begin_norm_axis=1, begin_params_axis=1, epsilon=1e-12)
    # OneFlow has no CPU kernel for layer_norm_affine and would abort.
    centred = x - x.mean(dim=1, keepdim=True)
    variance = (centred * centred).mean(dim=1, keepdim=True)
    return centred * (variance + 1e-12).rsqrt() * gamma + beta


def dropout(x, rate):
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate)."""
    if rate == 0.0:
        return x
    if _is_native(x):
        return flow._C.dropout(x, rate)
    if _is_fused(x):
        return _masked(x, rate)
    # In a graph, OneFlow's dropout ignores its seed: all layers of all runs would draw the same mask.
    uniform = flow._C.rand([*x.shape], dtype=flow.float32, placement=x.placement, sbp=list(x.sbp))
    return x * (uniform >= rate).to(x.dtype) * (1.0 / (1.0 - rate))


def _masked(x, rate):
    class Dropout(flow.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            (mask,) = native.apply("random_mask_like", (x,), rate=rate)
            ctx.save_for_backward(mask)
            # dropout_grad masks and scales a gradient in the same way as the forward pass does a value.
            (y,) = native.apply("dropout_grad", (x, mask), rate=rate)
            return y

        @staticmethod
        def backward(ctx, dy):
            (mask,) = ctx.saved_tensors
            (dx,) = native.apply("dropout_grad", (dy, mask), rate=rate)
            return dx

    return Dropout.apply(x)


def in_float32(x):
    """Returns x in float32. On CUDA with mixed precision, the operators that follow then compute in float32."""
    return flow._C.amp_black_identity(x) if x.is_cuda else x


def global_norm(tensors):
    """Returns the Euclidean norm of all elements of all `tensors`, a scalar without gradient.

    Each tensor is replicated on the ranks or split by rows. The ranks exchange only sums.
    """
    divided = [tensor for tensor in tensors if tensor.sbp == (flow.sbp.split(0),)]
    whole = [tensor for tensor in tensors if tensor.sbp != (flow.sbp.split(0),)]
    sums = [over_all_ranks(_sum_of_squares(group)) for group in (divided, whole) if group]
    return sum(sums[1:], sums[0]).sqrt()


def _sum_of_squares(tensors):
    if native.is_loaded():
        (total,) = native.apply("multi_reduce_sum_pow_abs", tensors)
        return total
    squares = [(tensor * tensor).sum(dim=-1).sum() for tensor in tensors]
    return flow._C.stack(squares, dim=0).sum()


def scale_by_tensor(x, scale):
    """Returns x times the scalar tensor `scale`, without gradient. OneFlow can fuse it with the optimiser's update."""
    if native.is_loaded():
        (y,) = native.apply("scalar_mul_by_tensor", (x, scale))
        return y
    return x * scale


def vocabulary_logits(x, table, bias):
    """x table^T + bias: [N, H], [V, H], [V] -> [N, V]. On CUDA, padding columns of probability 0 are appended."""
    padding = -table.shape[0] % _MULTIPLE_ON_CUDA if x.is_cuda or _ALWAYS_AS_ON_CUDA else 0
    if padding:
        table = flow._C.pad(table, [0, 0, 0, padding])
        bias = flow._C.pad(bias, [0, padding], value=_NEVER)
    return flow._C.bias_add(flow._C.matmul(x, table, transpose_b=True), bias, axis=1)


def _fuses_softmax(x):
    # OneFlow's fused softmax has no bfloat16 kernel.
    return _is_fused(x) and _mixed_precision != "bfloat16"


def pack(x, input_mask):
    """Returns x without its rows of padding, as [T, H], and the layout of the batch.

    x: [B * S, H]; input_mask: [B, S] int32, 1 for a token and 0 for padding. The layout says where sequences and
    padding are. T is B * S, and x stays as it is, unless skip_padding() is on: then T is the number of tokens, where
    what precedes the last token of a sequence counts too, and a sequence without any counts whole. OneFlow gives
    B * S as the shape of what is computed from a packed x too.
    """
    if not _is_packed(x):
        return x, attention_mask(input_mask)
    # As many operators as attention_mask() has. OneFlow numbers them, and their names seed dropout.
    (layout,) = native.apply("bert_layout", (input_mask.to(flow.float32),))
    return _Pack.apply(x, layout), layout


def unpack(x, layout):
    """Returns x, [T, H] from pack(), as [B, S, H], with zeros for rows that it lacks."""
    if _is_packed(x):
        return _Unpack.apply(x, layout)
    return x.reshape(-1, layout.shape[-1], x.shape[-1])


def without_padding(logits, input_mask, value):
    """Returns logits [B, S] with `value` where pack() drops rows, given the [B, S] int32 input_mask."""
    if not _is_packed(logits):
        return logits
    (layout,) = native.apply("bert_layout", (input_mask.to(flow.float32),))
    return flow._C.masked_fill(logits, layout < 2 * _NEVER, value)


def _is_packed(x):
    return _skips_padding and x.is_lazy and _is_native(x)


class _Pack(flow.autograd.Function):
    @staticmethod
    def forward(ctx, x, layout):
        ctx.save_for_backward(layout)
        (rows,) = native.apply("bert_pack", (x, layout))
        return rows

    @staticmethod
    def backward(ctx, drows):
        (layout,) = ctx.saved_tensors
        (dx,) = native.apply("bert_unpack", (drows, layout))
        return dx.reshape(-1, drows.shape[-1]), None


class _Unpack(flow.autograd.Function):
    @staticmethod
    def forward(ctx, rows, layout):
        ctx.save_for_backward(layout)
        (x,) = native.apply("bert_unpack", (rows, layout))
        return x

    @staticmethod
    def backward(ctx, dx):
        (layout,) = ctx.saved_tensors
        (drows,) = native.apply("bert_pack", (dx, layout))
        return drows, None


def attention_mask(input_mask):
    """Returns the layout of a batch with its padding, from input_mask [B, S] int32, 1 for a token and 0 for padding."""
    if _fuses_softmax(input_mask):
        return input_mask.reshape(-1, 1, 1, input_mask.shape[1]).to(flow.bool)
    return (input_mask.to(flow.float32) - 1.0) * -_NEVER


def for_each_batch(x):
    """Repeats x, which is computed once per iteration, for each batch of a graph with gradient accumulation.

    Such a graph returns every output once per batch. OneFlow repeats variables with an operator that Python cannot
    build, so this operator makes OneFlow treat x as a variable.
    """
    identity = flow.stateful_op("identity").Input("in").Output("out").Build()
    return flow._C.dispatch_feed_variable(identity, x, l2=0.0)


def _attention_by_parts(query, key, value, mask, heads, rate):
    length = mask.shape[-1]
    head_size = query.shape[-1] // heads

    def split_heads(x):
        return x.reshape(-1, length, heads, head_size).permute(0, 2, 1, 3)

    scores = flow._C.matmul(split_heads(query), split_heads(key), transpose_b=True, alpha=head_size**-0.5)
    if not _fuses_softmax(query):
        probabilities = dropout(flow._C.softmax(scores + mask.reshape(-1, 1, 1, length), dim=-1), rate)
    elif rate > 0.0:
        probabilities, _ = flow._C.fused_scale_mask_softmax_dropout(scores, mask, fill_value=_NEVER, p=rate)
    else:
        probabilities = flow._C.fused_scale_mask_softmax(scores, mask, fill_value=_NEVER)
    context = flow._C.matmul(probabilities, split_heads(value))
    return context.permute(0, 2, 1, 3).reshape(-1, heads * head_size)


class _Linear(flow.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        (out,) = native.apply("bert_linear", (x, weight, bias))
        return out

    @staticmethod
    def backward(ctx, dout):
        x, weight = ctx.saved_tensors
        return flow._C.matmul(dout, weight, transpose_b=True), *native.apply("bert_linear_grad", (x, dout))


class _Matmul(flow.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return flow._C.matmul(x, weight)

    @staticmethod
    def backward(ctx, dout):
        x, weight = ctx.saved_tensors
        dweight, _ = native.apply("bert_linear_grad", (x, dout))
        return flow._C.matmul(dout, weight, transpose_b=True), dweight


def _static(x, *gradients):
    """Returns gradients of parameters, computed by an operator that also gives that of x, as OneFlow can use them."""
    return tuple(
        native.apply("bert_static_copy", (gradient,))[0] if _is_packed(x) else gradient for gradient in gradients
    )


class _BiasGelu(flow.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        ctx.save_for_backward(x, bias)
        return flow._C.fused_bias_add_gelu(x, bias, axis=1)

    @staticmethod
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        dx, dbias = native.apply("bert_bias_gelu_grad", (x, bias, dy))
        return dx, *_static(x, dbias)


def attention(query, key, value, layout, heads, rate):
    """Multi-head attention, with dropout on the probabilities.

    query, key, value: [T, H], heads side by side; layout: from pack() -> [T, H]. The result for a sequence of padding
    only is undefined and differs between devices.
    """

    if not _is_native(query):
        return _attention_by_parts(query, key, value, layout, heads, rate)

    class Attention(flow.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, layout):
            out, random = native.apply("bert_attention", (query, key, value, layout), heads=heads, rate=rate)
            ctx.save_for_backward(query, key, value, layout, random)
            return out

        @staticmethod
        def backward(ctx, dout):
            gradients = native.apply("bert_attention_grad", (dout, *ctx.saved_tensors), heads=heads, rate=rate)
            return (*gradients, None)

    return Attention.apply(query, key, value, layout)


def residual_norm(x, bias, residual, gamma, beta, layout, rate):
    """LayerNorm(dropout(x + bias) + residual), with epsilon 1e-12.

    x, residual: [T, H]; bias, gamma, beta: [H]; layout: from pack(), by which dropout is drawn -> [T, H].
    """

    if not _is_native(x):
        if _is_fused(x) and rate > 0.0:
            x = flow._C.fused_bias_add_dropout(x, bias, p=rate, axis=1)
        else:
            x = dropout(flow._C.bias_add(x, bias, axis=1), rate)
        return layer_norm(x + residual, gamma, beta)

    class ResidualNorm(flow.autograd.Function):
        @staticmethod
        def forward(ctx, x, bias, residual, gamma, beta, layout):
            y, normalised, inverse_deviation, random = native.apply(
                "bert_residual_norm", (x, bias, residual, gamma, beta, layout), rate=rate, epsilon=1e-12
            )
            ctx.save_for_backward(normalised, inverse_deviation, gamma, random, layout)
            return y

        @staticmethod
        def backward(ctx, dy):
            dx, dresidual, dbias, dgamma, dbeta = native.apply(
                "bert_residual_norm_grad", (dy, *ctx.saved_tensors), rate=rate
            )
            dbias, dgamma, dbeta = _static(dx, dbias, dgamma, dbeta)
            return dx, dbias, dresidual, dgamma, dbeta, None

    return ResidualNorm.apply(x, bias, residual, gamma, beta, layout)


def sums_in_shared_memory():
    """Returns whether sum_over_ranks() uses memory that the ranks share."""
    return _nodes_with_shared_memory > 0


def sum_over_ranks(partial):
    """Returns the sum of each of the tensors `partial` over the ranks, whole on each of them. Works in graphs only."""
    if _nodes_with_shared_memory == 0:
        return [over_all_ranks(tensor) for tensor in partial]
    if _nodes_with_shared_memory == 1:
        return native.apply("bert_sum_over_ranks", partial)
    # The ranks of a node divide their sum among each other. OneFlow sums the parts over the nodes: each rank talks to
    # those that have the same part, about that part only.
    ranks = partial[0].placement
    nodes = flow.placement(ranks.type, np.array(ranks.ranks).reshape(_nodes_with_shared_memory, -1))
    partial_sum, broadcast, split = flow.sbp.partial_sum, flow.sbp.broadcast, flow.sbp.split(0)
    partial = [tensor.to_global(placement=nodes, sbp=[partial_sum, partial_sum]) for tensor in partial]
    (slices,) = native.apply("bert_scatter_over_ranks", partial)
    slices = slices.to_global(sbp=[broadcast, split])
    sums = native.apply("bert_gather_over_ranks", (slices, *partial))
    return [tensor.to_global(placement=ranks, sbp=broadcast) for tensor in sums]


def over_all_ranks(partial):
    """Combines the partial sums or means of the ranks into that of the global batch, on all ranks."""
    return partial.to_global(sbp=flow.sbp.broadcast)
