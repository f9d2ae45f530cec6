"""Hugging Face models with random weights, and the equivalent snapshots."""

import json

import numpy as np
from safetensors.numpy import save_file

VOCAB, HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS, TYPES = 50, 16, 2, 4, 64, 24, 2


CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "hidden_act": "gelu",
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": TYPES,
    "layer_norm_eps": 1e-12,
}


# Name in transformers -> (name in the snapshot, shape in transformers). T marks linear weights, which are
# [outputs, inputs] in torch.nn.Linear. Taken from transformers' documentation and published files.
EMBEDDINGS = {
    "bert.embeddings.word_embeddings.weight": ("bert-embeddings-word_embeddings", (VOCAB, HIDDEN)),
    "bert.embeddings.position_embeddings.weight": ("bert-embeddings-position_embeddings", (POSITIONS, HIDDEN)),
    "bert.embeddings.token_type_embeddings.weight": ("bert-embeddings-token_type_embeddings", (TYPES, HIDDEN)),
    "bert.embeddings.LayerNorm.weight": ("bert-embeddings-LayerNorm-gamma", (HIDDEN,)),
    "bert.embeddings.LayerNorm.bias": ("bert-embeddings-LayerNorm-beta", (HIDDEN,)),
}


LAYER = {
    "attention.self.query.weight": ("attention-self-query-weight", (HIDDEN, HIDDEN), "T"),
    "attention.self.query.bias": ("attention-self-query-bias", (HIDDEN,)),
    "attention.self.key.weight": ("attention-self-key-weight", (HIDDEN, HIDDEN), "T"),
    "attention.self.key.bias": ("attention-self-key-bias", (HIDDEN,)),
    "attention.self.value.weight": ("attention-self-value-weight", (HIDDEN, HIDDEN), "T"),
    "attention.self.value.bias": ("attention-self-value-bias", (HIDDEN,)),
    "attention.output.dense.weight": ("attention-output-dense-weight", (HIDDEN, HIDDEN), "T"),
    "attention.output.dense.bias": ("attention-output-dense-bias", (HIDDEN,)),
    "attention.output.LayerNorm.weight": ("attention-output-LayerNorm-gamma", (HIDDEN,)),
    "attention.output.LayerNorm.bias": ("attention-output-LayerNorm-beta", (HIDDEN,)),
    "intermediate.dense.weight": ("intermediate-dense-weight", (INTERMEDIATE, HIDDEN), "T"),
    "intermediate.dense.bias": ("intermediate-dense-bias", (INTERMEDIATE,)),
    "output.dense.weight": ("output-dense-weight", (HIDDEN, INTERMEDIATE), "T"),
    "output.dense.bias": ("output-dense-bias", (HIDDEN,)),
    "output.LayerNorm.weight": ("output-LayerNorm-gamma", (HIDDEN,)),
    "output.LayerNorm.bias": ("output-LayerNorm-beta", (HIDDEN,)),
}


ENCODER = EMBEDDINGS | {
    f"bert.encoder.layer.{layer}.{key}": (f"bert-encoder-layer_{layer}-{name}", *rest)
    for layer in range(LAYERS)
    for key, (name, *rest) in LAYER.items()
}


POOLER = {
    "bert.pooler.dense.weight": ("bert-pooler-dense-weight", (HIDDEN, HIDDEN), "T"),
    "bert.pooler.dense.bias": ("bert-pooler-dense-bias", (HIDDEN,)),
}


MASKED_LM = {
    "cls.predictions.bias": ("cls-predictions-output_bias", (VOCAB,)),
    "cls.predictions.transform.dense.weight": ("cls-predictions-transform-dense-weight", (HIDDEN, HIDDEN), "T"),
    "cls.predictions.transform.dense.bias": ("cls-predictions-transform-dense-bias", (HIDDEN,)),
    "cls.predictions.transform.LayerNorm.weight": ("cls-predictions-transform-LayerNorm-gamma", (HIDDEN,)),
    "cls.predictions.transform.LayerNorm.bias": ("cls-predictions-transform-LayerNorm-beta", (HIDDEN,)),
}


NEXT_SENTENCE = {
    "cls.seq_relationship.weight": ("cls-seq_relationship-output_weights", (2, HIDDEN)),
    "cls.seq_relationship.bias": ("cls-seq_relationship-output_bias", (2,)),
}


SQUAD = {
    "qa_outputs.weight": ("cls-squad-output-weight", (2, HIDDEN), "T"),
    "qa_outputs.bias": ("cls-squad-output-bias", (2,)),
}


CLASSIFIER = {
    "classifier.weight": ("output_weights", (3, HIDDEN)),
    "classifier.bias": ("output_bias", (3,)),
}


MODELS = {
    "BertForPreTraining": ENCODER | POOLER | MASKED_LM | NEXT_SENTENCE,
    "BertForSequenceClassification": ENCODER | POOLER | CLASSIFIER,
    "BertForQuestionAnswering": ENCODER | SQUAD,
    "BertForMaskedLM": ENCODER | MASKED_LM,
    "BertForNextSentencePrediction": ENCODER | POOLER | NEXT_SENTENCE,
    "BertModel": {key.removeprefix("bert."): entry for key, entry in (ENCODER | POOLER).items()},
}


def random_tensors(table, seed=0):
    generator = np.random.default_rng(seed)
    return {key: generator.standard_normal(entry[1]).astype(np.float32) for key, entry in table.items()}


def as_variables(tensors, table):
    """Converts Hugging Face tensors to the snapshot's variables."""
    return {table[key][0]: tensor.T if table[key][-1] == "T" else tensor for key, tensor in tensors.items()}


def write_hf_folder(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def write_shards(folder, tensors):
    write_hf_folder(folder, {})
    (folder / "model.safetensors").unlink()
    keys = sorted(tensors)
    shards = {f"model-0000{index + 1}-of-00003.safetensors": keys[index::3] for index in range(3)}
    for name, of_shard in shards.items():
        save_file({key: tensors[key] for key in of_shard}, folder / name)
    weight_map = {key: name for name, of_shard in shards.items() for key in of_shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
