"""Checkpoints of a small BERT with google-research/bert's variables, written by TensorFlow."""

import numpy as np
import tensorflow as tf

VOCAB, HIDDEN, LAYERS, HEADS, POSITIONS, TYPES = 50, 16, 2, 4, 24, 2
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * HIDDEN,
    "hidden_act": "gelu",
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": TYPES,
}

# google-research/bert's variables and their names in a snapshot, from the documentation of both.
EMBEDDINGS = {
    "bert/embeddings/word_embeddings": ("bert-embeddings-word_embeddings", (VOCAB, HIDDEN)),
    "bert/embeddings/token_type_embeddings": ("bert-embeddings-token_type_embeddings", (TYPES, HIDDEN)),
    "bert/embeddings/position_embeddings": ("bert-embeddings-position_embeddings", (POSITIONS, HIDDEN)),
    "bert/embeddings/LayerNorm/gamma": ("bert-embeddings-LayerNorm-gamma", (HIDDEN,)),
    "bert/embeddings/LayerNorm/beta": ("bert-embeddings-LayerNorm-beta", (HIDDEN,)),
}
LAYER = {
    "attention/self/query/kernel": ("attention-self-query-weight", (HIDDEN, HIDDEN)),
    "attention/self/query/bias": ("attention-self-query-bias", (HIDDEN,)),
    "attention/self/key/kernel": ("attention-self-key-weight", (HIDDEN, HIDDEN)),
    "attention/self/key/bias": ("attention-self-key-bias", (HIDDEN,)),
    "attention/self/value/kernel": ("attention-self-value-weight", (HIDDEN, HIDDEN)),
    "attention/self/value/bias": ("attention-self-value-bias", (HIDDEN,)),
    "attention/output/dense/kernel": ("attention-output-dense-weight", (HIDDEN, HIDDEN)),
    "attention/output/dense/bias": ("attention-output-dense-bias", (HIDDEN,)),
    "attention/output/LayerNorm/gamma": ("attention-output-LayerNorm-gamma", (HIDDEN,)),
    "attention/output/LayerNorm/beta": ("attention-output-LayerNorm-beta", (HIDDEN,)),
    "intermediate/dense/kernel": ("intermediate-dense-weight", (HIDDEN, 4 * HIDDEN)),
    "intermediate/dense/bias": ("intermediate-dense-bias", (4 * HIDDEN,)),
    "output/dense/kernel": ("output-dense-weight", (4 * HIDDEN, HIDDEN)),
    "output/dense/bias": ("output-dense-bias", (HIDDEN,)),
    "output/LayerNorm/gamma": ("output-LayerNorm-gamma", (HIDDEN,)),
    "output/LayerNorm/beta": ("output-LayerNorm-beta", (HIDDEN,)),
}
POOLER = {
    "bert/pooler/dense/kernel": ("bert-pooler-dense-weight", (HIDDEN, HIDDEN)),
    "bert/pooler/dense/bias": ("bert-pooler-dense-bias", (HIDDEN,)),
}
PRETRAINING_HEADS = {
    "cls/predictions/transform/dense/kernel": ("cls-predictions-transform-dense-weight", (HIDDEN, HIDDEN)),
    "cls/predictions/transform/dense/bias": ("cls-predictions-transform-dense-bias", (HIDDEN,)),
    "cls/predictions/transform/LayerNorm/gamma": ("cls-predictions-transform-LayerNorm-gamma", (HIDDEN,)),
    "cls/predictions/transform/LayerNorm/beta": ("cls-predictions-transform-LayerNorm-beta", (HIDDEN,)),
    "cls/predictions/output_bias": ("cls-predictions-output_bias", (VOCAB,)),
    "cls/seq_relationship/output_weights": ("cls-seq_relationship-output_weights", (2, HIDDEN)),
    "cls/seq_relationship/output_bias": ("cls-seq_relationship-output_bias", (2,)),
}


def bert_variables_of(layers=LAYERS, heads=PRETRAINING_HEADS):
    """Returns TensorFlow name -> (snapshot name, shape) of a whole model."""
    table = EMBEDDINGS | POOLER | heads
    for layer in range(layers):
        for name, (target, shape) in LAYER.items():
            table[f"bert/encoder/layer_{layer}/{name}"] = (f"bert-encoder-layer_{layer}-{target}", shape)
    return table


def random_values(table, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, (_, shape) in table.items()}


def save_checkpoint(prefix, values, **saver_arguments):
    """Writes the arrays in `values` under their names as a TensorFlow 1 checkpoint."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        # Use placeholders: constants would be copied into the .meta file.
        feeds, variables = {}, {}
        for name, value in values.items():
            placeholder = tf.compat.v1.placeholder(tf.as_dtype(np.asarray(value).dtype), np.shape(value))
            feeds[placeholder] = value
            # The graph does not allow every name; the Saver does.
            variables[name] = tf.compat.v1.get_variable(f"v{len(variables)}", initializer=placeholder)
        session.run(tf.compat.v1.global_variables_initializer(), feeds)
        tf.compat.v1.train.Saver(variables, **saver_arguments).save(session, str(prefix))
