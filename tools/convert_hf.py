"""Converts BERT from a Hugging Face folder to a snapshot and back.

    python tools/convert_hf.py import --hf_dir ./bert-base-uncased --of_dump_path ./bert-base-uncased-oneflow
    python tools/convert_hf.py export --snapshot_dir ./output/last_snapshot --hf_dump_path ./my-bert \
        --bert_config_file ./uncased_L-12_H-768_A-12/bert_config.json --vocab_file ./dataset/vocab.txt

A Hugging Face folder has config.json and model.safetensors (or several such files with an index). Its dense weights are
[outputs, inputs]; a snapshot's are [inputs, outputs].
"""

import suite  # noqa: F401

# isort: split

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
from pathlib import Path

# Registers bfloat16 with NumPy, so that safetensors can read such tensors.
import ml_dtypes  # noqa: F401
import numpy as np
import tokenizers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from snapshots import layout, model_files, variables
from system.command_line import ArgumentParser, add_bool, add_number, positive_int
from system.errors import RunError, UserError, one_line
from system.input_files import open_input, reading
from system.output_files import atomic_file, atomic_folder, check_can_write, check_replaceable
from system.progress import print_warning, progress_bar
from text.classification import encode_labels, read_labels
from text.hugging_face_tokenizer import TOKENIZER_FILE, read_tokenizer
from text.tokenization import check_case, read_pieces
from util import run_script

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
VOCAB_FILE = "vocab.txt"
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

_LARGEST_INDEX = 1 << 26  # bytes

# transformers class -> its heads on the encoder. Export uses the first one whose heads the snapshot has.
ARCHITECTURES = {
    "BertForSequenceClassification": ["pooler", "classifier"],
    "BertForQuestionAnswering": ["squad"],
    "BertForPreTraining": ["pooler", "masked_lm", "next_sentence"],
    "BertForNextSentencePrediction": ["pooler", "next_sentence"],
    "BertForMaskedLM": ["masked_lm"],
    "BertModel": ["pooler"],
}

_HEAD_NAMES = {
    "cls-predictions-output_bias": "cls.predictions.bias",
    "cls-seq_relationship-output_weights": "cls.seq_relationship.weight",
    "cls-seq_relationship-output_bias": "cls.seq_relationship.bias",
    "cls-squad-output-weight": "qa_outputs.weight",
    "cls-squad-output-bias": "qa_outputs.bias",
    variables.CLASSIFIER_WEIGHTS: "classifier.weight",
    "output_bias": "classifier.bias",
}

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"

# Second name of a tensor -> first name.
_TIED = {
    "cls.predictions.decoder.weight": WORD_EMBEDDINGS,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

_CONSTANTS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")

_FLOATS = ("F64", "F32", "F16", "BF16")


def parse_arguments():
    parser = ArgumentParser(description="Convert BERT from a Hugging Face folder to a snapshot and back.")
    directions = parser.add_subparsers(dest="direction", required=True, metavar="{import,export}")

    text = "Write a snapshot from a Hugging Face folder."
    importing = directions.add_parser("import", help=text, description=text)
    importing.add_argument(
        "--hf_dir", required=True, metavar="DIR", help=f"folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
    )
    importing.add_argument("--of_dump_path", required=True, metavar="DIR", help="folder of the snapshot to write")
    importing.add_argument(
        "--vocab_dump_path", metavar="FILE", help=f"also write the model's vocabulary to this file, as a {VOCAB_FILE}"
    )
    add_bool(importing, "--overwrite", help="replace a snapshot that exists at --of_dump_path")

    text = "Write a Hugging Face folder from a snapshot."
    exporting = directions.add_parser("export", help=text, description=text)
    exporting.add_argument("--snapshot_dir", required=True, metavar="DIR", help="folder of the snapshot")
    exporting.add_argument("--hf_dump_path", required=True, metavar="DIR", help="Hugging Face folder to write")
    exporting.add_argument(
        "--bert_config_file", metavar="FILE", help="configuration of the model, for a snapshot without one"
    )
    text = "number of attention heads, for a snapshot without a configuration"
    add_number(exporting, "--num_attention_heads", positive_int, None, text)
    exporting.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        metavar="CLASS",
        help=f"transformers class to export to: {', '.join(ARCHITECTURES)} (default: the first one whose heads the "
        "snapshot has)",
    )
    exporting.add_argument("--vocab_file", metavar="FILE", help="vocabulary of the model, for a snapshot without one")
    add_bool(
        exporting,
        "--do_lower_case",
        default=None,
        help="the model is uncased, for a snapshot that does not record it",
    )
    add_bool(exporting, "--skip_checksums", help="export the snapshot without comparing checksums")
    add_bool(exporting, "--overwrite", help="replace a Hugging Face folder that exists at --hf_dump_path")
    return parser.parse_args()


def hugging_face_name(name):
    """Returns the name of the snapshot's variable `name` in a transformers class with heads, prefixed `bert.`."""
    if name in _HEAD_NAMES:
        return _HEAD_NAMES[name]
    name = re.sub(r"-layer_(\d+)-", r"-layer-\1-", name)
    name = re.sub(r"-LayerNorm-gamma$", "-LayerNorm-weight", name)
    name = re.sub(r"-LayerNorm-beta$", "-LayerNorm-bias", name)
    name = re.sub(r"_embeddings$", "_embeddings-weight", name)
    return name.replace("-", ".")


def canonical_name(key):
    """Returns the current name, in a class with heads, of a tensor from BertModel or an early version."""
    if key.startswith(("embeddings.", "encoder.", "pooler.")):
        key = f"bert.{key}"
    key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)


def is_transposed(name):
    """Whether the snapshot's variable `name` is a dense layer's weight, which is transposed in Hugging Face."""
    return name.endswith("-weight")


def all_shapes(size):
    """Returns name -> shape of every variable that a snapshot of that size may have."""
    shapes = variables.encoder_shapes(size)
    for head in variables.head_shapes(size).values():
        shapes |= head
    return shapes


def import_model(arguments):
    """Converts a Hugging Face folder to a snapshot. Raises UserError if it has no BERT that this suite supports."""
    check_replaceable(arguments.of_dump_path, arguments.overwrite, layout.DONE_FILE)
    if arguments.vocab_dump_path:
        check_vocab_dump_path(arguments)
    folder = Path(arguments.hf_dir)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "there is no such folder"
        raise UserError(
            f"{folder}: {found}; give a folder with {CONFIG_FILE} and {WEIGHTS_FILE} (nothing is downloaded)"
        )
    advice = layout.advice_for_other_models(folder)
    if advice and not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder}: {advice}")
    size, config = variables.read_config(folder / CONFIG_FILE)
    tokenizer = read_tokenizer(folder)
    with contextlib.ExitStack() as stack:
        tensors = open_tensors(folder, stack)
        check_tied(tensors)
        chosen, skipped = choose_tensors(tensors, size, folder, config)
        vocabulary = find_vocabulary(folder, size, tokenizer, arguments.vocab_dump_path)
        files = model_files.encode(
            model_files.config_of(size, **{name: config[name] for name in DROPOUT if name in config}),
            None if vocabulary is None else encode_pieces(vocabulary),
            tokenizer.do_lower_case,
            labels_to_import(config, tensors, folder),
        )
        with layout.open_writer(os.path.realpath(arguments.of_dump_path)) as write:
            for name in progress_bar(sorted(chosen), unit=" variables"):
                tensor = chosen[name]
                array = tensor.read().astype(np.float32, copy=False)
                variables.check_finite(array, f"{tensor.path}: {tensor.key}")
                of_model = files if name == variables.WORD_EMBEDDINGS else None
                write(name, array.T if is_transposed(name) else array, of_model)
    if arguments.vocab_dump_path:
        with atomic_file(arguments.vocab_dump_path) as file:
            file.write(encode_pieces(vocabulary))
    print_summary([tensor.shape for tensor in chosen.values()], arguments.of_dump_path)
    widened = collections.Counter(tensor.dtype for tensor in chosen.values())
    for dtype, count in widened.items():
        if dtype != "F32":
            print(f"stored as float32: {count} variables of {dtype}")
    for key, reason in skipped.items():
        print(one_line(f"skipped {key}: {reason}"))
    if vocabulary is None:
        print("the snapshot has no vocabulary: scripts that read text need --vocab_file")
    print(variables.describe_size(size))
    report_tokenizer(tokenizer, folder)


def is_sequence_classifier(tensors, config):
    """Whether the layer `classifier` is BertForSequenceClassification's: by `config`, else by the pooler's presence."""
    if config.get("architectures"):
        return "BertForSequenceClassification" in config["architectures"]
    return "bert.pooler.dense.weight" in tensors


def labels_to_import(config, tensors, folder):
    """Returns the bytes of a labels.txt with the names in the configuration's id2label, or None without names.

    Raises UserError if the names do not match the classifier's labels, or for multi-label classification, which this
    suite does not support.
    """
    classifier = tensors.get(hugging_face_name(variables.CLASSIFIER_WEIGHTS))
    if classifier is None or not is_sequence_classifier(tensors, config):
        return None
    if config.get("problem_type") == "multi_label_classification":
        raise UserError(f"{folder / CONFIG_FILE}: problem_type is multi_label_classification, which is not supported")
    names = config.get("id2label")
    if names is None or len(classifier.shape) != 2 or classifier.shape[0] == 1:
        return None
    count = classifier.shape[0]
    ids = [str(index) for index in range(count)]
    if not isinstance(names, dict) or sorted(names) != sorted(ids):
        raise UserError(f"{folder / CONFIG_FILE}: id2label does not name the {count} labels that the weights have")
    labels = [names[index] for index in ids]
    if any(not isinstance(label, str) or not label.strip() or len(label.splitlines()) != 1 for label in labels):
        raise UserError(f"{folder / CONFIG_FILE}: id2label has a name that is not one line of text; rename the label")
    return None if labels == unnamed_labels(count) else encode_labels(labels)


def unnamed_labels(count):
    """Returns transformers' default names of labels."""
    return [f"LABEL_{index}" for index in range(count)]


def report_tokenizer(tokenizer, folder):
    """Prints how text must be tokenised for the model, and warns if this suite tokenises differently."""
    if tokenizer.do_lower_case is False:
        print("a cased model: give --do_lower_case=False to scripts that read text")
    if tokenizer.differences:
        print_warning(f"{folder}: this suite tokenises differently from this model: {'; '.join(tokenizer.differences)}")


def check_vocab_dump_path(arguments):
    """Raises UserError if --vocab_dump_path cannot be written, before the snapshot is made."""
    path = arguments.vocab_dump_path
    if os.path.lexists(path) and not arguments.overwrite:
        raise UserError(f"{path}: exists already; give another file, or --overwrite to replace it")
    # The path may be in the snapshot's folder, which does not exist yet.
    if os.path.realpath(os.path.dirname(path) or ".") != os.path.realpath(arguments.of_dump_path):
        check_can_write("--vocab_dump_path", path)


class Tensor:
    """A tensor in an open safetensors file. Key, shape and dtype are read at once, values on demand."""

    def __init__(self, path, file, key):
        view = file.get_slice(key)
        self.path, self.file, self.key = path, file, key
        self.shape, self.dtype = tuple(view.get_shape()), view.get_dtype()

    def read(self):
        """Returns the values, a NumPy array of `shape`. Raises UserError if they cannot be read."""
        try:
            return self.file.get_tensor(self.key)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.path}: tensor {self.key} cannot be read: {error}") from None


def open_tensors(folder, stack):
    """Returns canonical name -> Tensor for the safetensors files of `folder`, which stay open until `stack` closes.

    Strips the prefix of a wrapper module from the names. Raises UserError if a file is damaged, if two tensors are the
    same variable of BERT, or if there is no BERT.
    """
    found = []
    for path in weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="numpy"))
            found += [Tensor(path, file, key) for key in file.keys()]
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged or not a safetensors file: {error}") from None
    prefix = variables.name_in_wrapper([tensor.key for tensor in found], ".", "embeddings.word_embeddings.weight")
    tensors = {}
    for tensor in found:
        other = tensors.setdefault(canonical_name(tensor.key.removeprefix(prefix)), tensor)
        if other is not tensor:
            raise UserError(f"{tensor.path}: the tensors {other.key} and {tensor.key} are the same variable of BERT")
    if WORD_EMBEDDINGS not in tensors:
        names = variables.describe_names(tensor.key for tensor in found)
        raise UserError(f"{folder}: not a BERT: it has no tensor {WORD_EMBEDDINGS}, or several, but {names}")
    if prefix:
        print(one_line(f"stripped {prefix} from the names of the tensors"))
    return tensors


def weight_files(folder):
    """Returns the paths of the safetensors files of the model in `folder`. Raises UserError if there are none."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        if (folder / "pytorch_model.bin").is_file():
            raise UserError(
                f"{folder}: has its weights in pytorch_model.bin, a pickle, which can run code when it is loaded; load "
                "it in transformers and save it with save_pretrained(), which writes safetensors"
            )
        raise UserError(f"{folder}: has no file {WEIGHTS_FILE}; give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        with reading(index), open_input(index, "rb") as file:
            names = sorted(set(json.loads(file.read(_LARGEST_INDEX))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{index}: not an index of safetensors files: it has no weight_map from names to files"
        ) from None
    for name in names:
        if not isinstance(name, str) or name != os.path.basename(name) or not os.path.isfile(folder / name):
            raise UserError(f"{index}: names the file {name!r:.100}, which is not in {folder}; copy it there")
    return [folder / name for name in names]


def check_tied(tensors):
    """Removes the second names of tied tensors from `tensors`. Raises UserError if tied tensors differ."""
    for second, first in _TIED.items():
        if second not in tensors:
            continue
        tensor = tensors.pop(second)
        original = tensors.setdefault(first, tensor)
        if original is not tensor and not np.array_equal(original.read(), tensor.read(), equal_nan=True):
            raise UserError(
                f"{tensor.path}: {tensor.key} differs from {original.key}, but this suite's model ties them"
            )


def choose_tensors(tensors, size, folder, config):
    """Returns (name in the snapshot -> Tensor, key -> why it is skipped).

    `config`: the model's configuration. Skips the layer `classifier` of token classification and multiple choice.
    Raises UserError unless the tensors are a BERT of that size.
    """
    name_of = {hugging_face_name(name): name for name in all_shapes(size)}
    if not is_sequence_classifier(tensors, config):
        name_of = {key: name for key, name in name_of.items() if not key.startswith("classifier.")}
    chosen, skipped = {}, {}
    for canonical, tensor in tensors.items():
        if canonical in name_of:
            if tensor.dtype not in _FLOATS:
                raise UserError(f"{tensor.path}: {tensor.key} is of type {tensor.dtype}; only floats can be converted")
            chosen[name_of[canonical]] = tensor
        elif canonical in _CONSTANTS:
            skipped[tensor.key] = "a constant, not a weight"
        elif canonical.startswith("bert."):
            raise UserError(f"{tensor.path}: {tensor.key} is not part of a BERT of {size.num_hidden_layers} layers")
        else:
            skipped[tensor.key] = "of a head that this suite does not have"
    rows = tensors[WORD_EMBEDDINGS].shape[:1]
    if rows and variables.is_padded(size.vocab_size, rows[0]):
        raise UserError(variables.describe_padding(size.vocab_size, rows[0], folder / CONFIG_FILE))
    shapes = {name: tensor.shape[::-1] if is_transposed(name) else tensor.shape for name, tensor in chosen.items()}
    variables.check_shapes(shapes, size, folder)
    return chosen, skipped


def find_vocabulary(folder, size, tokenizer, is_needed):
    """Returns the tokens of the model from read_vocabulary, or None if it has no usable vocabulary.

    Warns if there is a vocabulary but it is invalid. With `is_needed`, raises UserError instead.
    """
    if is_needed:
        return read_vocabulary(folder, size, tokenizer)
    if not tokenizer.is_word_piece or not any((folder / name).is_file() for name in (VOCAB_FILE, TOKENIZER_FILE)):
        return None
    try:
        return read_vocabulary(folder, size, tokenizer)
    except UserError as error:
        print_warning(f"the snapshot has no vocabulary: {error}")
        return None


def encode_pieces(tokens):
    """Returns the bytes of a vocabulary file."""
    return "".join(f"{token}\n" for token in tokens).encode()


def read_vocabulary(folder, size, tokenizer):
    """Returns the tokens of the model in `folder` in the order of their ids, from vocab.txt or else tokenizer.json.

    `tokenizer`: its TokenizerOfModel. Raises UserError if there is neither file, if the tokeniser is not WordPiece, or
    if ids are missing.
    """
    if not tokenizer.is_word_piece:
        raise UserError(
            f"{folder}: {tokenizer.differences[0]}, so they do not fit into a {VOCAB_FILE}; leave out --vocab_dump_path"
        )
    if (folder / VOCAB_FILE).is_file():
        return read_vocab_file(folder / VOCAB_FILE, size, folder / VOCAB_FILE)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{folder}: has neither {VOCAB_FILE} nor {TOKENIZER_FILE}; leave out --vocab_dump_path")
    try:
        ids = tokenizers.Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: not a tokenizer: {error}") from None
    if sorted(ids.values()) != list(range(len(ids))) or any("\n" in token for token in ids):
        raise UserError(
            f"{path}: its pieces do not have the ids 0 to {len(ids) - 1}, or have line breaks; "
            "leave out --vocab_dump_path"
        )
    return sorted(ids, key=ids.get)


def read_vocab_file(path, size, name):
    """Returns the pieces of the vocabulary `path`, called `name` in messages, from `read_pieces`.

    Raises UserError if it has more pieces than the model has embeddings.
    """
    tokens = read_pieces(path, name)
    if len(tokens) > size.vocab_size:
        raise UserError(
            f"{path}: has {len(tokens)} pieces, but the model {size.vocab_size}; give the vocabulary of this model"
        )
    return tokens


def export_model(arguments):
    """Converts a snapshot to a Hugging Face folder.

    Raises UserError if the snapshot lacks a variable of the transformers class, RunError if writing fails.
    """
    check_replaceable(arguments.hf_dump_path, arguments.overwrite, CONFIG_FILE)
    folder = Path(arguments.snapshot_dir)
    names = layout.variable_names(folder)
    size, given_config = model_size(arguments, names)
    own = model_files.find(folder)
    tokens = vocabulary_to_export(arguments, own, size)
    do_lower_case = case_to_export(arguments, own)
    if tokens is not None:
        check_case(arguments.vocab_file or own.vocab, dict.fromkeys(filter(None, tokens)), do_lower_case)
    architecture = arguments.architecture or default_architecture(names, size)
    num_labels = variables.label_count(variables.shapes_by_meta(folder, {variables.CLASSIFIER_WEIGHTS} & set(names)))
    labels = labels_to_export(own, num_labels) if "classifier" in ARCHITECTURES[architecture] else None
    shapes = exported_shapes(architecture, size, names, len(labels) if labels else 2)
    missing = [name for name in shapes if name not in names]
    if missing:
        raise UserError(
            f"{folder}: has no variable {missing[0]}, which a {architecture} of this size needs; "
            "choose another --architecture"
        )

    digests = {} if arguments.skip_checksums else layout.read_checksums(folder, shapes)
    tensors = {}
    for name, shape in progress_bar(shapes.items(), unit=" variables"):
        array = layout.read_variable(folder, name, shape, np.float32, digests)
        variables.check_finite(array, folder / name)
        key = hugging_face_name(name)
        if architecture == "BertModel":
            key = key.removeprefix("bert.")
        tensors[key] = np.ascontiguousarray(array.T) if is_transposed(name) else array
    with atomic_folder(os.path.realpath(arguments.hf_dump_path)) as temporary:
        try:
            # transformers rejects a file without the name of a library in its metadata.
            save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise RunError(f"{arguments.hf_dump_path}: {WEIGHTS_FILE} cannot be written: {error}") from None
        write_json(
            temporary / CONFIG_FILE, hugging_face_config(architecture, size, given_config) | label_config(labels)
        )
        if tokens is not None:
            (temporary / VOCAB_FILE).write_bytes(encode_pieces(name_unused(tokens)))
            write_json(temporary / TOKENIZER_CONFIG_FILE, tokenizer_config(do_lower_case, size))
        # The library creates its file with mode 600; the other files have the permissions of the umask.
        shutil.copymode(temporary / CONFIG_FILE, temporary / WEIGHTS_FILE)
    print_summary(shapes.values(), f"{arguments.hf_dump_path}, for {architecture}")
    report_left_out(sorted(set(names) - set(shapes)), architecture)
    if architecture == "BertModel" and "bert-pooler-dense-weight" not in shapes:
        print("the snapshot has no pooler: load it with BertModel.from_pretrained(folder, add_pooling_layer=False)")


def name_unused(tokens):
    """Returns the tokens with "" replaced by [unused0], ...: transformers would read an empty line as a token."""
    taken = set(tokens)
    names = (name for number in itertools.count() if (name := f"[unused{number}]") not in taken)
    return [token or next(names) for token in tokens]


def vocabulary_to_export(arguments, own, size):
    """Returns the pieces of --vocab_file, or of the snapshot with the ModelFiles `own`, or None.

    Raises UserError if both exist and differ.
    """
    # Read each once: --vocab_file may be a pipe.
    given = kept = None
    if arguments.vocab_file:
        given = read_vocab_file(arguments.vocab_file, size, f"--vocab_file={arguments.vocab_file}")
    if own.vocab:
        kept = read_vocab_file(own.vocab, size, own.vocab)
    if given and kept and given != kept:
        raise UserError(f"--vocab_file={arguments.vocab_file}: not the model's vocabulary, {own.vocab}; leave it out")
    return given or kept


def labels_to_export(own, num_labels):
    """Returns the names of a classifier's labels: those of the snapshot with the ModelFiles `own`, else LABEL_0, ...

    `num_labels`: the number of labels of the weights, or None if unknown. Raises UserError if the numbers differ.
    """
    labels = read_labels(own.labels) if own.labels else None
    if labels is None:
        return unnamed_labels(num_labels or 2)
    if num_labels not in (None, len(labels)):
        raise UserError(f"{own.labels}: names {len(labels)} labels, but the weights have {num_labels}")
    return labels


def label_config(labels):
    """Returns the entries of a config.json for a classifier's labels; {} for None."""
    if labels is None:
        return {}
    problem = "regression" if len(labels) == 1 else "single_label_classification"
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": problem,
    }


def case_to_export(arguments, own):
    """Returns do_lower_case from the flag or the snapshot's ModelFiles `own`, by default True.

    Raises UserError if the two differ.
    """
    given, kept = arguments.do_lower_case, own.do_lower_case
    if None not in (given, kept) and given != kept:
        raise UserError(f"--do_lower_case={given}, but the model has {kept} ({arguments.snapshot_dir}); leave it out")
    return next((value for value in (given, kept) if value is not None), True)


def model_size(arguments, names):
    """Returns (ModelSize, its configuration or {}) of the snapshot to export, which has the variables `names`.

    Raises UserError if the configuration is that of another model, or if the size is unknown without one.
    """
    folder = Path(arguments.snapshot_dir)
    path = arguments.bert_config_file or model_files.find(folder).config
    heads = arguments.num_attention_heads
    if path:
        size, config = variables.read_config(path)
        if heads not in (None, size.num_attention_heads):
            raise UserError(
                f"--num_attention_heads={heads}, but the model has {size.num_attention_heads} ({path}); leave it out"
            )
        extra = [name for name in names if re.match(r"bert-.*(?<!-[mv])$", name) and name not in all_shapes(size)]
        if extra:
            raise UserError(
                f"{folder}: has the variable {extra[0]}, which a model of that configuration does not have; give "
                "its own configuration"
            )
        return size, config
    if heads is None:
        raise UserError(f"{folder}: has no bert_config.json; give --bert_config_file or --num_attention_heads")
    size = variables.infer_size(variables.shapes_by_meta(folder, names), f"{folder} (going by its meta files)")
    size = dataclasses.replace(size, num_attention_heads=heads)
    variables.check_heads(size, folder)
    return size, {}


def default_architecture(names, size):
    """Returns the first of ARCHITECTURES whose heads are all among the variables `names`, else BertModel."""
    heads = variables.head_shapes(size)
    for architecture, needed in ARCHITECTURES.items():
        if all(name in names for head in needed for name in heads[head]):
            return architecture
    return "BertModel"


def exported_shapes(architecture, size, names, num_labels):
    """Returns name -> shape of the variables of the transformers class `architecture`, in the model's order.

    `num_labels`: of a classifier. The pooler of a BertModel is omitted if it is not among `names`.
    """
    shapes = variables.encoder_shapes(size)
    for head in ARCHITECTURES[architecture]:
        head_shapes = variables.head_shapes(size, num_labels)[head]
        if architecture != "BertModel" or not head_shapes.keys().isdisjoint(names):
            shapes |= head_shapes
    return shapes


def hugging_face_config(architecture, size, given_config):
    """Returns the config.json of the model. Other settings than sizes: `given_config`'s, else BERT's defaults."""
    usual = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }
    return {
        "architectures": [architecture],
        "model_type": "bert",
        **dataclasses.asdict(size),
        "hidden_act": "gelu",
        "layer_norm_eps": variables.LAYER_NORM_EPSILON,
        **{name: given_config.get(name, value) for name, value in usual.items()},
    }


def tokenizer_config(do_lower_case, size):
    """Returns the tokenizer_config.json for vocab.txt. Without it transformers assumes an uncased vocabulary."""
    return {
        "do_lower_case": do_lower_case,
        "model_max_length": size.max_position_embeddings,
        "tokenizer_class": "BertTokenizer",
    }


def write_json(path, content):
    """Writes `content` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def print_summary(shapes, destination):
    """Prints how many float32 variables, of the given shapes, were written."""
    parameters = sum(math.prod(shape) for shape in shapes)
    print(f"converted {len(shapes)} variables: {parameters:,} parameters, {4 * parameters:,} bytes, in {destination}")


def report_left_out(names, architecture):
    """Prints which of the snapshot's variables were not exported, and why."""
    state = [name for name in names if re.search(r"-[mv]$", name) or name.startswith("System-Train-")]
    if state:
        print(f"left out {len(state)} variables: training state (Adam's moments, the step)")
    others = [name for name in names if name not in state]
    if others:
        print(one_line(f"left out {', '.join(others)}: not part of {architecture}"))


def main():
    arguments = parse_arguments()
    if arguments.direction == "import":
        import_model(arguments)
    else:
        export_model(arguments)


if __name__ == "__main__":
    run_script(main)
