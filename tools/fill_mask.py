"""Predicts masked words, next sentences and the likelihood of sentences with a pre-trained model.

    python tools/fill_mask.py --model_load_dir=model "the [MASK] is old."
    python tools/fill_mask.py --model_load_dir=model --next_sentence "the house is old. ||| it was built in 1850."
    python tools/fill_mask.py --model_load_dir=model --score "the house is old."

Texts come from the command line, or from stdin, one a line.
"""

import suite  # noqa: F401

# isort: split

import functools
import itertools
import json
import math
from typing import NamedTuple

import numpy as np

from inference import batches, loaded
from system.command_line import ArgumentParser, add_number, positive_int
from system.errors import RunError, UserError
from system.lazy import LazyModule
from text.classification import input_arrays
from text.tokenization import MASK
from util import run_script

pretrain = LazyModule("pretrain")

# Sequences in a batch, and about as many in memory.
BATCH_SIZE = 32
ROWS_AT_A_TIME = 1024


class Text(NamedTuple):
    """A text or a pair of texts, and its ids. `place` is its origin, for messages."""

    line: str
    place: str
    ids: tuple[np.ndarray, np.ndarray]


def main():
    arguments = parse_arguments()
    heads = ("pooler", "next_sentence") if arguments.next_sentence else ("masked_lm",)
    model = loaded.read(arguments, heads, required=(MASK,))
    texts = [encode(line, place, model) for line, place in read_lines(arguments)]
    check(texts, arguments, model)
    batches.warn_of_unknown_pieces([ids for text in texts for ids in text.ids], [text.line for text in texts], model)
    answer = next_sentence if arguments.next_sentence else score if arguments.score else fill
    return loaded.run_with_engine(functools.partial(answer, texts, model, arguments), model)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text, or two with ' ||| ' between them")
    work = parser.add_mutually_exclusive_group()
    add_number(work, "--top_k", positive_int, 5, "words for each [MASK]")
    # They take no value: a text may follow.
    work.add_argument(
        "--next_sentence",
        action="store_true",
        help="tell how probable it is that the second text of a pair follows the first",
    )
    work.add_argument(
        "--score",
        action="store_true",
        help="tell the pseudo-log-likelihood: the sum, over all pieces, of the logarithm of the probability that the "
        "model gives the piece when it is masked",
    )
    parser.add_argument("--json", action="store_true", help="write a JSON object a line")
    loaded.add_model_flags(parser)
    return parser.parse_args()


def read_lines(arguments):
    """(line, its place) of each text. Raises UserError if there is none, or one is empty."""
    if arguments.texts:
        lines = [(text, f"text {number}") for number, text in enumerate(arguments.texts, 1)]
    else:
        lines = batches.read_stdin_lines()
    for line, place in lines:
        batches.check_is_text(line, place)
    return lines


def encode(line, place, model):
    """Returns a Text. Raises UserError if it is blank, or longer than the model's positions."""
    first, second = batches.split_pair(line)
    ids = tuple(ids_with_masks(text, model) for text in (first, second or ""))
    if not len(ids[0]) or (second is not None and not len(ids[1])):
        raise UserError(f"{place}: has no visible character; give a text")
    length = sum(map(len, ids)) + (2 if second is None else 3)
    if length > model.size.max_position_embeddings:
        raise UserError(
            f"{place}: has {length} pieces with [CLS] and [SEP], the model has {model.size.max_position_embeddings} "
            "positions; give a shorter text"
        )
    return Text(line.strip(), place, ids)


def ids_with_masks(text, model):
    """The ids of a text, int32 [S], in which [MASK] is one piece."""
    mask = np.array([model.vocab[MASK]], np.int32)
    parts = [batches.ids_of(part, model.tokenizer) for part in text.split(MASK)]
    return np.concatenate([ids for part in parts for ids in (mask, part)][1:])


def check(texts, arguments, model):
    """Raises UserError if a text lacks what the flags need."""
    for text in texts:
        masks = sum(np.count_nonzero(ids == model.vocab[MASK]) for ids in text.ids)
        if arguments.next_sentence and not len(text.ids[1]):
            raise UserError(f"{text.place}: is one text; --next_sentence needs two with ' ||| ' between them")
        if arguments.score and masks:
            raise UserError(f"{text.place}: has a {MASK}, which --score cannot give a probability; leave it out")
        if not arguments.next_sentence and not arguments.score and not masks:
            raise UserError(f"{text.place}: has no {MASK}; write {MASK} in place of the word to find")


def inputs_of(texts, model):
    """The model's inputs, name -> int32 [N, S]."""
    features, _ = input_arrays([text.ids for text in texts], model.vocab, model.size.max_position_embeddings)
    return features


def load_masked_lm(model):
    """The Scorer of the masked language model: for positions [B, P] it gives logits [B, P, V]."""
    inputs = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    return loaded.load(model, lambda *arguments: pretrain.BertForMaskedLM(*arguments), inputs)


def log_probabilities(logits, model):
    """Logits [..., V] -> logarithms of probabilities, float64. Raises RunError if one is not finite."""
    # On a GPU there are more columns, for aligned memory.
    logits = logits[..., : model.size.vocab_size].astype(np.float64)
    if not np.isfinite(logits).all():
        raise RunError(f"{model.run.model_load_dir}: the model gives NaN or infinity: it is damaged")
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def tell(results, arguments, in_words):
    """Prints each of the `results`, dicts: as JSON, or as in_words(result)."""
    for result in results:
        print(json.dumps(result, ensure_ascii=False) if arguments.json else in_words(result), flush=True)


def fill(texts, model, arguments):
    """Prints the most probable pieces for each [MASK] of each text."""
    features = inputs_of(texts, model)
    is_mask = features["input_ids"] == model.vocab[MASK]
    most = is_mask.sum(axis=1).max()
    # Of texts with fewer, the other positions are not looked at.
    features["masked_lm_positions"] = np.argsort(~is_mask, axis=1, kind="stable")[:, :most].astype(np.int32)
    features["masked_lm_positions"][np.arange(most) >= is_mask.sum(axis=1, keepdims=True)] = 0
    scorer = load_masked_lm(model)
    pieces = {index: piece for piece, index in model.vocab.items()}
    found = {}
    for row, (logits,) in batches.score(scorer, features, min(BATCH_SIZE, len(texts))):
        of_masks = log_probabilities(logits, model)[: is_mask[row].sum()]
        found[row] = [best_pieces(values, pieces, arguments.top_k) for values in of_masks]
    results = [{"text": text.line, "masks": found[row]} for row, text in enumerate(texts)]
    tell(results, arguments, filled_in_words)


def best_pieces(values, pieces, top_k):
    """The `top_k` most probable pieces of a vocabulary, as dicts, from logarithms of probabilities, [V]."""
    # The model may have embeddings that no piece belongs to.
    order = (index for index in np.argsort(-values, kind="stable").tolist() if index in pieces)
    best = itertools.islice(order, top_k)
    return [{"piece": pieces[index], "probability": math.exp(values[index])} for index in best]


def filled_in_words(result):
    """The lines for a result of fill()."""
    lines = [result["text"]]
    for number, best in enumerate(result["masks"], 1):
        lines += [f"{MASK} {number}:"] if len(result["masks"]) > 1 else []
        lines += [f"  {word['probability']:.4f}  {word['piece']}" for word in best]
    return "\n".join(lines)


def next_sentence(texts, model, arguments):
    """Prints, for each pair, how probable it is that the second text follows the first."""
    scorer = loaded.load(model, lambda *arguments: pretrain.BertForNextSentence(*arguments))
    found = {}
    for row, (logits,) in batches.score(scorer, inputs_of(texts, model), min(BATCH_SIZE, len(texts))):
        found[row] = math.exp(log_probabilities(logits, model)[0])
    results = [{"text": text.line, "probability": found[row]} for row, text in enumerate(texts)]
    tell(results, arguments, lambda result: f"{result['probability']:.4f}  {result['text']}")


def score(texts, model, arguments):
    """Prints the pseudo-log-likelihood of each text (Salazar et al. 2020, https://arxiv.org/abs/1910.14659)."""
    scorer = load_masked_lm(model)
    num_rows = [sum(map(len, text.ids)) for text in texts]
    batch_size = min(BATCH_SIZE, sum(num_rows))
    for first, end in groups_of(num_rows):
        features, wanted, text_of_row = masked_one_by_one(texts[first:end], model)
        sums = np.zeros(end - first)
        for row, (logits,) in batches.score(scorer, features, batch_size):
            sums[text_of_row[row]] += log_probabilities(logits, model)[0, wanted[row]]
        results = [
            {"text": text.line, "score": value, "pieces": count}
            for text, value, count in zip(texts[first:end], sums.tolist(), num_rows[first:end], strict=True)
        ]
        tell(results, arguments, lambda result: f"{result['score']:.4f}  {result['pieces']} pieces  {result['text']}")


def groups_of(num_rows):
    """(first, end) of consecutive texts that have together about ROWS_AT_A_TIME rows, or one that has more."""
    first = rows = 0
    for index, count in enumerate(num_rows):
        if rows and rows + count > ROWS_AT_A_TIME:
            yield first, index
            first, rows = index, 0
        rows += count
    yield first, len(num_rows)


def masked_one_by_one(texts, model):
    """A row for each piece, which is masked in it: (inputs, the pieces' ids [N], the indexes of their texts [N])."""
    features = inputs_of(texts, model)
    lengths = features["input_mask"].sum(axis=1)
    is_piece = np.arange(features["input_ids"].shape[1]) < lengths[:, np.newaxis]
    # All but [CLS] and [SEP].
    is_piece[:, 0] = False
    is_piece[np.arange(len(texts)), lengths - 1] = False
    for row, text in enumerate(texts):
        is_piece[row, len(text.ids[0]) + 1] = False
    text_of_row, positions = np.nonzero(is_piece)
    features = {name: values[text_of_row] for name, values in features.items()}
    rows = np.arange(len(positions))
    wanted = features["input_ids"][rows, positions]
    features["input_ids"][rows, positions] = model.vocab[MASK]
    features["masked_lm_positions"] = positions[:, np.newaxis].astype(np.int32)
    return features, wanted, text_of_row


if __name__ == "__main__":
    run_script(main)
