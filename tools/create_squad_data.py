"""Makes OFRecord parts for fine-tuning or prediction from a SQuAD v1.1 or v2.0 JSON file.

The records and their order are those of google-research/bert's run_squad.py.
"""

import suite  # noqa: F401

# isort: split

import random
from typing import NamedTuple

import numpy as np

from records import description, part_files
from records.part_files import add_output_flags, check_output_dir, check_part_num
from snapshots.model_files import read_vocab_bytes
from system.command_line import ArgumentParser, add_bool, add_number, parse_bool
from system.errors import UserError, some_of
from system.progress import print_warning, progress_bar
from text import squad_file, squad_windows
from text.tokenization import UNKNOWN, Tokenizer, check_case, read_vocab, report_unknown
from util import run_script


class Example(NamedTuple):
    """A tokenised question with its document. `answer`: from squad_windows.find_answer, or None for prediction."""

    query_ids: np.ndarray
    document_ids: np.ndarray
    answer: tuple[int, int] | None


def main():
    arguments = parse_arguments()
    squad_windows.check_lengths(arguments.max_seq_length, arguments.max_query_length)
    check_output_dir(arguments)
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
        raise UserError(f"{arguments.input_file}: makes no record: no question has a context with text")
    check_part_num(len(windows), arguments)
    check_case(arguments.vocab_file, vocab, arguments.do_lower_case)
    for warning in warnings:
        print_warning(warning)

    def features_of(first, end):
        return make_features(windows[first:end], first, vocab, arguments)

    part_files.write_data_set(arguments, *describe(paragraphs, vocab, arguments), len(windows), features_of)
    print(
        f"{len(examples)} questions, {len(windows)} records of length {arguments.max_seq_length} in "
        f"{arguments.output_dir}, --data_part_num={arguments.part_num}"
    )
    report_unknown(arguments.vocab_file, *unknown, texts_of(paragraphs), vocab, arguments.do_lower_case)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, metavar="JSON", help="SQuAD questions, v1.1 or v2.0")
    add_output_flags(files)

    records = parser.add_argument_group("records")
    records.add_argument(
        "--is_training",
        type=parse_bool,
        required=True,
        metavar="BOOL",
        help="True: records with answer positions, for run_squad.py; False: with unique_ids, for run_squad_predict.py",
    )
    squad_windows.add_window_flags(records)
    add_bool(
        records,
        "--version_2_with_negative",
        False,
        "a question marked is_impossible has the answer [CLS], even if the file has an answer, as in run_squad.py",
    )
    add_bool(records, "--shuffle", False, "shuffle the questions as run_squad.py does (only with --is_training=True)")
    add_number(records, "--random_seed", int, 12345, "seed of --shuffle")
    arguments = parser.parse_args()
    if arguments.shuffle and not arguments.is_training:
        parser.error("--shuffle: only training records can be shuffled; predictions need the order of the questions")
    return arguments


def make_examples(paragraphs, tokenizer, arguments):
    """Tokenises questions and contexts and finds the answers.

    Returns (list of Example, (number of [UNK], number of pieces), list of warnings about questions that are skipped or
    altered). Raises UserError if no question can be used.
    """
    vocab = tokenizer.vocab
    examples = []
    skipped, empty, elsewhere = [], [], []
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
                    skipped.append(question.id)
                    continue
                if answer is not None:
                    num_with_several_answers += len(question.entry["answers"]) > 1
                    if not question.entry["answers"][0]["text"].strip():
                        empty.append(question.id)
                    elif squad_windows.is_elsewhere(answer, question, document, tokenizer):
                        elsewhere.append(question.id)
            query = tokenizer.tokenize(question.text)[: arguments.max_query_length]
            query_ids = np.array([vocab[piece] for piece in query], np.int32)
            num_unknown += np.count_nonzero(query_ids == vocab[UNKNOWN])
            num_pieces += len(query_ids)
            examples.append(Example(query_ids, document_ids, answer))
    if skipped and not examples:
        raise UserError(
            f"{arguments.input_file}: makes no record: none of its {len(skipped)} questions has its answer at "
            f"answer_start: {some_of(skipped)}"
        )
    warnings = []
    if num_with_several_answers:
        warnings.append(
            f"{num_with_several_answers} of {len(examples)} questions have several answers: the first of each is used"
        )
    if empty:
        warnings.append(
            f"{len(empty)} of {len(examples)} questions have an answer without text and train on some word or the "
            f"whole context, as in run_squad.py: {some_of(empty)}; remove questions without an answer, or mark them "
            "is_impossible and give --version_2_with_negative"
        )
    if elsewhere:
        warnings.append(
            f"{len(elsewhere)} of {len(examples)} questions train on an earlier occurrence of their answer in text "
            f"without spaces, as in run_squad.py: {some_of(elsewhere)}; put spaces between characters of Chinese text"
        )
    if skipped:
        warnings.append(
            f"skipped {len(skipped)} of {len(examples) + len(skipped)} questions whose answer is not at answer_start: "
            f"{some_of(skipped)}"
        )
    return examples, (num_unknown, num_pieces), warnings


def texts_of(paragraphs):
    """Yields all contexts and questions."""
    for paragraph in paragraphs:
        yield paragraph.context
        yield from (question.text for question in paragraph.questions)


def windows_of(example, arguments):
    """Returns the windows over an example's document that fit beside its question."""
    max_length = arguments.max_seq_length - len(example.query_ids) - squad_windows.SPECIAL_PIECES
    return squad_windows.make_windows(len(example.document_ids), max_length, arguments.doc_stride)


def describe(paragraphs, vocab, arguments):
    """Returns (description of the records, bytes of the vocabulary)."""
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


def make_features(windows, first, vocab, arguments):
    """Returns the features, name -> int32 [N, length], of `windows`, a list of (Example, Window) in a row.

    `first`: index of windows[0] in all.
    """
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
