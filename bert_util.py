"""The BERT backbone that all tasks share (Devlin et al. 2018; google-research/bert).

Module names are variable names: the parameter `bert.encoder.layer_0.attention.self.query.weight` is saved as
`bert-encoder-layer_0-attention-self-query-weight`. All tensors are global, so the same code runs on one device or many,
on CPU or GPU. Shapes: B sequences in the global batch, S tokens each, padding included, H hidden units; T tokens in the
encoder: B * S, or those that are no padding (operators.pack).
"""

import dataclasses

import numpy as np

from engine import operators
from engine.oneflow_loader import flow, nn
from snapshots import variables


@dataclasses.dataclass(frozen=True)
class BertConfig(variables.ModelSize):
    """The sizes and other hyperparameters of a BERT, named as in google-research/bert's bert_config.json."""

    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float = 0.02


def bert_config(args):
    """Returns the BertConfig of the flags."""
    size = dataclasses.asdict(variables.size_of(args))
    return BertConfig(
        **size,
        hidden_dropout_prob=args.hidden_dropout_prob,
        attention_probs_dropout_prob=args.attention_probs_dropout_prob,
    )


class Initializer:
    """Creates parameters: global float32 tensors, replicated on all ranks of `placement`.

    The values come from a NumPy generator, so a seed gives the same model on every device.
    """

    def __init__(self, placement, seed):
        self._placement = placement
        self._generator = np.random.default_rng(seed)

    def truncated_normal(self, shape, standard_deviation):
        """Returns normal values, redrawn beyond two standard deviations, as TensorFlow's truncated_normal."""
        values = self._generator.standard_normal(shape, dtype=np.float32)
        flat = values.reshape(-1)
        beyond = np.flatnonzero(np.abs(flat) > 2)
        while beyond.size:
            flat[beyond] = redrawn = self._generator.standard_normal(beyond.size, dtype=np.float32)
            beyond = beyond[np.abs(redrawn) > 2]
        values *= np.float32(standard_deviation)
        return self._parameter(values)

    def constant(self, shape, value):
        """Returns a parameter filled with `value`."""
        return self._parameter(np.full(shape, value, dtype=np.float32))

    def _parameter(self, values):
        return nn.Parameter(flow.tensor(values, placement=self._placement, sbp=flow.sbp.broadcast))


class ZeroInitializer(Initializer):
    """Creates zeros, for a model whose parameters are all restored: drawing random values takes longer than reading."""

    def __init__(self, placement):
        super().__init__(placement, seed=0)

    def truncated_normal(self, shape, standard_deviation):
        """Returns a parameter of zeros."""
        return self.constant(shape, 0.0)


class FullyConnected(nn.Module):
    """x W + b, with W in TensorFlow's layout, [inputs, outputs]."""

    def __init__(self, inputs, outputs, config, initializer):
        super().__init__()
        self.weight = initializer.truncated_normal((inputs, outputs), config.initializer_range)
        self.bias = initializer.constant((outputs,), 0.0)

    def forward(self, x):
        """[N, inputs] -> [N, outputs]."""
        return operators.linear(x, self.weight, self.bias)


class EncoderLinear(FullyConnected):
    """A linear layer of the encoder, which predicts in int8 if operators.use_int8() is on."""

    def forward(self, x):
        """[N, inputs] -> [N, outputs]."""
        return operators.encoder_linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with epsilon 1e-12."""

    def __init__(self, size, initializer):
        super().__init__()
        self.gamma = initializer.constant((size,), 1.0)
        self.beta = initializer.constant((size,), 0.0)

    def forward(self, x):
        """[N, size] -> [N, size]."""
        return operators.layer_norm(x, self.gamma, self.beta)


class Embeddings(nn.Module):
    """The sum of word, position and segment embeddings, normalised."""

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
        return operators.dropout(embeddings, self._dropout_prob if self.training else 0.0)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention."""

    def __init__(self, config, initializer):
        super().__init__()
        self._num_heads = config.num_attention_heads
        self._dropout_prob = config.attention_probs_dropout_prob
        hidden_size = config.hidden_size
        self.query = EncoderLinear(hidden_size, hidden_size, config, initializer)
        self.key = EncoderLinear(hidden_size, hidden_size, config, initializer)
        self.value = EncoderLinear(hidden_size, hidden_size, config, initializer)

    def forward(self, x, layout):
        """[T, H] and their layout -> [T, H]."""
        dropout_prob = self._dropout_prob if self.training else 0.0
        query, key, value = self.query(x), self.key(x), self.value(x)
        return operators.attention(query, key, value, layout, self._num_heads, dropout_prob)


class ResidualOutput(nn.Module):
    """LayerNorm(residual + dropout(x W + b)), the end of both halves of a layer."""

    def __init__(self, inputs, config, initializer):
        super().__init__()
        self._dropout_prob = config.hidden_dropout_prob
        self.dense = FullyConnected(inputs, config.hidden_size, config, initializer)
        self.LayerNorm = LayerNorm(config.hidden_size, initializer)

    def forward(self, x, residual, layout):
        """[T, inputs], [T, H] and their layout -> [T, H]."""
        dropout_prob = self._dropout_prob if self.training else 0.0
        x = operators.encoder_matmul(x, self.dense.weight)
        return operators.residual_norm(
            x, self.dense.bias, residual, self.LayerNorm.gamma, self.LayerNorm.beta, layout, dropout_prob
        )


class Attention(nn.Module):
    """The first half of a layer: self-attention and its output projection."""

    def __init__(self, config, initializer):
        super().__init__()
        self.self = SelfAttention(config, initializer)
        self.output = ResidualOutput(config.hidden_size, config, initializer)

    def forward(self, x, layout):
        """[T, H] and their layout -> [T, H]."""
        return self.output(self.self(x, layout), x, layout)


class Intermediate(nn.Module):
    """The feed-forward expansion of a layer, with exact GELU (erf, not the tanh approximation)."""

    def __init__(self, config, initializer):
        super().__init__()
        self.dense = FullyConnected(config.hidden_size, config.intermediate_size, config, initializer)

    def forward(self, x):
        """[N, H] -> [N, intermediate_size]."""
        return operators.bias_gelu(operators.encoder_matmul(x, self.dense.weight), self.dense.bias)


class Layer(nn.Module):
    """One encoder layer, with LayerNorm after each residual connection."""

    def __init__(self, config, initializer):
        super().__init__()
        self.attention = Attention(config, initializer)
        self.intermediate = Intermediate(config, initializer)
        self.output = ResidualOutput(config.intermediate_size, config, initializer)

    def forward(self, x, layout):
        """[T, H] and their layout -> [T, H]."""
        attention_output = self.attention(x, layout)
        return self.output(self.intermediate(attention_output), attention_output, layout)


class Encoder(nn.Module):
    """The layers `layer_0`, `layer_1`, ..."""

    def __init__(self, config, initializer):
        super().__init__()
        for index in range(config.num_hidden_layers):
            self.add_module(f"layer_{index}", Layer(config, initializer))

    def forward(self, x, layout):
        """[T, H] and their layout -> the output of each layer, a list of [T, H]."""
        outputs = []
        for layer in self.children():
            outputs.append(layer(outputs[-1] if outputs else x, layout))
        return outputs


class Pooler(nn.Module):
    """A dense tanh layer on the first token, [CLS]."""

    def __init__(self, config, initializer):
        super().__init__()
        self.dense = FullyConnected(config.hidden_size, config.hidden_size, config, initializer)

    def forward(self, sequence_output):
        """[B, S, H] -> [B, H]."""
        first_token = sequence_output[:, 0:1, :].reshape(-1, sequence_output.shape[-1])
        return flow._C.tanh(self.dense(first_token))


class BertBackbone(nn.Module):
    """Embeddings, encoder and, if the task needs it, the pooler."""

    def __init__(self, config, initializer, with_pooler):
        super().__init__()
        self.embeddings = Embeddings(config, initializer)
        self.encoder = Encoder(config, initializer)
        if with_pooler:
            self.pooler = Pooler(config, initializer)

    def forward(self, input_ids, input_mask, segment_ids):
        """Three [B, S] int32 (input_mask: 1 for a token, 0 for padding) -> sequence output [B, S, H]."""
        return self.hidden_states(input_ids, input_mask, segment_ids, [-1])[0]

    def hidden_states(self, input_ids, input_mask, segment_ids, layers):
        """Inputs as for forward -> the outputs of the `layers`, given by index (-1: the last), a list of [B, S, H]."""
        tokens, layout = operators.pack(self.embeddings(input_ids, segment_ids), input_mask)
        outputs = self.encoder(tokens, layout)
        return [operators.unpack(outputs[index], layout) for index in layers]


class BertEncoder(nn.Module):
    """BERT without a head, for token vectors."""

    def __init__(self, config, initializer, layers):
        """`layers`: the indexes of the layers to return."""
        super().__init__()
        self.bert = BertBackbone(config, initializer, with_pooler=False)
        self._layers = layers

    def hidden_states(self, batch):
        """`batch`, field names to [B, S] tensors -> the outputs of the layers, a tuple of [B, S, H]."""
        inputs = (batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        return tuple(self.bert.hidden_states(*inputs, self._layers))
