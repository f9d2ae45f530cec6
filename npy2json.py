"""Turns a model's logits (all_results.npy) into predictions.json, like google-research/bert's run_squad.py.

Also writes nbest_predictions.json, and null_odds.json for SQuAD v2.0. Needs neither TensorFlow nor OneFlow.
"""

from system import import_errors  # noqa: F401

# isort: split

import contextlib
import json
import os
import warnings
from pathlib import Path

import numpy as np

from records import description, prediction_file
from snapshots.model_files import read_vocab_bytes
from system.command_line import ArgumentParser, add_bool
from system.errors import UserError
from system.input_files import open_input, read_json, reading
from system.output_files import atomic_file, check_is_no_input
from system.progress import print_warning, progress_bar
from text import squad_answers, squad_file, squad_windows
from text.tokenization import Tokenizer, check_case, read_vocab, vocab_checksum
from util import run_script

LARGEST_DESCRIPTION = 1 << 16  # bytes
OUTPUT_FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json")


def main():
    arguments = parse_arguments()
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir={output_dir}: is a file; give a folder")
    for name in OUTPUT_FILES:
        check_is_no_input(output_dir / name, (arguments.predict_file, arguments.vocab_file, arguments.all_results_file))
    results, described = open_results(arguments.all_results_file)
    settle_window_flags(arguments, described)
    squad_windows.check_lengths(arguments.max_seq_length, arguments.max_query_length)
    check_seq_length(results, arguments)
    vocab = read_vocab(arguments.vocab_file)
    num_missing = check_bert_config(arguments, vocab) if arguments.bert_config_file else 0
    _, paragraphs = squad_file.read_paragraphs(arguments.predict_file)
    squad_file.check_unique_ids(paragraphs, arguments.predict_file)
    check_same_data(described, paragraphs, arguments)

    examples = squad_answers.make_examples(
        progress_bar(paragraphs, desc="tokenising", unit="context"),
        Tokenizer(vocab, arguments.do_lower_case),
        arguments.max_seq_length,
        arguments.doc_stride,
        arguments.max_query_length,
    )
    results = fit_results(results, examples, arguments)
    check_case(arguments.vocab_file, vocab, arguments.do_lower_case)
    if not arguments.version_2_with_negative:
        warn_of_impossible(paragraphs, arguments.predict_file)
    if num_missing:
        print_warning(
            f"{arguments.vocab_file} has {num_missing} pieces fewer than vocab_size in {arguments.bert_config_file}; "
            "if it is not the model's vocabulary, the answers are wrong"
        )
    predictions, n_best, null_odds = squad_answers.answer_questions(
        progress_bar(examples, desc="answering", unit="question"),
        results,
        arguments.do_lower_case,
        arguments.n_best_size,
        arguments.max_answer_length,
        arguments.null_score_diff_threshold if arguments.version_2_with_negative else None,
        arguments.verbose_logging,
    )

    contents = dict(zip(OUTPUT_FILES, (predictions, n_best, null_odds), strict=True))
    if not arguments.version_2_with_negative:
        del contents["null_odds.json"]
    write_files(output_dir, contents)
    print(f"{len(predictions)} answers in {output_dir / 'predictions.json'}")


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("files")
    files.add_argument(
        "--all_results_file", default="all_results.npy", metavar="NPY", help="logits, from run_squad_predict.py"
    )
    files.add_argument("--predict_file", required=True, metavar="JSON", help="SQuAD questions of the records")
    files.add_argument("--vocab_file", required=True, metavar="TXT", help="vocabulary of the model")
    files.add_argument(
        "--bert_config_file", metavar="JSON", help="configuration of the model, to check the other flags against"
    )
    files.add_argument("--output_dir", required=True, metavar="DIR", help="folder for the predictions")

    windows = parser.add_argument_group("how the records were made (as for tools/create_squad_data.py)")
    squad_windows.add_window_flags(windows, infer=True)

    answers = parser.add_argument_group("answers")
    squad_answers.add_answer_flags(answers)
    add_bool(answers, "--verbose_logging", False, "report answers that could not be aligned with the context")

    task = parser.add_argument_group("task (flags of the original script)")
    add_bool(task, "--do_train", False, "must be False: run_squad.py trains")
    add_bool(task, "--do_predict", True, "must be True")
    arguments = parser.parse_args()
    squad_answers.check_answer_flags(parser, arguments)
    if arguments.do_train:
        parser.error("--do_train=True: this script only turns logits into answers; run_squad.py trains")
    if not arguments.do_predict:
        parser.error("--do_predict=False: this script only turns logits into answers, so nothing is left to do")
    return arguments


def check_bert_config(arguments, vocab):
    """Checks the vocabulary and the sequence length against the model's configuration file.

    Returns the number of embeddings without a piece in the vocabulary, usually 0. Raises UserError on a mismatch.
    """
    path = arguments.bert_config_file
    config = read_json(path)
    vocab_size = squad_file.field(config, "vocab_size", int, path)
    max_position_embeddings = squad_file.field(config, "max_position_embeddings", int, path)
    num_pieces = max(vocab.values()) + 1
    if num_pieces > vocab_size:
        raise UserError(
            f"{arguments.vocab_file}: has {num_pieces} pieces, but vocab_size in {path} is {vocab_size}; give the "
            "vocabulary of this model"
        )
    if arguments.max_seq_length > max_position_embeddings:
        raise UserError(
            f"--max_seq_length={arguments.max_seq_length} is more than max_position_embeddings in {path}, "
            f"{max_position_embeddings}; give the length of the records and the configuration of their model"
        )
    return vocab_size - num_pieces


def settle_window_flags(arguments, described):
    """Sets the window flags that were not given: from the description of the records, else to run_squad.py's defaults.

    `described`: the description, or None. Raises UserError if a given flag differs from it.
    """
    if described is None:
        print(
            f"Notice: {arguments.all_results_file} does not say how its records were made: with another --vocab_file, "
            "--doc_stride, --max_query_length or --do_lower_case the answers are wrong."
        )
    for name, default in squad_windows.WINDOW_DEFAULTS.items():
        made, given = (described or {}).get(name), getattr(arguments, name)
        if given is None:
            setattr(arguments, name, default if made is None else made)
        elif made not in (None, given):
            raise UserError(
                f"--{name}={given}, but {arguments.all_results_file} is of records made with {made}; leave the flag out"
            )


def check_same_data(described, paragraphs, arguments):
    """Raises UserError if the records were made from other questions than --predict_file's or another vocabulary."""
    if described is None:
        return
    if described["vocab_sha256"] != vocab_checksum(read_vocab_bytes(arguments.vocab_file)):
        raise UserError(
            f"--vocab_file={arguments.vocab_file}: {arguments.all_results_file} is of records made with another "
            f"vocabulary, of {described['vocab_size']} pieces; give that one"
        )
    if described.get("questions_sha256") not in (None, description.questions_checksum(paragraphs)):
        raise UserError(
            f"--predict_file={arguments.predict_file}: {arguments.all_results_file} is of other questions or contexts, "
            "or of the same in another order; give the file from which the records were made"
        )


def warn_of_impossible(paragraphs, path):
    """Warns of questions marked is_impossible in the file `path`, which get an answer like all others."""
    questions = [question for paragraph in paragraphs for question in paragraph.questions]
    num_impossible = sum(question.entry.get("is_impossible") is True for question in questions)
    if num_impossible:
        print_warning(
            f"{path}: {num_impossible} of {len(questions)} questions are marked is_impossible, but all get an answer; "
            "for SQuAD v2.0 give --version_2_with_negative"
        )


def check_seq_length(results, arguments):
    """Raises UserError unless the results are for windows of --max_seq_length pieces."""
    found_length = results.dtype["start_logits"].shape[0]
    if found_length != arguments.max_seq_length:
        raise UserError(
            f"{arguments.all_results_file}: {len(results)} of {len(results)} results have logits for seq_length "
            f"{found_length}, but --max_seq_length is {arguments.max_seq_length}; give the length of the records"
        )


def open_results(path):
    """Opens all_results.npy. Returns (results, description of their records or None).

    The results are memory-mapped: unique_id int64, start_logits and end_logits float32 [seq_length]. Checks the header
    against the size of the file before allocating anything. Raises UserError if the file is invalid.
    """
    with reading(f"--all_results_file={path}"), open_input(path, "rb") as file:
        shape, dtype = read_npy_header(file, path)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    found_length = dtype["start_logits"].shape[:1] if dtype.names and "start_logits" in dtype.names else ()
    if len(shape) != 1 or not found_length or dtype != prediction_file.result_dtype(*found_length):
        raise UserError(
            f"{path}: expected records of unique_id int64, start_logits and end_logits float32 [seq_length], found an "
            f"array {shape} of {dtype}; make it with run_squad_predict.py"
        )
    end = offset + shape[0] * dtype.itemsize
    if shape[0] < 0 or end > size:
        raise UserError(
            f"{path}: truncated: it has {size} bytes, but {shape[0]} results take {end}; make or copy it again"
        )
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape), read_description(path, end)


def read_description(path, offset):
    """Returns the description of the records at byte `offset` of all_results.npy, or None at the end of the file.

    Raises UserError if the bytes are not a description.
    """
    with open_input(path, "rb") as file:
        file.seek(offset)
        data = file.read(LARGEST_DESCRIPTION)
    if not data:
        return None
    try:
        described = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged: no description of records follows its results; make it again") from None
    return description.check(described, path)


def read_npy_header(file, path):
    """Returns (shape, dtype) of the array in an open .npy file and leaves the file positioned at the data.

    Raises UserError if it is not an .npy file.
    """
    try:
        # NumPy evaluates the header as Python and only warns about odd ones; they are errors here.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version[0]}.{version[1]} of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except OSError:
        raise
    except Exception as error:  # Python's parser raises many kinds of exception on a damaged header.
        raise UserError(f"{path}: not a NumPy file: {error}; make it with run_squad_predict.py") from None
    return shape, dtype


def fit_results(results, examples, arguments):
    """Loads the results, in the order of the windows. Raises UserError unless each window has one finite result."""
    num_windows = sum(len(example.windows) for example in examples)
    path = arguments.all_results_file
    cause = (
        f"they were made from another file than {arguments.predict_file}, with another vocabulary, or with other "
        "--max_seq_length, --doc_stride, --max_query_length or --do_lower_case"
    )
    unique_ids, counts = np.unique(results["unique_id"], return_counts=True)
    if len(unique_ids) < len(results):
        raise UserError(
            f"{path}: has {len(results)} results but {len(unique_ids)} unique_ids (more than once: "
            f"{unique_ids[counts > 1][0]}); run_squad_predict.py writes each once, so predict again"
        )
    if len(results) > num_windows:
        raise UserError(
            f"{path}: {len(results) - num_windows} of {len(results)} results belong to none of the {num_windows} "
            f"windows of {arguments.predict_file}; {cause}"
        )
    wanted = squad_windows.FIRST_UNIQUE_ID + np.arange(num_windows)
    is_missing = ~np.isin(wanted, unique_ids)
    if is_missing.any():
        raise UserError(
            f"{path}: {is_missing.sum()} of {num_windows} windows of {arguments.predict_file} have no result (the "
            f"first: unique_id {wanted[is_missing][0]}); run_squad_predict.py skipped them, or {cause}"
        )
    results = results[np.argsort(results["unique_id"])]
    is_finite = np.isfinite(results["start_logits"]).all(axis=1) & np.isfinite(results["end_logits"]).all(axis=1)
    if not is_finite.all():
        raise UserError(
            f"{path}: {(~is_finite).sum()} of {num_windows} results have logits that are NaN or infinite (the first: "
            f"unique_id {wanted[~is_finite][0]}); the model has diverged"
        )
    return results


def write_files(folder, contents):
    """Writes `contents`, file name -> JSON content, to `folder`: all files or none. The first file appears last."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = []
        for name, content in contents.items():
            file = stack.enter_context(atomic_file(folder / name, "w", encoding="utf-8"))
            file.write(json.dumps(content, indent=4) + "\n")
            files.append(file)
        # All files are on disk before the first one appears.
        for file in files:
            file.flush()
            os.fsync(file.fileno())


if __name__ == "__main__":
    run_script(main)
