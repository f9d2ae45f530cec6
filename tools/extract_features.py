"""Writes BERT's vectors for the tokens of each line of a text, or one vector per line.

    python tools/extract_features.py --model_load_dir=model --input_file=text.txt --output_file=features.jsonl

These are JSON lines as google-research/bert's extract_features.py writes them. With --pooling it is a NumPy file.
"""

import suite  # noqa: F401

# isort: split

import argparse
import contextlib
import functools
import json

import numpy as np

from inference import batches, loaded
from system.command_line import ArgumentParser, add_bool, add_number, positive_int
from system.errors import RunError, UserError
from system.lazy import LazyModule
from system.output_files import atomic_file, check_can_write, check_is_no_input
from system.progress import progress_bar
from text.tokenization import UNKNOWN, report_unknown
from util import run_script

bert_util = LazyModule("bert_util")

DEFAULT_LAYERS = (-1, -2, -3, -4)
MAX_SEQ_LENGTH = 128
# Lines are read, sorted by length and written in chunks of at most so many, and of so many bytes of vectors.
LINES_AT_A_TIME = 4096
BYTES_AT_A_TIME = 1 << 28


def main():
    arguments = parse_arguments()
    model = loaded.read(arguments, heads=())
    loaded.settle_max_seq_length(arguments, model.size, MAX_SEQ_LENGTH, batches.SHORTEST_INPUT)
    layers = layers_of(arguments, model.size)
    texts = batches.read_texts(arguments.input_file)
    check_can_write("--output_file", arguments.output_file)
    inputs = (arguments.input_file, model.vocab_file, arguments.bert_config_file)
    check_is_no_input(arguments.output_file, filter(None, inputs))
    return loaded.run_with_engine(functools.partial(extract, model, texts, layers, arguments), model)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input_file", required=True, metavar="TXT", help="a text a line, or two with ' ||| ' between them"
    )
    parser.add_argument("--output_file", required=True, metavar="FILE", help="where the vectors go")
    parser.add_argument(
        "--layers",
        type=parse_layers,
        metavar="N,...",
        help="layers, negative ones counted from the last (default: -1,-2,-3,-4; with --pooling -1, the last)",
    )
    parser.add_argument(
        "--pooling",
        choices=("cls", "mean"),
        help="write one vector a line as a NumPy file, float32 [lines, hidden size]: that of [CLS], or the mean of all "
        "tokens with [CLS] and [SEP]",
    )
    add_bool(parser, "--normalize", help="scale the vectors of --pooling to length 1")
    text = f"pieces of a line, which is cut if it has more (default: {MAX_SEQ_LENGTH}, or what the model has)"
    add_number(parser, "--max_seq_length", positive_int, None, text)
    add_number(parser, "--batch_size", positive_int, 32, "texts in a batch")
    loaded.add_model_flags(parser)
    arguments = parser.parse_args()
    if arguments.normalize and not arguments.pooling:
        parser.error("--normalize is for the vectors of --pooling; vectors of tokens are written as they are")
    if arguments.pooling and arguments.layers and len(arguments.layers) > 1:
        parser.error("--pooling takes one of the --layers")
    return arguments


def parse_layers(text):
    """Parses whole numbers separated by commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers separated by commas") from None


def layers_of(arguments, size):
    """The layers that are wanted, as --layers counts them. Raises UserError if the model does not have one."""
    layers = arguments.layers or (DEFAULT_LAYERS[:1] if arguments.pooling else DEFAULT_LAYERS)
    for layer in layers:
        if not -size.num_hidden_layers <= layer < size.num_hidden_layers:
            raise UserError(
                f"--layers={','.join(map(str, layers))}: the model has {size.num_hidden_layers} layers; give numbers "
                f"from {-size.num_hidden_layers} to {size.num_hidden_layers - 1}"
            )
    return list(layers)


def load_encoder(model, layers):
    """The Scorer of the vectors of all pieces in each of the `layers`."""
    return loaded.load(
        model,
        lambda config, initializer: bert_util.BertEncoder(config, initializer, layers),
        method="hidden_states",
    )


def extract(model, texts, layers, arguments):
    """Writes --output_file."""
    scorer = load_encoder(model, layers)
    bytes_of_text = 4 * model.size.hidden_size * (1 if arguments.pooling else len(layers) * arguments.max_seq_length)
    chunk = max(arguments.batch_size, min(LINES_AT_A_TIME, BYTES_AT_A_TIME // bytes_of_text))
    num_truncated = num_empty = num_unknown = num_pieces = 0
    with progress_bar(total=len(texts), unit="line") as bar, open_output(arguments, len(texts), layers, model) as write:
        for first in range(0, len(texts), chunk):
            features, truncated = batches.encode(
                texts[first : first + chunk], model.tokenizer, arguments.max_seq_length
            )
            num_truncated += truncated
            num_empty += np.count_nonzero(features["input_mask"].sum(axis=1) <= 2)
            num_unknown += np.count_nonzero(features["input_ids"] == model.vocab[UNKNOWN])
            num_pieces += np.count_nonzero(features["input_mask"])
            results = {}
            for row, vectors in vectors_of(features, scorer, min(arguments.batch_size, len(texts)), arguments):
                results[row] = vectors
                bar.update()
            write(first, features["input_ids"], [results[row] for row in range(len(results))])
    print(f"{len(texts)} lines in {arguments.output_file}")
    lines = (text for pair in texts for text in pair if text)
    report_unknown(arguments.model_load_dir, num_unknown, num_pieces, lines, model.vocab, model.do_lower_case)
    if num_truncated:
        print(f"Notice: {num_truncated} of {len(texts)} lines are cut to --max_seq_length={arguments.max_seq_length}.")
    if num_empty:
        print(f"Notice: {num_empty} of {len(texts)} lines have no visible character: [CLS] and [SEP] stand for them.")


def vectors_of(features, scorer, batch_size, arguments):
    """Yields (row, vectors) of the inputs `features`, in any order: [layers, S, H] of tokens, or pooled [H], float32.

    Raises RunError if the model gives NaN or infinity.
    """
    lengths = features["input_mask"].sum(axis=1)
    for row, outputs in batches.score(scorer, features, batch_size):
        vectors = [output[: lengths[row]] for output in outputs]
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise RunError(f"{arguments.model_load_dir}: the model gives NaN or infinity: it is damaged")
        yield row, pool(vectors[0], arguments) if arguments.pooling else np.stack(vectors)


def pool(vectors, arguments):
    """One vector of a text, float32 [H], from those of its tokens, [S, H]."""
    pooled = vectors[0] if arguments.pooling == "cls" else vectors.mean(axis=0, dtype=np.float64)
    if arguments.normalize:
        pooled = pooled / np.linalg.norm(pooled)
    return pooled.astype(np.float32)


@contextlib.contextmanager
def open_output(arguments, num_lines, layers, model):
    """Yields a function that writes a chunk: (index of its first line, ids [N, S], a list of the vectors of each)."""
    with atomic_file(arguments.output_file) as file:
        if arguments.pooling:
            header = {"descr": "<f4", "fortran_order": False, "shape": (num_lines, model.size.hidden_size)}
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda first, input_ids, results: file.write(np.stack(results).astype("<f4").tobytes())
        else:
            pieces = {index: piece for piece, index in model.vocab.items()}
            yield lambda first, input_ids, results: file.writelines(
                json_line(first + row, [pieces[index] for index in ids[: vectors.shape[1]]], vectors, layers)
                for row, (ids, vectors) in enumerate(zip(input_ids.tolist(), results, strict=True))
            )


def json_line(index, pieces, vectors, layers):
    """The line, as bytes, for the pieces of a text and their vectors in each layer, [layers, S, H]."""
    values = np.round(vectors.astype(np.float64), 6).tolist()
    features = [
        {
            "token": piece,
            "layers": [
                {"index": layer, "values": of_layer[place]} for layer, of_layer in zip(layers, values, strict=True)
            ],
        }
        for place, piece in enumerate(pieces)
    ]
    return json.dumps({"linex_index": index, "features": features}).encode() + b"\n"


if __name__ == "__main__":
    run_script(main)
