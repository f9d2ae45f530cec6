"""BERT, its losses and its optimiser in float64: the independent reference that the suite is compared with.

Written from the paper (Devlin et al. 2018, https://arxiv.org/abs/1810.04805) and from the definitions of
google-research/bert, in eager TensorFlow so that `tf.GradientTape` differentiates it. It shares no code with the
suite. Like the suite, it differs from google-research/bert in one place: GELU uses the error function, not the tanh
approximation of its current code. There is no dropout.

Throughout:
    variables   dict from snapshot name (`bert-pooler-dense-weight`) to array; weights are [inputs, outputs]
    batch       dict of integer arrays `input_ids`, `input_mask`, `segment_ids` [B, S]; for pre-training also
                `masked_lm_positions`, `masked_lm_ids`, `masked_lm_weights` [B, P] and `next_sentence_labels` [B, 1];
                for SQuAD `start_positions`, `end_positions` [B] or [B, 1]; for a classifier `label_ids`, likewise
    B, S, P     batch size, sequence length, predictions per sequence
    H, I, V     hidden size, intermediate size, vocabulary size
"""

import math
import re

import numpy as np
import tensorflow as tf

LAYER_NORM_EPSILON = 1e-12
MASKED_SCORE = -10000.0

ADAM_BETA_1 = 0.9
ADAM_BETA_2 = 0.999
ADAM_EPSILON = 1e-6
CLIP_NORM = 1.0
NO_WEIGHT_DECAY = re.compile("LayerNorm|layer_norm|bias")


def sequence_output(variables, batch, num_attention_heads):
    """Returns the last layer's hidden states, float64 [B, S, H]."""
    variables = _as_float64(variables)
    hidden = embedding_output(variables, batch)
    # A masked position is hidden from every query of its sequence; its own query still attends.
    score_bias = (1.0 - tf.cast(batch["input_mask"], tf.float64)) * MASKED_SCORE  # [B, S]
    for layer in range(num_hidden_layers(variables)):
        hidden = encoder_layer(variables, f"bert-encoder-layer_{layer}", hidden, score_bias, num_attention_heads)
    return hidden


def num_hidden_layers(variables):
    """Returns the number of encoder layers."""
    return len({match[0] for name in variables if (match := re.match(r"bert-encoder-layer_\d+(?=-)", name))})


def embedding_output(variables, batch):
    """Returns the normalised sum of word, position and segment embeddings, float64 [B, S, H]."""
    seq_length = np.shape(batch["input_ids"])[1]
    embeddings = (
        tf.gather(variables["bert-embeddings-word_embeddings"], batch["input_ids"])
        + tf.gather(variables["bert-embeddings-token_type_embeddings"], batch["segment_ids"])
        + variables["bert-embeddings-position_embeddings"][:seq_length]
    )
    return layer_norm(variables, "bert-embeddings-LayerNorm", embeddings)


def encoder_layer(variables, prefix, hidden, score_bias, num_attention_heads):
    """One post-LayerNorm Transformer layer: hidden [B, S, H], score_bias [B, S] -> [B, S, H]."""
    context = self_attention(variables, f"{prefix}-attention-self", hidden, score_bias, num_attention_heads)
    attention = dense(variables, f"{prefix}-attention-output-dense", context)
    hidden = layer_norm(variables, f"{prefix}-attention-output-LayerNorm", attention + hidden)
    intermediate = gelu(dense(variables, f"{prefix}-intermediate-dense", hidden))  # [B, S, I]
    output = dense(variables, f"{prefix}-output-dense", intermediate)
    return layer_norm(variables, f"{prefix}-output-LayerNorm", output + hidden)


def self_attention(variables, prefix, hidden, score_bias, num_attention_heads):
    """Multi-head scaled dot-product attention: hidden [B, S, H], score_bias [B, S] (of the keys) -> [B, S, H]."""
    batch_size, seq_length, hidden_size = hidden.shape
    size_per_head = hidden_size // num_attention_heads

    def heads(name):
        projected = dense(variables, f"{prefix}-{name}", hidden)
        return tf.reshape(projected, [batch_size, seq_length, num_attention_heads, size_per_head])

    scores = tf.einsum("bqnd,bknd->bnqk", heads("query"), heads("key")) / math.sqrt(size_per_head)
    probabilities = tf.nn.softmax(scores + score_bias[:, tf.newaxis, tf.newaxis, :], axis=-1)
    context = tf.einsum("bnqk,bknd->bqnd", probabilities, heads("value"))
    return tf.reshape(context, [batch_size, seq_length, hidden_size])


def dense(variables, prefix, inputs):
    """inputs [..., inputs] -> [..., outputs]."""
    return tf.tensordot(inputs, variables[f"{prefix}-weight"], axes=1) + variables[f"{prefix}-bias"]


def layer_norm(variables, prefix, inputs):
    """Layer normalisation over the last axis (population variance), same shape."""
    mean = tf.reduce_mean(inputs, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(inputs - mean), axis=-1, keepdims=True)
    normalised = (inputs - mean) / tf.sqrt(variance + LAYER_NORM_EPSILON)
    return normalised * variables[f"{prefix}-gamma"] + variables[f"{prefix}-beta"]


def gelu(x):
    """Returns x times the cumulative normal distribution of x."""
    return x * 0.5 * (1.0 + tf.math.erf(x / math.sqrt(2.0)))


def pooled_output(variables, batch, num_attention_heads):
    """Returns the first token's hidden state after the tanh pooler, float64 [B, H]."""
    variables = _as_float64(variables)
    return _pool(variables, sequence_output(variables, batch, num_attention_heads))


def masked_lm_logits(variables, batch, num_attention_heads):
    """Returns the logits of the vocabulary at the masked positions, float64 [B, P, V]."""
    variables = _as_float64(variables)
    return _masked_lm_logits(variables, batch, sequence_output(variables, batch, num_attention_heads))


def next_sentence_logits(variables, batch, num_attention_heads):
    """Returns the logits of "next sentence" (0) and "random sentence" (1), float64 [B, 2]."""
    variables = _as_float64(variables)
    return _next_sentence_logits(variables, pooled_output(variables, batch, num_attention_heads))


def _pool(variables, hidden):
    return tf.tanh(dense(variables, "bert-pooler-dense", hidden[:, 0]))


def _masked_lm_logits(variables, batch, hidden):
    at_positions = tf.gather(hidden, batch["masked_lm_positions"], batch_dims=1)  # [B, P, H]
    transformed = gelu(dense(variables, "cls-predictions-transform-dense", at_positions))
    transformed = layer_norm(variables, "cls-predictions-transform-LayerNorm", transformed)
    logits = tf.einsum("bph,vh->bpv", transformed, variables["bert-embeddings-word_embeddings"])
    return logits + variables["cls-predictions-output_bias"]


def _next_sentence_logits(variables, pooled):
    logits = tf.matmul(pooled, variables["cls-seq_relationship-output_weights"], transpose_b=True)
    return logits + variables["cls-seq_relationship-output_bias"]


def pretraining_losses(variables, batch, num_attention_heads):
    """Returns the (total, masked LM, next sentence) losses, float64 scalars.

    masked LM = sum(weight x cross-entropy) / (sum(weight) + 1e-5) over the whole batch; next sentence = mean
    cross-entropy; total = their sum (google-research/bert, run_pretraining.py).
    """
    variables = _as_float64(variables)
    hidden = sequence_output(variables, batch, num_attention_heads)

    mlm_cross_entropy = cross_entropy(_masked_lm_logits(variables, batch, hidden), batch["masked_lm_ids"])  # [B, P]
    weights = tf.cast(batch["masked_lm_weights"], tf.float64)
    mlm_loss = tf.reduce_sum(weights * mlm_cross_entropy) / (tf.reduce_sum(weights) + 1e-5)

    nsp_logits = _next_sentence_logits(variables, _pool(variables, hidden))
    nsp_loss = tf.reduce_mean(cross_entropy(nsp_logits, np.reshape(batch["next_sentence_labels"], [-1])))
    return mlm_loss + nsp_loss, mlm_loss, nsp_loss


def cross_entropy(logits, labels):
    """Returns the labels' negative log probabilities: logits [..., classes], integer labels [...] -> [...]."""
    return -tf.gather(tf.nn.log_softmax(logits, axis=-1), labels, batch_dims=logits.shape.rank - 1)


def squad_logits(variables, batch, num_attention_heads):
    """Returns the (start, end) logits, float64 [B, S] each."""
    variables = _as_float64(variables)
    logits = dense(variables, "cls-squad-output", sequence_output(variables, batch, num_attention_heads))
    return logits[..., 0], logits[..., 1]


def squad_loss(variables, batch, num_attention_heads, added=0.0):
    """Returns the average of the start's and end's mean cross-entropy over the S positions, a float64 scalar.

    `added`: [B, S], to add to the logits.
    """
    start_logits, end_logits = (logits + added for logits in squad_logits(variables, batch, num_attention_heads))
    start_cross_entropy = cross_entropy(start_logits, np.reshape(batch["start_positions"], [-1]))
    end_cross_entropy = cross_entropy(end_logits, np.reshape(batch["end_positions"], [-1]))
    return 0.5 * (tf.reduce_mean(start_cross_entropy) + tf.reduce_mean(end_cross_entropy))


def classifier_logits(variables, batch, num_attention_heads):
    """Returns the logits of the labels, float64 [B, labels]."""
    variables = _as_float64(variables)
    pooled = pooled_output(variables, batch, num_attention_heads)
    return tf.matmul(pooled, variables["output_weights"], transpose_b=True) + variables["output_bias"]


def classifier_loss(variables, batch, num_attention_heads):
    """Returns the mean cross-entropy, or with one label the mean squared error: a float64 scalar."""
    logits = classifier_logits(variables, batch, num_attention_heads)
    labels = np.reshape(batch["label_ids"], [-1])
    if logits.shape[1] == 1:
        return tf.reduce_mean(tf.square(logits[:, 0] - labels))
    return tf.reduce_mean(cross_entropy(logits, labels))


def classifier_gradients(variables, batch, num_attention_heads):
    """Returns ((loss,) as a float, gradients by name), like `pretraining_gradients`."""
    return _value_and_gradients(lambda tensors: (classifier_loss(tensors, batch, num_attention_heads),), variables)


def pretraining_gradients(variables, batch, num_attention_heads):
    """Returns ((total, masked LM, next sentence) losses as floats, gradients of the total by name).

    Gradients are dense float64 arrays of their variables' shapes; the word embeddings' is the sum over the input and
    the tied output. Variables that do not affect the loss are missing.
    """
    return _value_and_gradients(lambda tensors: pretraining_losses(tensors, batch, num_attention_heads), variables)


def squad_gradients(variables, batch, num_attention_heads, added=0.0):
    """Returns ((loss,) as a float, gradients by name), like `pretraining_gradients`; `added` as for squad_loss."""
    return _value_and_gradients(lambda tensors: (squad_loss(tensors, batch, num_attention_heads, added),), variables)


def _value_and_gradients(losses_of, variables):
    """Differentiates the first of the scalars that `losses_of(tensors)` returns."""
    tensors = _as_float64(variables)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        losses = losses_of(tensors)
    # A lookup's gradient is sparse, one row per token: convert_to_tensor sums the rows of equal ids.
    gradients = {
        name: tf.convert_to_tensor(gradient).numpy()
        for name, gradient in tape.gradient(losses[0], tensors).items()
        if gradient is not None
    }
    return tuple(float(loss) for loss in losses), gradients


def _as_float64(variables):
    return {name: tf.cast(value, tf.float64) for name, value in variables.items()}


def clip_by_global_norm(gradients, clip_norm=CLIP_NORM):
    """Returns the gradients, clipped to a global norm of `clip_norm`."""
    global_norm = math.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in gradients.values()))
    scale = clip_norm / max(global_norm, clip_norm)
    return {name: gradient * scale for name, gradient in gradients.items()}


def adam_step(variables, gradients, moments_m, moments_v, learning_rate, weight_decay_rate):
    """Runs one step of google-research/bert's optimiser in float64. Returns new (variables, moments_m, moments_v).

    Clips gradients to a global norm of 1. Adam without bias correction; decoupled weight decay, except for LayerNorm
    and biases. The moments are dicts by variable name; missing ones are zero. Variables without a gradient do not
    change.
    """
    new_variables = {name: np.asarray(value, np.float64) for name, value in variables.items()}
    new_m, new_v = dict(moments_m), dict(moments_v)
    for name, gradient in clip_by_global_norm(gradients).items():
        value = new_variables[name]
        new_m[name] = ADAM_BETA_1 * moments_m.get(name, 0.0) + (1.0 - ADAM_BETA_1) * gradient
        new_v[name] = ADAM_BETA_2 * moments_v.get(name, 0.0) + (1.0 - ADAM_BETA_2) * np.square(gradient)
        update = new_m[name] / (np.sqrt(new_v[name]) + ADAM_EPSILON)
        if not NO_WEIGHT_DECAY.search(name):
            update = update + weight_decay_rate * value
        new_variables[name] = value - learning_rate * update
    return new_variables, new_m, new_v


def learning_rate_at(step, learning_rate, iter_num, warmup_batches):
    """Returns the learning rate of step `step`, counted from 0.

    Linear warm-up from 0 over `warmup_batches` steps, then the line from `learning_rate` at step 0 to 0 at step
    `iter_num`, then 0.
    """
    if step < warmup_batches:
        return learning_rate * step / warmup_batches
    return learning_rate * (1.0 - min(step, iter_num) / iter_num)
