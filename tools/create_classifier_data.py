"""Makes OFRecord parts for run_classifier.py from labelled sentences: a GLUE file, or any TSV or CSV file.

The records and their order are those of google-research/bert's run_classifier.py.
"""

import suite  # noqa: F401

# isort: split

import random

import numpy as np

from records import description, part_files
from records.part_files import add_output_flags, check_output_dir, check_part_num
from snapshots.model_files import read_vocab_bytes
from system.command_line import ArgumentParser, add_bool, add_number, positive_int
from system.errors import UserError
from system.progress import print_warning, progress_bar
from text import classification
from text.tokenization import UNKNOWN, Tokenizer, check_case, read_vocab, report_unknown
from util import run_script

# [CLS], two [SEP], and one piece of each sentence.
SHORTEST_RECORD = 5


def main():
    arguments = parse_arguments()
    check_output_dir(arguments)
    vocab = read_vocab(arguments.vocab_file)
    tokenizer = Tokenizer(vocab, arguments.do_lower_case)
    examples, warnings = classification.read_examples(arguments)
    values, labels = label_values(examples, arguments)
    check_part_num(len(examples), arguments)
    check_case(arguments.vocab_file, vocab, arguments.do_lower_case)
    for warning in warnings:
        print_warning(warning)
    pieces = tokenize(examples, tokenizer, arguments)
    if arguments.shuffle:
        order = list(range(len(examples)))
        random.Random(arguments.random_seed).shuffle(order)
        pieces, values = [pieces[index] for index in order], values[order]
    described = describe(examples, vocab, arguments)
    num_truncated = write_data_set(pieces, values, labels, vocab, described, arguments)
    report(examples, values, labels, num_truncated, arguments)
    all_ids = np.concatenate([ids for pair in pieces for ids in pair])
    unknown = np.count_nonzero(all_ids == vocab[UNKNOWN])
    texts = texts_of(examples)
    report_unknown(arguments.vocab_file, unknown, len(all_ids), texts, vocab, arguments.do_lower_case)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, metavar="FILE", help="TSV or CSV, one example per line")
    add_output_flags(files)

    classification.add_form_flags(parser)

    records = parser.add_argument_group("records")
    add_bool(records, "--regression", help="labels are scores to predict as numbers, as in sts-b")
    records.add_argument(
        "--labels_file",
        metavar="TXT",
        help="labels.txt of the training records or of a model, for records to evaluate or predict (default: the "
        "sorted labels of input_file)",
    )
    add_number(records, "--max_seq_length", positive_int, 128, "length of a record, in pieces")
    add_bool(records, "--do_lower_case", True, "lower-case the text and strip accents, for uncased models")
    add_bool(records, "--shuffle", False, "shuffle the lines, for training on a sorted file")
    add_number(records, "--random_seed", int, 12345, "seed of --shuffle")
    arguments = parser.parse_args()
    classification.check_form_flags(parser, arguments)
    if arguments.task_name and classification.TASKS[arguments.task_name].is_regression:
        arguments.regression = True
    if arguments.regression and arguments.labels_file:
        parser.error("--labels_file: scores have no list of labels")
    if arguments.max_seq_length < SHORTEST_RECORD:
        parser.error(f"--max_seq_length={arguments.max_seq_length} is too small; give at least {SHORTEST_RECORD}")
    return arguments


def label_values(examples, arguments):
    """Returns the values of label_ids, float32 or int32 [N, 1], and the list of labels or None.

    Without labels in the file the values are 0, as in google-research/bert. Raises UserError for invalid labels.
    """
    path = arguments.input_file
    given = classification.read_labels(arguments.labels_file) if arguments.labels_file else None
    if examples[0].label is None:
        dtype = np.float32 if arguments.regression else np.int32
        return np.zeros((len(examples), 1), dtype), given
    if arguments.regression:
        return classification.scores_of(path, examples)[:, np.newaxis], None
    labels = given or classification.find_labels(path, examples)
    return classification.label_ids_of(path, examples, labels, arguments.labels_file)[:, np.newaxis], labels


def tokenize(examples, tokenizer, arguments):
    """Returns the piece ids of both sentences of each example: a list of pairs of int32 arrays.

    Raises UserError for a sentence without pieces.
    """
    pieces = []
    for example in progress_bar(examples, desc="tokenising", unit="line"):
        texts = (example.text_a, example.text_b)
        pair = tuple(np.frombuffer(tokenizer.encode(text or ""), np.int32) for text in texts)
        if any(text and not len(ids) for text, ids in zip(texts, pair, strict=True)):
            raise UserError(
                f"{arguments.input_file}: line {example.line}: the sentence has no visible character; remove the line"
            )
        pieces.append(pair)
    return pieces


def texts_of(examples):
    """Yields the sentences of all examples."""
    for example in examples:
        yield from filter(None, (example.text_a, example.text_b))


def describe(examples, vocab, arguments):
    """Returns (description of the records, bytes of the vocabulary)."""
    vocab_data = read_vocab_bytes(arguments.vocab_file)
    named = {"task_name": arguments.task_name} if arguments.task_name else {}
    described = description.describe(
        description.CLASSIFICATION,
        vocab,
        vocab_data,
        arguments.do_lower_case,
        arguments.max_seq_length,
        is_regression=arguments.regression,
        has_labels=examples[0].label is not None,
        is_shuffled=arguments.shuffle,
        **named,
    )
    return described, vocab_data


def write_data_set(pieces, values, labels, vocab, described, arguments):
    """Writes the parts and the description from describe(). Returns the number of examples that were truncated."""
    num_truncated = 0

    def make_features(first, end):
        nonlocal num_truncated
        features, truncated = classification.input_arrays(pieces[first:end], vocab, arguments.max_seq_length)
        num_truncated += truncated
        features["label_ids"] = values[first:end]
        features["is_real_example"] = np.ones((end - first, 1), np.int32)
        return features

    part_files.write_data_set(arguments, *described, len(pieces), make_features, labels)
    return num_truncated


def report(examples, values, labels, num_truncated, arguments):
    """Prints a summary of the records, and notices."""
    print(
        f"{len(examples)} records of length {arguments.max_seq_length} in {arguments.output_dir}, "
        f"--data_part_num={arguments.part_num}"
    )
    if examples[0].label is None:
        print("without labels: for prediction only")
    elif labels is None:
        print(f"scores from {values.min():g} to {values.max():g}")
    else:
        counts = np.bincount(values[:, 0], minlength=len(labels))
        counted = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True)]
        print(f"labels: {classification.describe_labels(counted)}")
        similar = {label.casefold() for label in labels}
        if len(similar) < len(labels):
            print("Notice: some labels differ only in upper and lower case.")
    if num_truncated:
        print(
            f"Notice: {num_truncated} of {len(examples)} examples are truncated to "
            f"--max_seq_length={arguments.max_seq_length}."
        )


if __name__ == "__main__":
    run_script(main)
