"""BERT as published (Devlin et al. 2018; google-research/bert), on OneFlow: the backbone that every task shares.

The tree of modules is the tree of variable names: a parameter reached as `bert.encoder.layer_0.attention.self.query.weight`
is the snapshot's `bert-encoder-layer_0-attention-self-query-weight`. All tensors are global, so that the same code
runs on one device or many, on CPU or GPU. Shapes: B sequences of the global batch, S tokens each, H hidden units.
"""

import dataclasses

import numpy as np

import engine
import native

flow = engine.load()
nn = flow.nn


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The size of a BERT model, in the names of google-research/bert's bert_config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float = 0.02


class Initializer:
    """Makes parameters: global float32 tensors, the same on all ranks of `placement`.

    The values come from NumPy's generator, so that one seed gives the same model on every device.
    """

    def __init__(self, placement, seed):
        self._placement = placement
        self._generator = np.random.default_rng(seed)

    def truncated_normal(self, shape, standard_deviation):
        """Normal values, redrawn where they lie beyond two standard deviations, as TensorFlow's truncated_normal."""
        values = self._generator.standard_normal(shape, dtype=np.float32)
        beyond = np.abs(values) > 2
        while beyond.any():
            values[beyond] = self._generator.standard_normal(np.count_nonzero(beyond), dtype=np.float32)
            beyond = np.abs(values) > 2
        return self._parameter(values * np.float32(standard_deviation))

    def constant(self, shape, value):
        """`value` everywhere."""
        return self._parameter(np.full(shape, value, dtype=np.float32))

    def _parameter(self, values):
        return nn.Parameter(flow.tensor(values, placement=self._placement, sbp=flow.sbp.broadcast))


class FullyConnected(nn.Module):
    """x W + b, with W as TensorFlow lays it out: [inputs, outputs]."""

    def __init__(self, inputs, outputs, config, initializer):
        super().__init__()
        self.weight = initializer.truncated_normal((inputs, outputs), config.initializer_range)
        self.bias = initializer.constant((outputs,), 0.0)

    def forward(self, x):
        """[N, inputs] -> [N, outputs]."""
        return flow._C.bias_add(flow._C.matmul(x, self.weight), self.bias, axis=1)


class LayerNorm(nn.Module):
    """Normalisation over the last axis, with epsilon 1e-12."""

    def __init__(self, size, initializer):
        super().__init__()
        self.gamma = initializer.constant((size,), 1.0)
        self.beta = initializer.constant((size,), 0.0)

    def forward(self, x):
        """[N, size] -> [N, size]."""
        if x.is_cuda or native.kernels():
            return flow._C.layer_norm_affine(
                x, self.gamma, self.beta, begin_norm_axis=1, begin_params_axis=1, epsilon=1e-12
            )
        # Without the native library there is no CPU kernel for the operator above: OneFlow aborts the process.
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred * (variance + 1e-12).rsqrt() * self.gamma + self.beta


def dropout(x, probability, training):
    """Zeroes each element with that probability, and scales the others up to keep the mean."""
    if probability == 0.0 or not training:
        return x
    return flow._C.dropout(x, probability)


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config, initializer):
        super().__init__()
        self._dropout_prob = config.hidden_dropout_prob
        deviation = config.initializer_range
        self.word_embeddings = initializer.truncated_normal((config.vocab_size, config.hidden_size), deviation)
        self.token_type_embeddings = initializer.truncated_normal(
            (config.type_vocab_size, config.hidden_size), deviation
        )
        self.position_embeddings = initializer.truncated_normal(
            (config.max_position_embeddings, config.hidden_size), deviation
        )
        self.LayerNorm = LayerNorm(config.hidden_size, initializer)

    def forward(self, input_ids, segment_ids):
        """Two [B, S] int32 -> [B * S, H]."""
        seq_length = input_ids.shape[1]
        words = flow._C.gather(self.word_embeddings, input_ids, axis=0)
        segments = flow._C.gather(self.token_type_embeddings, segment_ids, axis=0)
        positions = self.position_embeddings[:seq_length]
        embeddings = words + segments + positions
        embeddings = self.LayerNorm(embeddings.reshape(-1, embeddings.shape[-1]))
        return dropout(embeddings, self._dropout_prob, self.training)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of a sequence to itself."""

    def __init__(self, config, initializer):
        super().__init__()
        self._num_heads = config.num_attention_heads
        self._dropout_prob = config.attention_probs_dropout_prob
        hidden_size = config.hidden_size
        self.query = FullyConnected(hidden_size, hidden_size, config, initializer)
        self.key = FullyConnected(hidden_size, hidden_size, config, initializer)
        self.value = FullyConnected(hidden_size, hidden_size, config, initializer)

    def forward(self, x, attention_mask):
        """[B * S, H] and the additive mask [B, 1, 1, S] -> [B * S, H]."""
        seq_length = attention_mask.shape[-1]
        head_size = x.shape[-1] // self._num_heads

        def split_heads(y):
            return y.reshape(-1, seq_length, self._num_heads, head_size).permute(0, 2, 1, 3)

        query, key, value = split_heads(self.query(x)), split_heads(self.key(x)), split_heads(self.value(x))
        scores = flow._C.matmul(query, key, transpose_b=True, alpha=head_size**-0.5)
        probabilities = flow._C.softmax(scores + attention_mask, dim=-1)
        probabilities = dropout(probabilities, self._dropout_prob, self.training)
        context = flow._C.matmul(probabilities, value)
        return context.permute(0, 2, 1, 3).reshape(-1, self._num_heads * head_size)


class ResidualOutput(nn.Module):
    """LayerNorm(residual + dropout(x W + b)): how both halves of a layer end."""

    def __init__(self, inputs, config, initializer):
        super().__init__()
        self._dropout_prob = config.hidden_dropout_prob
        self.dense = FullyConnected(inputs, config.hidden_size, config, initializer)
        self.LayerNorm = LayerNorm(config.hidden_size, initializer)

    def forward(self, x, residual):
        """[N, inputs] and [N, H] -> [N, H]."""
        return self.LayerNorm(dropout(self.dense(x), self._dropout_prob, self.training) + residual)


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self, config, initializer):
        super().__init__()
        self.self = SelfAttention(config, initializer)
        self.output = ResidualOutput(config.hidden_size, config, initializer)

    def forward(self, x, attention_mask):
        """[B * S, H] -> [B * S, H]."""
        return self.output(self.self(x, attention_mask), x)


class Intermediate(nn.Module):
    """The wide part of a layer's second half: GELU (by erf, not its tanh approximation)."""

    def __init__(self, config, initializer):
        super().__init__()
        self.dense = FullyConnected(config.hidden_size, config.intermediate_size, config, initializer)

    def forward(self, x):
        """[N, H] -> [N, intermediate_size]."""
        return flow._C.gelu(self.dense(x))


class Layer(nn.Module):
    """One layer of the encoder, normalised after each residual addition."""

    def __init__(self, config, initializer):
        super().__init__()
        self.attention = Attention(config, initializer)
        self.intermediate = Intermediate(config, initializer)
        self.output = ResidualOutput(config.intermediate_size, config, initializer)

    def forward(self, x, attention_mask):
        """[B * S, H] -> [B * S, H]."""
        attention_output = self.attention(x, attention_mask)
        return self.output(self.intermediate(attention_output), attention_output)


class Encoder(nn.Module):
    """The stack of layers `layer_0`, `layer_1`, ..."""

    def __init__(self, config, initializer):
        super().__init__()
        for index in range(config.num_hidden_layers):
            self.add_module(f"layer_{index}", Layer(config, initializer))

    def forward(self, x, attention_mask):
        """[B * S, H] -> [B * S, H]."""
        for layer in self.children():
            x = layer(x, attention_mask)
        return x


class Pooler(nn.Module):
    """A tanh layer over the first token, [CLS]."""

    def __init__(self, config, initializer):
        super().__init__()
        self.dense = FullyConnected(config.hidden_size, config.hidden_size, config, initializer)

    def forward(self, sequence_output):
        """[B, S, H] -> [B, H]."""
        first_token = sequence_output[:, 0:1, :].reshape(-1, sequence_output.shape[-1])
        return flow._C.tanh(self.dense(first_token))


class BertBackbone(nn.Module):
    """Embeddings and encoder, and for tasks over whole sequences the pooler."""

    def __init__(self, config, initializer, with_pooler):
        super().__init__()
        self.embeddings = Embeddings(config, initializer)
        self.encoder = Encoder(config, initializer)
        if with_pooler:
            self.pooler = Pooler(config, initializer)

    def forward(self, input_ids, input_mask, segment_ids):
        """Three [B, S] int32 (input_mask: 1 for a token, 0 for padding) -> sequence output [B, S, H]."""
        seq_length = input_ids.shape[1]
        attention_mask = ((input_mask.to(flow.float32) - 1.0) * 10000.0).reshape(-1, 1, 1, seq_length)
        x = self.encoder(self.embeddings(input_ids, segment_ids), attention_mask)
        return x.reshape(-1, seq_length, x.shape[-1])


def variable_name(parameter_name):
    """The snapshot's name of a parameter: `bert.pooler.dense.bias` -> `bert-pooler-dense-bias`."""
    return parameter_name.replace(".", "-")
