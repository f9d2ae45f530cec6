"""BERT's variables in a snapshot: names, shapes, and the model size that they imply.

The converters share this module. Weights are [inputs, outputs], as in TensorFlow.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np

from snapshots import layout
from system.errors import UserError, some_of
from system.input_files import open_input, reading

WORD_EMBEDDINGS = "bert-embeddings-word_embeddings"
POSITION_EMBEDDINGS = "bert-embeddings-position_embeddings"
TOKEN_TYPE_EMBEDDINGS = "bert-embeddings-token_type_embeddings"
CLASSIFIER_WEIGHTS = "output_weights"

LAYER_NORM_EPSILON = 1e-12

_LARGEST_CONFIG = 1 << 20  # bytes; published ones have a few hundred
_MOST_LAYERS = 10000
_MOST_PADDING = 128
_LARGEST_SIZE = 2**31 - 1

# The sizes of nearly every BERT, which are the defaults of the flags.
_USUAL_SIZES = {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The sizes of a BERT. num_attention_heads is None if unknown, as the variables do not imply it."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int | None
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int


def variable_name(parameter_name):
    """Returns the snapshot's name of a parameter: `bert.pooler.dense.bias` -> `bert-pooler-dense-bias`."""
    return parameter_name.replace(".", "-")


def name_in_wrapper(names, separator, embeddings):
    """Returns the prefix of the names of a BERT inside another module, such as `module.`, or "".

    `names`: all names of a file, with parts joined by `separator`. `embeddings`: the name of the word embeddings, which
    may follow `bert`. Returns "" if `names` has none or several of them.
    """
    found = [name[: -len(embeddings)] for name in names if f"{separator}{name}".endswith(f"{separator}{embeddings}")]
    if len(found) != 1:
        return ""
    backbone = f"bert{separator}"
    has_backbone = f"{separator}{found[0]}".endswith(f"{separator}{backbone}")
    return found[0][: -len(backbone)] if has_backbone else found[0]


def describe_names(names):
    """Returns `1,234 names: a, b, c, ...` for messages about a file with unexpected content."""
    names = sorted(names)
    return f"{len(names):,} names: {some_of(names)}"


def check_finite(array, place):
    """Raises UserError, naming the `place`, if the array has NaN or infinity."""
    if not np.isfinite(array).all():
        raise UserError(f"{place} holds NaN or infinity: the model is damaged or diverged in training")


def describe_padding(stated, found, config_path):
    """Returns the error text for a model whose configuration does not count padded word embeddings."""
    return (
        f"{config_path}: has vocab_size {stated}, but the weights have {found} word embeddings: the vocabulary was "
        f"probably padded to a multiple of 8; write {found} in a copy of the file, the extra ones do no harm"
    )


def is_padded(stated, found):
    """Whether `found` word embeddings are a vocabulary of `stated` pieces, padded as in NVIDIA's scripts."""
    return stated < found < stated + _MOST_PADDING and found % 8 == 0


def encoder_shapes(size):
    """Returns name -> shape of the embeddings and encoder layers, which every BERT has."""
    hidden = size.hidden_size
    shapes = {
        WORD_EMBEDDINGS: (size.vocab_size, hidden),
        POSITION_EMBEDDINGS: (size.max_position_embeddings, hidden),
        TOKEN_TYPE_EMBEDDINGS: (size.type_vocab_size, hidden),
        **_layer_norm_shapes("bert-embeddings-LayerNorm", hidden),
    }
    for layer in range(size.num_hidden_layers):
        prefix = f"bert-encoder-layer_{layer}"
        for name in ("query", "key", "value"):
            shapes |= _dense_shapes(f"{prefix}-attention-self-{name}", hidden, hidden)
        shapes |= _dense_shapes(f"{prefix}-attention-output-dense", hidden, hidden)
        shapes |= _layer_norm_shapes(f"{prefix}-attention-output-LayerNorm", hidden)
        shapes |= _dense_shapes(f"{prefix}-intermediate-dense", hidden, size.intermediate_size)
        shapes |= _dense_shapes(f"{prefix}-output-dense", size.intermediate_size, hidden)
        shapes |= _layer_norm_shapes(f"{prefix}-output-LayerNorm", hidden)
    return shapes


def head_shapes(size, num_labels=2):
    """Returns head -> (name -> shape) of the pooler and the task heads. `num_labels`: of the classifier."""
    hidden = size.hidden_size
    return {
        "pooler": _dense_shapes("bert-pooler-dense", hidden, hidden),
        "masked_lm": {
            **_dense_shapes("cls-predictions-transform-dense", hidden, hidden),
            **_layer_norm_shapes("cls-predictions-transform-LayerNorm", hidden),
            "cls-predictions-output_bias": (size.vocab_size,),
        },
        "next_sentence": {
            "cls-seq_relationship-output_weights": (2, hidden),
            "cls-seq_relationship-output_bias": (2,),
        },
        "squad": _dense_shapes("cls-squad-output", hidden, 2),
        "classifier": {CLASSIFIER_WEIGHTS: (num_labels, hidden), "output_bias": (num_labels,)},
    }


def label_count(shapes):
    """Returns the number of labels of the classifier in `shapes` (name -> shape), or None without a classifier."""
    shape = shapes.get(CLASSIFIER_WEIGHTS)
    return shape[0] if shape else None


def _dense_shapes(prefix, inputs, outputs):
    return {f"{prefix}-weight": (inputs, outputs), f"{prefix}-bias": (outputs,)}


def _layer_norm_shapes(prefix, width):
    return {f"{prefix}-gamma": (width,), f"{prefix}-beta": (width,)}


def shapes_by_meta(folder, names):
    """Returns name -> shape of the variables `names` in the snapshot `folder` that have a meta file.

    Drops the leading 1 of the position embeddings in legacy snapshots.
    """
    metas = {name: layout.read_meta(Path(folder) / name) for name in names}
    shapes = {name: meta[0] for name, meta in metas.items() if meta is not None}
    if POSITION_EMBEDDINGS in shapes:
        shapes[POSITION_EMBEDDINGS] = shapes[POSITION_EMBEDDINGS][-2:]
    return shapes


def infer_size(shapes, source):
    """Returns the ModelSize, without the number of heads, of the variables in `shapes` (name -> shape).

    Raises UserError, naming the `source`, if the encoder is incomplete or shapes are inconsistent.
    """
    first_layer = "bert-encoder-layer_0-intermediate-dense-weight"
    for name in (WORD_EMBEDDINGS, POSITION_EMBEDDINGS, TOKEN_TYPE_EMBEDDINGS, first_layer):
        if name not in shapes:
            raise UserError(f"{source}: not a BERT: it has no variable {name}, but {describe_names(shapes)}")
        if len(shapes[name]) != 2 or 0 in shapes[name]:
            raise UserError(f"{source}: {name} has shape {list(shapes[name])}, expected two sizes of at least 1")
    layers = {match[1] for name in shapes if (match := re.match(r"bert-encoder-layer_(\d+)-", name))}
    size = ModelSize(
        vocab_size=shapes[WORD_EMBEDDINGS][0],
        hidden_size=shapes[WORD_EMBEDDINGS][1],
        num_hidden_layers=len(layers),
        num_attention_heads=None,
        intermediate_size=shapes[first_layer][1],
        max_position_embeddings=shapes[POSITION_EMBEDDINGS][0],
        type_vocab_size=shapes[TOKEN_TYPE_EMBEDDINGS][0],
    )
    check_shapes(shapes, size, source)
    return size


def check_shapes(shapes, size, source):
    """Raises UserError unless `shapes` (name -> shape) has a whole encoder of that size and heads that fit it."""
    expected = encoder_shapes(size)
    for name in expected:
        if name not in shapes:
            raise UserError(f"{source}: has no variable {name}, which a BERT of {size.num_hidden_layers} layers needs")
    for head in head_shapes(size, label_count(shapes) or 2).values():
        expected |= head
    for name, shape in expected.items():
        if name in shapes and tuple(shapes[name]) != shape:
            raise UserError(
                f"{source}: {name} has shape {list(shapes[name])}, the rest of the model needs {list(shape)}"
            )


def check_config_fits(config_size, size, config_path):
    """Raises UserError if the sizes in a configuration file, except the heads, are not those of the variables."""
    for field in dataclasses.fields(ModelSize):
        stated, found = getattr(config_size, field.name), getattr(size, field.name)
        if field.name == "vocab_size" and is_padded(stated, found):
            raise UserError(describe_padding(stated, found, config_path))
        if found is not None and stated != found:
            raise UserError(
                f"{config_path}: has {field.name} {stated}, but the weights are of a model with {found}; give the "
                "configuration of this model"
            )


def describe_size(size):
    """Returns a line for the user: the flags for the model, or its sizes if the number of heads is unknown."""
    if size.num_attention_heads is None:
        return (
            f"layers: {size.num_hidden_layers}, hidden size: {size.hidden_size} (the number of heads is unknown: "
            "num_attention_heads x hidden_size_per_head must be the hidden size; Google's models have 64 per head)"
        )
    return f"flags for this model: {size_flags(size)}"


def size_flags(size):
    """Returns the flags that build a model of that size, without those that have the usual value."""
    flags = {
        "num_hidden_layers": size.num_hidden_layers,
        "num_attention_heads": size.num_attention_heads,
        "hidden_size_per_head": size.hidden_size // size.num_attention_heads,
    }
    if size.intermediate_size != 4 * size.hidden_size:
        flags["intermediate_size"] = size.intermediate_size
    for name, usual in _USUAL_SIZES.items():
        if getattr(size, name) != usual:
            flags[name] = getattr(size, name)
    return " ".join(f"--{name}={value}" for name, value in flags.items())


def size_of(args):
    """Returns the ModelSize that flags give, all of them settled."""
    values = {**vars(args), "hidden_size": args.num_attention_heads * args.hidden_size_per_head}
    return ModelSize(**{field.name: values[field.name] for field in dataclasses.fields(ModelSize)})


def read_config(path):
    """Reads Google's bert_config.json or Hugging Face's config.json. Returns (ModelSize, the whole dict).

    Raises UserError if it cannot be read, is not that of a BERT, or needs something that this suite's model lacks.
    """
    path = Path(path)
    try:
        with reading(path), open_input(path, "rb") as file:
            config = json.loads(file.read(_LARGEST_CONFIG))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; give a model's bert_config.json or config.json") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a model configuration: it is not a JSON object")
    if config.get("model_type", "bert") != "bert":
        raise UserError(f"{path}: the model is of type {config['model_type']!r:.40}; only 'bert' can be converted")
    sizes = {}
    for field in dataclasses.fields(ModelSize):
        value = config.get(field.name)
        largest = _MOST_LAYERS if field.name == "num_hidden_layers" else _LARGEST_SIZE
        if type(value) is not int or not 1 <= value <= largest:
            found = f"is {value!r:.40}" if field.name in config else "is missing"
            raise UserError(f"{path}: {field.name} {found}; it must be a whole number from 1 to {largest}")
        sizes[field.name] = value
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "initializer_range", "pad_token_id"):
        if type(config.get(name, 0)) not in (int, float):
            raise UserError(f"{path}: {name} is {config[name]!r:.40}; it must be a number")
    size = ModelSize(**sizes)
    check_heads(size, path)
    _check_supported(config, path)
    return size, config


def check_heads(size, source):
    """Raises UserError unless the hidden size is a multiple of the number of attention heads."""
    if size.hidden_size % size.num_attention_heads:
        raise UserError(
            f"{source}: hidden_size {size.hidden_size} is not a multiple of num_attention_heads "
            f"{size.num_attention_heads}"
        )


def _check_supported(config, path):
    """Raises UserError if the network differs from this suite's: its weights would load but give wrong results."""
    expected = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{path}: {name} is {config[name]!r:.40}, but this suite's model has {value!r}; to convert the "
                "weights anyway, change that in a copy of the file"
            )
