"""Makes OFRecord parts for run_classifier.py of sentences with labels: a file of GLUE, or any TSV or CSV.

The records are, line for line and in the same order, those of google-research/bert's run_classifier.py.
"""

import suite  # noqa: F401

# isort: split

import os
import random
from pathlib import Path

import numpy as np

from records import description, ofrecord
from snapshots.model_files import read_vocab_bytes
from system.command_line import ArgumentParser, add_bool, positive_int
from system.errors import UserError
from system.output_files import atomic_folder, check_replaceable
from system.progress import print_warning, progress_bar
from text import classification
from text.tokenization import UNKNOWN, Tokenizer, check_case, count_lost_characters, read_vocab, report_unknown
from util import run_script

# Records are made and written so many at a time.
BATCH_SIZE = 256
# [CLS], two times [SEP], and a piece of each sentence.
SHORTEST_RECORD = 5


def main():
    arguments = parse_arguments()
    if not (os.path.isdir(arguments.output_dir) and not os.listdir(arguments.output_dir)):
        check_replaceable(arguments.output_dir, arguments.overwrite, description.FILE)
    vocab = read_vocab(arguments.vocab_file)
    tokenizer = Tokenizer(vocab, arguments.do_lower_case)
    examples, warnings = read_examples(arguments)
    values, labels = label_values(examples, arguments)
    if len(examples) < arguments.part_num:
        raise UserError(
            f"--part_num={arguments.part_num}: {arguments.input_file} makes only {len(examples)} records, and every "
            "part needs one; give a smaller --part_num"
        )
    check_case(arguments.vocab_file, vocab, arguments.do_lower_case)
    for warning in warnings:
        print_warning(warning)
    pieces = tokenize(examples, tokenizer, arguments)
    if arguments.shuffle:
        order = list(range(len(examples)))
        random.Random(arguments.random_seed).shuffle(order)
        pieces, values = [pieces[index] for index in order], values[order]
    described = describe(examples, vocab, arguments)
    cut = write_parts(pieces, values, labels, vocab, described, arguments)
    tell(examples, values, labels, cut, arguments)
    all_ids = np.concatenate([np.array(ids, np.int32) for pair in pieces for ids in pair])
    report_unknown(
        arguments.vocab_file,
        np.count_nonzero(all_ids == vocab[UNKNOWN]),
        len(all_ids),
        lambda: count_lost_characters(texts_of(examples), vocab, arguments.do_lower_case),
    )


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, metavar="FILE", help="sentences, a line each: TSV, or CSV")
    files.add_argument(
        "--output_dir", required=True, metavar="DIR", help="folder for part-0, part-1, ..., new or empty"
    )
    add_bool(files, "--overwrite", help="replace records that this tool has made in output_dir")
    files.add_argument("--vocab_file", required=True, metavar="TXT", help="vocabulary of the model, one piece a line")
    files.add_argument("--part_num", type=positive_int, default=1, metavar="N", help="number of parts")

    form = parser.add_argument_group("form of the file")
    form.add_argument(
        "--task_name",
        type=str.lower,
        choices=classification.TASKS,
        metavar="TASK",
        help=f"task whose metrics run_classifier.py is to tell, and without --text_column whose file of GLUE this is: "
        f"{', '.join(classification.TASKS)}",
    )
    form.add_argument(
        "--text_column", metavar="COLUMN", help="sentence of a file of one's own: name, or number from 1 (default: 1)"
    )
    form.add_argument("--text_b_column", metavar="COLUMN", help="second sentence, for pairs")
    form.add_argument(
        "--label_column",
        metavar="COLUMN",
        help="label (default without --text_column: 2, if there are two; with it: none)",
    )
    add_bool(form, "--header", None, "whether the first line names the columns (default: if a column is given by name)")
    add_bool(form, "--quoted", None, 'whether fields may stand in "..." (default: in files named .csv)')

    records = parser.add_argument_group("records")
    add_bool(records, "--regression", help="the labels are scores to be learnt as numbers, as those of sts-b")
    records.add_argument(
        "--labels_file",
        metavar="TXT",
        help="labels.txt of the training records or of a model, for records to evaluate or predict (default: the "
        "labels of the file, sorted)",
    )
    records.add_argument(
        "--max_seq_length", type=positive_int, default=128, metavar="N", help="length of a record, in pieces"
    )
    add_bool(records, "--do_lower_case", True, "lower case and no accents, for uncased models")
    add_bool(records, "--shuffle", False, "shuffle the lines, for training on a file that is in some order")
    records.add_argument("--random_seed", type=int, default=12345, metavar="N", help="seed of --shuffle")
    arguments = parser.parse_args()
    if arguments.text_column is None:
        for name in ("text_b_column", "label_column"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name} needs --text_column")
        if arguments.task_name and (arguments.header, arguments.quoted) != (None, None):
            parser.error("--header and --quoted are for files of one's own: give --text_column")
    if arguments.task_name and classification.TASKS[arguments.task_name].is_regression:
        arguments.regression = True
    if arguments.regression and arguments.labels_file:
        parser.error("--labels_file: scores have no list of labels")
    if arguments.max_seq_length < SHORTEST_RECORD:
        parser.error(f"--max_seq_length={arguments.max_seq_length} is too small; give at least {SHORTEST_RECORD}")
    return arguments


def read_examples(arguments):
    """(list of Example, list of what to warn of) of --input_file. Raises UserError where it is not as the flags say."""
    if arguments.task_name and arguments.text_column is None:
        return classification.read_task(arguments.input_file, arguments.task_name)
    columns = None
    if arguments.text_column is not None:
        columns = classification.Columns(arguments.text_column, arguments.text_b_column, arguments.label_column)
    return classification.read_own(arguments.input_file, columns, arguments.header, arguments.quoted)


def label_values(examples, arguments):
    """(what label_ids is to hold, float32 or int32 [N, 1]; the list of labels, None where there is none).

    Zeros where the file has no labels, as google-research/bert has them. Raises UserError where labels do not fit.
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
    """The ids of the pieces of both sentences of each example, as two lists. Raises UserError for one without any."""
    pieces = []
    for example in progress_bar(examples, desc="tokenising", unit="line"):
        pair = [tokenizer.tokenize(text) if text else [] for text in (example.text_a, example.text_b)]
        for text, found in zip((example.text_a, example.text_b), pair, strict=True):
            if text and not found:
                raise UserError(
                    f"{arguments.input_file}: line {example.line}: the sentence has no character that can be seen; "
                    "take the line out"
                )
        pieces.append(tuple([tokenizer.vocab[piece] for piece in found] for found in pair))
    return pieces


def texts_of(examples):
    """Yields the sentences."""
    for example in examples:
        yield from filter(None, (example.text_a, example.text_b))


def describe(examples, vocab, arguments):
    """(the description of the records, the bytes of the vocabulary)."""
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
        **named,
    )
    return described, vocab_data


def write_parts(pieces, values, labels, vocab, described, arguments):
    """Writes the records to part-0 ..., contiguous blocks of near equal size; returns how many had to be cut.

    `described` is what describe() gives; it goes into the folder as well.
    """
    cut = 0
    with (
        atomic_folder(Path(arguments.output_dir).resolve()) as folder,
        progress_bar(total=len(pieces), desc="writing", unit="record") as progress,
    ):
        description.write(folder, *described, labels)
        for part in range(arguments.part_num):
            begin, end = (number * len(pieces) // arguments.part_num for number in (part, part + 1))
            with ofrecord.open_writer(folder / f"part-{part}") as write:
                for first in range(begin, end, BATCH_SIZE):
                    batch = slice(first, min(first + BATCH_SIZE, end))
                    features, cut_here = classification.input_arrays(pieces[batch], vocab, arguments.max_seq_length)
                    features["label_ids"] = values[batch]
                    features["is_real_example"] = np.ones((len(pieces[batch]), 1), np.int32)
                    for record in ofrecord.serialize_batch(features):
                        write(record)
                    cut += cut_here
                    progress.update(len(pieces[batch]))
    return cut


def tell(examples, values, labels, cut, arguments):
    """Says what has been made, and what may not be as it was meant."""
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
    if cut:
        print(f"Notice: {cut} of {len(examples)} are cut to --max_seq_length={arguments.max_seq_length}.")


if __name__ == "__main__":
    run_script(main)
