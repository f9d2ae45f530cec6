"""Makes OFRecord parts for fine-tuning or prediction of a SQuAD v1.1 or v2.0 JSON file.

The records are, window for window and in the same order, those of google-research/bert's run_squad.py.
"""

import suite  # noqa: F401

# isort: split

import os
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np

from records import description, ofrecord
from snapshots.model_files import read_vocab_bytes
from system.command_line import ArgumentParser, add_bool, parse_bool, positive_int
from system.errors import UserError
from system.output_files import atomic_folder, check_replaceable
from system.progress import print_warning, progress_bar
from text import squad_file, squad_windows
from text.tokenization import UNKNOWN, Tokenizer, check_case, count_lost_characters, read_vocab, report_unknown
from util import run_script

# So many of the questions left out are named.
NAMED_QUESTIONS = 5
# Records are made and written so many at a time.
BATCH_SIZE = 256


class Example(NamedTuple):
    """A question ready to be cut into windows; `answer` is as squad_data.find_answer gives it, None for prediction."""

    query_ids: np.ndarray
    document_ids: np.ndarray
    answer: tuple[int, int] | None


def main():
    arguments = parse_arguments()
    squad_windows.check_lengths(arguments.max_seq_length, arguments.max_query_length)
    if not is_empty_folder(arguments.output_dir):
        check_replaceable(arguments.output_dir, arguments.overwrite, description.FILE)
    vocab = read_vocab(arguments.vocab_file)
    tokenizer = Tokenizer(vocab, arguments.do_lower_case)
    _, paragraphs = squad_file.read_paragraphs(arguments.input_file)
    if not arguments.is_training:
        squad_file.check_unique_ids(paragraphs, arguments.input_file)

    examples, unknown, warnings = make_examples(paragraphs, tokenizer, arguments)
    if arguments.shuffle:
        random.Random(arguments.random_seed).shuffle(examples)

    windows = [(example, window) for example in examples for window in windows_of(example, arguments)]
    if not windows:
        raise UserError(f"{arguments.input_file}: makes no record: it has no question about a context with text")
    if len(windows) < arguments.part_num:
        raise UserError(
            f"--part_num={arguments.part_num}: {arguments.input_file} makes only {len(windows)} records, and every "
            "part needs one; give a smaller --part_num"
        )
    check_case(arguments.vocab_file, vocab, arguments.do_lower_case)
    for warning in warnings:
        print_warning(warning)
    write_parts(windows, vocab, describe(paragraphs, vocab, arguments), arguments)
    print(
        f"{len(examples)} questions, {len(windows)} records of length {arguments.max_seq_length} in "
        f"{arguments.output_dir}, --data_part_num={arguments.part_num}"
    )
    report_unknown(
        arguments.vocab_file,
        *unknown,
        lambda: count_lost_characters(texts_of(paragraphs), vocab, arguments.do_lower_case),
    )


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, metavar="JSON", help="SQuAD questions, v1.1 or v2.0")
    files.add_argument(
        "--output_dir", required=True, metavar="DIR", help="folder for part-0, part-1, ..., new or empty"
    )
    add_bool(files, "--overwrite", help="replace records that this tool has made in output_dir")
    files.add_argument("--vocab_file", required=True, metavar="TXT", help="vocabulary of the model, one piece a line")
    files.add_argument("--part_num", type=positive_int, default=1, metavar="N", help="number of parts")

    records = parser.add_argument_group("records")
    records.add_argument(
        "--is_training",
        type=parse_bool,
        required=True,
        metavar="BOOL",
        help="True: records with answer positions, for run_squad.py; False: with unique_ids, for run_squad_predict.py",
    )
    records.add_argument(
        "--max_seq_length", type=positive_int, default=384, metavar="N", help="length of a record, in pieces"
    )
    records.add_argument(
        "--doc_stride", type=positive_int, default=128, metavar="N", help="pieces from one window to the next"
    )
    records.add_argument(
        "--max_query_length", type=positive_int, default=64, metavar="N", help="longer questions are cut"
    )
    add_bool(records, "--do_lower_case", True, "lower case and no accents, for uncased models")
    add_bool(
        records,
        "--version_2_with_negative",
        False,
        "a question marked is_impossible is answered by [CLS] even if it has an answer, as by run_squad.py",
    )
    add_bool(records, "--shuffle", False, "shuffle the questions as run_squad.py does (only with --is_training=True)")
    records.add_argument("--random_seed", type=int, default=12345, metavar="N", help="seed of --shuffle")
    arguments = parser.parse_args()
    if arguments.shuffle and not arguments.is_training:
        parser.error("--shuffle: only training records can be shuffled; predictions need the order of the questions")
    return arguments


def is_empty_folder(path):
    """Whether there is a folder at `path` with nothing in it."""
    return os.path.isdir(path) and not os.listdir(path)


def make_examples(paragraphs, tokenizer, arguments):
    """Tokenises everything.

    Returns (list of Example, (how many pieces are [UNK], of how many), what to warn of: questions that are not used as
    they stand). Raises UserError if no question can be used.
    """
    vocab = tokenizer.vocab
    examples = []
    left_out, empty = [], []
    num_with_several_answers = num_unknown = num_pieces = 0
    for paragraph in progress_bar(paragraphs, desc="tokenising", unit="context"):
        document = squad_windows.tokenize_document(paragraph.context, tokenizer)
        document_ids = np.array([vocab[piece] for piece in document.pieces], np.int32)
        num_unknown += np.count_nonzero(document_ids == vocab[UNKNOWN])
        num_pieces += len(document_ids)
        for question in paragraph.questions:
            answer = None
            if arguments.is_training:
                try:
                    answer = squad_windows.find_answer(
                        question, document, paragraph.context, tokenizer, arguments.version_2_with_negative
                    )
                except squad_windows.AnswerNotFound:
                    left_out.append(question.id)
                    continue
                if answer is not None:
                    num_with_several_answers += len(question.entry["answers"]) > 1
                    if not question.entry["answers"][0]["text"].strip():
                        empty.append(question.id)
            query = squad_windows.tokenize_question(question.text, tokenizer, arguments.max_query_length)
            query_ids = np.array([vocab[piece] for piece in query], np.int32)
            num_unknown += np.count_nonzero(query_ids == vocab[UNKNOWN])
            num_pieces += len(query_ids)
            examples.append(Example(query_ids, document_ids, answer))
    if left_out and not examples:
        raise UserError(
            f"{arguments.input_file}: makes no record: of none of its {len(left_out)} questions the answer is where "
            f"answer_start says: {some_of(left_out)}"
        )
    warnings = []
    if num_with_several_answers:
        warnings.append(
            f"{num_with_several_answers} of {len(examples)} questions have several answers: the first of each is used"
        )
    if empty:
        warnings.append(
            f"{len(empty)} of {len(examples)} questions have an answer without text, and are trained on some word, or "
            f"the whole context, as by run_squad.py: {some_of(empty)}; where there is no answer, leave the question "
            "out, or say is_impossible and give --version_2_with_negative"
        )
    if left_out:
        warnings.append(
            f"{len(left_out)} of {len(examples) + len(left_out)} questions left out, whose answer is not where "
            f"answer_start says: {some_of(left_out)}"
        )
    return examples, (num_unknown, num_pieces), warnings


def some_of(ids):
    """The first NAMED_QUESTIONS of the ids, for a message."""
    return ", ".join(ids[:NAMED_QUESTIONS]) + (", ..." if len(ids) > NAMED_QUESTIONS else "")


def texts_of(paragraphs):
    """Yields the contexts and questions."""
    for paragraph in paragraphs:
        yield paragraph.context
        yield from (question.text for question in paragraph.questions)


def windows_of(example, arguments):
    """The windows over an example's document that fit beside its question."""
    max_length = arguments.max_seq_length - len(example.query_ids) - squad_windows.SPECIAL_PIECES
    return squad_windows.make_windows(len(example.document_ids), max_length, arguments.doc_stride)


def describe(paragraphs, vocab, arguments):
    """(the description of the records, the bytes of the vocabulary)."""
    vocab_data = read_vocab_bytes(arguments.vocab_file)
    described = description.describe(
        description.SQUAD_TRAINING if arguments.is_training else description.SQUAD_PREDICTION,
        vocab,
        vocab_data,
        arguments.do_lower_case,
        arguments.max_seq_length,
        doc_stride=arguments.doc_stride,
        max_query_length=arguments.max_query_length,
        questions_sha256=description.questions_checksum(paragraphs),
    )
    return described, vocab_data


def write_parts(windows, vocab, described, arguments):
    """Writes the records of `windows`, (Example, Window) each, to part-0 ...: contiguous blocks of near equal size.

    `described` is what describe() gives; it goes into the folder as well.
    """
    with (
        atomic_folder(Path(arguments.output_dir).resolve()) as folder,
        progress_bar(total=len(windows), desc="writing", unit="record") as progress,
    ):
        description.write(folder, *described)
        for part in range(arguments.part_num):
            begin, end = (number * len(windows) // arguments.part_num for number in (part, part + 1))
            with ofrecord.open_writer(folder / f"part-{part}") as write:
                for first in range(begin, end, BATCH_SIZE):
                    batch = windows[first : min(first + BATCH_SIZE, end)]
                    for record in ofrecord.serialize_batch(make_features(batch, first, vocab, arguments)):
                        write(record)
                    progress.update(len(batch))


def make_features(windows, first, vocab, arguments):
    """The features of consecutive windows, the first of which is number `first` of all: name -> int32 [N, length]."""
    inputs = [(example.query_ids, example.document_ids, window) for example, window in windows]
    features = squad_windows.input_arrays(inputs, vocab, arguments.max_seq_length)
    if arguments.is_training:
        positions = np.array(
            [
                squad_windows.answer_positions(example.answer, window, len(example.query_ids))
                for example, window in windows
            ],
            np.int32,
        )
        features["start_positions"], features["end_positions"] = positions[:, :1], positions[:, 1:]
    else:
        unique_ids = squad_windows.FIRST_UNIQUE_ID + np.arange(first, first + len(windows), dtype=np.int32)
        features["unique_ids"] = unique_ids[:, np.newaxis]
    return features


if __name__ == "__main__":
    run_script(main)
