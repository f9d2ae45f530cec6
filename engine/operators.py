"""The operators that a BERT layer consists of, each as one step where the engine can do that.

On a CPU with the native kernels (engine/native.py) they are operators of the library, with gradients. Elsewhere they
are put together from OneFlow's own, on CUDA from its fused ones. Both compute the same; dropout draws different masks.
Shapes: N rows (tokens), H hidden units.
"""

from engine import native
from engine.oneflow_loader import flow


def linear(x, weight, bias):
    """x W + b: [N, inputs], [inputs, outputs], [outputs] -> [N, outputs]."""
    if native.is_used_for(x):
        return _Linear.apply(x, weight, bias)
    return flow._C.bias_add(flow._C.matmul(x, weight), bias, axis=1)


def bias_gelu(x, bias):
    """gelu(x + bias), by erf: [N, H], [H] -> [N, H]."""
    if native.is_used_for(x):
        return _BiasGelu.apply(x, bias)
    if x.is_cuda:
        return flow._C.fused_bias_add_gelu(x, bias, axis=1)
    return flow._C.gelu(flow._C.bias_add(x, bias, axis=1))


def layer_norm(x, gamma, beta):
    """Normalisation over the last axis, with epsilon 1e-12: [N, H] and parameters [H] -> [N, H]."""
    if x.is_cuda or native.is_used_for(x):
        return flow._C.layer_norm_affine(x, gamma, beta, begin_norm_axis=1, begin_params_axis=1, epsilon=1e-12)
    # OneFlow has no CPU kernel for the operator above: it aborts the process.
    centred = x - x.mean(dim=1, keepdim=True)
    variance = (centred * centred).mean(dim=1, keepdim=True)
    return centred * (variance + 1e-12).rsqrt() * gamma + beta


def dropout(x, rate):
    """Zeroes each element with probability `rate`, and scales the others up to keep the mean."""
    if rate == 0.0:
        return x
    if native.is_used_for(x):
        return flow._C.dropout(x, rate)
    # OneFlow's dropout ignores its seed within a graph: all layers of all runs would draw the same mask.
    uniform = flow._C.rand([*x.shape], dtype=flow.float32, placement=x.placement, sbp=list(x.sbp))
    return x * (uniform >= rate).to(x.dtype) * (1.0 / (1.0 - rate))


def in_float32(x):
    """x as float32, which computing goes on in: mixed precision on CUDA would else go on in float16."""
    return flow._C.amp_black_identity(x) if x.is_cuda else x


def global_norm(tensors):
    """The Euclidean norm of all elements of all `tensors`, a scalar; without a gradient.

    The ranks have each tensor whole, or some rows of it each. Only sums go from rank to rank.
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
    """x times the scalar tensor `scale`; without a gradient. An optimiser's update can take it into itself."""
    if native.is_loaded():
        (y,) = native.apply("scalar_mul_by_tensor", (x, scale))
        return y
    return x * scale


def _attention_by_parts(query, key, value, mask, heads, rate):
    length = mask.shape[1]
    head_size = query.shape[-1] // heads

    def split_heads(x):
        return x.reshape(-1, length, heads, head_size).permute(0, 2, 1, 3)

    scores = flow._C.matmul(split_heads(query), split_heads(key), transpose_b=True, alpha=head_size**-0.5)
    probabilities = flow._C.softmax(scores + mask.reshape(-1, 1, 1, length), dim=-1)
    context = flow._C.matmul(dropout(probabilities, rate), split_heads(value))
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
        dx = flow._C.matmul(dout, weight, transpose_b=True)
        dweight = flow._C.matmul(x, dout, transpose_a=True)
        return dx, dweight, dout.sum(dim=0)


class _BiasGelu(flow.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        ctx.save_for_backward(x, bias)
        return flow._C.fused_bias_add_gelu(x, bias, axis=1)

    @staticmethod
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        return native.apply("bert_bias_gelu_grad", (x, bias, dy))


def attention(query, key, value, mask, heads, rate):
    """Multi-head attention; all heads side by side, dropout on the probabilities.

    query, key, value: [B * S, H]; mask, added to the scores: [B, S] -> [B * S, H].
    """

    if not native.is_used_for(query):
        return _attention_by_parts(query, key, value, mask, heads, rate)

    class Attention(flow.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, mask):
            out, random = native.apply("bert_attention", (query, key, value, mask), heads=heads, rate=rate)
            ctx.save_for_backward(query, key, value, mask, random)
            return out

        @staticmethod
        def backward(ctx, dout):
            gradients = native.apply("bert_attention_grad", (dout, *ctx.saved_tensors), heads=heads, rate=rate)
            return (*gradients, None)

    return Attention.apply(query, key, value, mask)


def residual_norm(x, bias, residual, gamma, beta, rate):
    """LayerNorm(dropout(x + bias) + residual) with epsilon 1e-12: [N, H] and parameters [H] -> [N, H]."""

    if not native.is_used_for(x):
        return layer_norm(dropout(flow._C.bias_add(x, bias, axis=1), rate) + residual, gamma, beta)

    class ResidualNorm(flow.autograd.Function):
        @staticmethod
        def forward(ctx, x, bias, residual, gamma, beta):
            y, normalised, inverse_deviation, random = native.apply(
                "bert_residual_norm", (x, bias, residual, gamma, beta), rate=rate, epsilon=1e-12
            )
            ctx.save_for_backward(normalised, inverse_deviation, gamma, random)
            return y

        @staticmethod
        def backward(ctx, dy):
            dx, dresidual, dbias, dgamma, dbeta = native.apply(
                "bert_residual_norm_grad", (dy, *ctx.saved_tensors), rate=rate
            )
            return dx, dbias, dresidual, dgamma, dbeta

    return ResidualNorm.apply(x, bias, residual, gamma, beta)


def over_all_ranks(partial):
    """What the ranks hold of a sum or mean over the global batch, put together on all of them."""
    return partial.to_global(sbp=flow.sbp.broadcast)
