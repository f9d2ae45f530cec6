"""Makes OFRecord parts for pre-training from plain text: one sentence per line, documents separated by blank lines.

The instances are those of google-research/bert's create_pretraining_data.py (see text/pretraining_instances.py). Unlike
that script, this one handles a corpus that does not fit into memory:

1. Scan. Reads every file once, checks that it is UTF-8, and groups its documents into extents: byte ranges of some
   hundred kilobytes that hold whole documents.
2. Distribute. Assigns the extents to the parts in random order, so that each part samples the whole input. A document
   never spans two files and is in one part only.
3. Make. One process makes a part, in blocks of extents (32 MiB of text). It tokenises a block once and uses it
   dupe_factor times; a random next sentence comes from another document of the same block.
4. Shuffle. Instances of a part go to random buckets, which are temporary files; each bucket is then shuffled in memory
   and appended to the part. All orders of the instances of a part are equally likely.

A process needs memory for one block and one bucket, regardless of the size of the input; the temporary files of a part
are as large as the part. Random numbers depend only on --random_seed, the part and the block, so the parts do not
depend on the number of processes or on which parts existed before.
"""

import suite  # noqa: F401

# isort: split

import argparse
import contextlib
import errno
import functools
import itertools
import os
import random
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from records import description, ofrecord
from snapshots.model_files import read_vocab_bytes
from system.command_line import ArgumentParser, add_bool, add_number, fraction, non_negative_int, positive_int
from system.errors import UserError
from system.folder_lock import lock_folder
from system.input_files import find_files, read_json
from system.limits import usable_processors
from system.output_files import writing
from system.progress import print_line, print_warning, progress_bar
from system.workers import run_tasks
from text.pretraining_instances import MIN_SEQ_LENGTH, make_features, pieces_of_vocab, sentence_pairs
from text.pretraining_text import (
    choose_extent_bytes,
    deal_extents,
    make_generator,
    read_documents,
    read_extent,
    scan_file,
    split_blocks,
)
from text.tokenization import UNKNOWN, Tokenizer, check_case, read_vocab, report_unknown
from util import run_script

# Increase it with any change that makes different instances from the same text and flags.
ALGORITHM = 2
# The flags that determine the parts, besides those in every description of records.
FLAGS_IN_SETTINGS = (
    "do_whole_word_mask",
    "masked_lm_prob",
    "short_seq_prob",
    "dupe_factor",
    "random_seed",
    "part_num",
)

BUCKET_BYTES = 64 << 20
# Each bucket is an open file.
MAX_BUCKETS = 256
INSTANCES_PER_BATCH = 1024

# With a smaller share of continuation pieces, whole-word masking is the same as masking pieces.
MIN_CONTINUATION_SHARE = 0.01
# The size of the sample in which characters missing from the vocabulary are counted.
SAMPLE_BYTES = 1 << 20


class TextCounts(NamedTuple):
    """Counts of the pieces in a tokenised text."""

    pieces: int
    unknown: int  # [UNK]
    continuations: int  # pieces that continue a word; counted only for whole-word masking


class PartCounts(NamedTuple):
    """Counts of a finished part."""

    part: int
    documents: int
    instances: int
    text: TextCounts


def main():
    arguments = parse_arguments()
    vocab = read_vocab(arguments.vocab_file, required=("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]"))
    paths = find_files("--input_file", [arguments.input_file])
    output_dir = arguments.output_dir
    with open_output_folder(output_dir):
        scans = scan_input(paths, arguments)
        extents = [extent for scan in scans for extent in scan.extents]
        dealt = deal_extents(extents, arguments.part_num, arguments.random_seed)
        vocab_data = read_vocab_bytes(arguments.vocab_file)
        accept_settings(output_dir, make_settings(arguments, vocab, vocab_data, scans), vocab_data)
        wanted = arguments.parts or range(arguments.part_num)
        remove_temporary_files(output_dir, wanted)
        missing = [part for part in wanted if not (output_dir / f"part-{part}").exists()]
        if len(missing) < len(wanted):
            found = f"{len(wanted) - len(missing)} of {len(wanted)} parts are there, made with the same settings"
            print(f"{output_dir}: {found}; {len(missing)} to make", flush=True)
        if missing:
            check_case(arguments.vocab_file, vocab, arguments.do_lower_case)
            check_instances(scans, arguments)
            text = make_parts(missing, dealt, paths, arguments)
            report_text(text, vocab, [extent for part in missing for extent in dealt[part]], paths, arguments)


def parse_arguments():
    parser = ArgumentParser(description="Makes OFRecord parts for pre-training from plain text.")
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--input_file",
        required=True,
        metavar="FILES",
        help="text files, one sentence per line, blank lines between documents: names or patterns, separated by commas",
    )
    group.add_argument("--vocab_file", required=True, metavar="FILE", help="WordPiece vocabulary, one piece per line")
    group.add_argument(
        "--output_dir",
        required=True,
        type=Path,
        metavar="FOLDER",
        help=f"folder for part-0, part-1, ... and {description.FILE}; the same command resumes an interrupted run",
    )
    add_number(group, "--part_num", positive_int, 1, "number of parts")
    group.add_argument(
        "--parts",
        type=part_range,
        metavar="FIRST-LAST",
        help="make only these parts, to share the work among machines (default: all)",
    )
    text = "number of processes, each making one part at a time (default: the number of processors)"
    add_number(group, "--workers", positive_int, usable_processors(), text)
    group = parser.add_argument_group("instances")
    add_bool(group, "--do_lower_case", default=True, help="lower-case the text and strip accents, for uncased models")
    add_bool(
        group,
        "--do_whole_word_mask",
        help="mask all pieces of a word or none; Chinese text needs spaces between words",
    )
    add_number(group, "--max_seq_length", positive_int, 128, "tokens in an instance")
    add_number(group, "--max_predictions_per_seq", positive_int, 20, "maximum number of masked tokens")
    add_number(group, "--masked_lm_prob", fraction, 0.15, "share of masked tokens")
    add_number(
        group, "--short_seq_prob", fraction, 0.1, "share of documents cut into sequences shorter than max_seq_length"
    )
    add_number(group, "--dupe_factor", positive_int, 10, "passes over the text, with different masks")
    add_number(group, "--random_seed", non_negative_int, 12345, "random seed")
    arguments = parser.parse_args()
    if arguments.max_seq_length < MIN_SEQ_LENGTH:
        parser.error(f"--max_seq_length={arguments.max_seq_length} leaves no room for two sentences; give at least 5")
    if arguments.parts and arguments.parts[-1] >= arguments.part_num:
        parser.error(
            f"--parts={arguments.parts[0]}-{arguments.parts[-1]}: --part_num={arguments.part_num} has no such parts"
        )
    return arguments


def part_range(text):
    """Parses a range of part numbers, `3` or `0-15`, for argparse."""
    first, dash, last = text.partition("-")
    parts = range(non_negative_int(first), non_negative_int(last if dash else first) + 1)
    if not parts:
        raise argparse.ArgumentTypeError(f"'{text}' ends before it begins")
    return parts


@contextlib.contextmanager
def open_output_folder(folder):
    """Creates the output folder if needed and locks it; removes a folder it created if no part was made.

    Raises UserError if the folder cannot be written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(f"--output_dir={folder}", "folder"):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    lock = lock_folder(folder)
    try:
        yield
    finally:
        if folder in missing and not any(folder.glob("part-*")):
            for name in (description.FILE, description.VOCAB_FILE):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for path in missing:
                    path.rmdir()
        os.close(lock)


def remove_temporary_files(output_dir, parts):
    """Removes the unfinished files of `parts` that killed processes left.

    Keeps those of other parts: on a network folder, where the lock does not work, another machine may be making them.
    """
    for path in output_dir.glob(".part-*.tmp"):
        number = path.name.split(".")[1].removeprefix("part-")
        if number.isdecimal() and int(number) in parts:
            path.unlink(missing_ok=True)


def scan_input(paths, arguments):
    """Returns the FileScan of each path. Raises UserError if there is no text or only one document."""
    total = sum(os.path.getsize(path) for path in paths)
    extent_bytes = choose_extent_bytes(total, arguments.part_num)
    scans = [None] * len(paths)
    with progress_bar(total=total, desc="scanning", unit="B", unit_scale=True, leave=False) as bar:
        tasks = [(file, path, extent_bytes) for file, path in enumerate(paths)]
        for file, scan in run_tasks(scan_file, tasks, arguments.workers, bar):
            scans[file] = scan

    documents = sum(extent.documents for scan in scans for extent in scan.extents)
    sentences = sum(extent.sentences for scan in scans for extent in scan.extents)
    if documents == 0:
        raise UserError(f"--input_file={arguments.input_file}: contains no text")
    if documents == 1:
        raise UserError(
            f"--input_file={arguments.input_file}: it is one document, but a random next sentence comes from another; "
            "separate the documents by blank lines"
        )
    print(f"files: {len(paths)}, documents: {documents:,}, sentences: {sentences:,}, bytes: {total:,}", flush=True)
    return scans


def check_instances(scans, arguments):
    """Warns of documents with a single sentence, and of too few predictions for the sequence length."""
    documents = sum(extent.documents for scan in scans for extent in scan.extents)
    lone_sentences = sum(scan.lone_sentences for scan in scans)
    if 2 * lone_sentences > documents:
        print_warning(
            f"{lone_sentences:,} of {documents:,} documents are one sentence, which is always paired with a random "
            "next sentence; put blank lines between documents, not between sentences"
        )
    wanted = int(arguments.masked_lm_prob * arguments.max_seq_length)
    if arguments.max_predictions_per_seq < wanted:
        share = arguments.max_predictions_per_seq / arguments.max_seq_length
        print_warning(
            f"--max_predictions_per_seq={arguments.max_predictions_per_seq} masks {share:.1%} of a sequence of "
            f"{arguments.max_seq_length} tokens, not --masked_lm_prob={arguments.masked_lm_prob:g}; give "
            f"--max_predictions_per_seq={wanted} here and for training"
        )


def report_text(counts, vocab, extents, paths, arguments):
    """Prints the share of [UNK]; warns if whole-word masking has almost no effect. `counts`: TextCounts."""
    sample = read_sample(extents, paths)
    report_unknown(arguments.vocab_file, counts.unknown, counts.pieces, sample, vocab, arguments.do_lower_case)
    if arguments.do_whole_word_mask and counts.continuations < MIN_CONTINUATION_SHARE * counts.pieces:
        print_warning(
            f"--do_whole_word_mask has almost no effect: {counts.continuations:,} of {counts.pieces:,} pieces "
            "continue a word; put spaces between words in Chinese text"
        )


def read_sample(extents, paths):
    """Yields the lines of the first SAMPLE_BYTES of the extents, a random sample as their order is random."""
    size = 0
    for extent in extents:
        if size >= SAMPLE_BYTES:
            return
        size += extent.size
        yield from read_extent(extent, paths).split("\n")


# Settings: all parts in a folder belong to one data set


def make_settings(arguments, vocab, vocab_data, scans):
    """Returns everything that determines the parts: the description of records, further flags and the input."""
    return description.describe(
        description.PRETRAINING,
        vocab,
        vocab_data,
        arguments.do_lower_case,
        arguments.max_seq_length,
        max_predictions_per_seq=arguments.max_predictions_per_seq,
        **{name: getattr(arguments, name) for name in FLAGS_IN_SETTINGS},
        algorithm=ALGORITHM,
        unicode=unicodedata.unidata_version,
        input_sha256=[scan.sha256 for scan in scans],
    )


def accept_settings(output_dir, settings, vocab_data):
    """Writes the settings and the vocabulary. Raises UserError if the folder has parts made with other settings."""
    path = output_dir / description.FILE
    parts = sorted(output_dir.glob("part-*"))
    if not parts:
        description.write(output_dir, settings, vocab_data)
        return
    advice = "give another --output_dir, or delete this one"
    if not os.path.lexists(path):
        raise UserError(f"{output_dir}: holds {parts[0].name}, but no {description.FILE}; {advice}")
    try:
        found = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: it is not a JSON object; {advice}")
    for name, value in settings.items():
        if found.get(name) != value:
            difference = f"{name} {found.get(name)}, not {value}"
            if name.endswith("_sha256"):
                difference = f"other {name.removesuffix('_sha256')}"
            raise UserError(f"{output_dir}: holds parts that were made with {difference}; {advice}")


# Making parts


def make_parts(missing, dealt, paths, arguments):
    """Makes the missing parts in several processes and prints a line for each. Returns their total TextCounts."""
    sentences = sum(extent.sentences for part in missing for extent in dealt[part])
    tasks = [(part, dealt[part], paths, arguments) for part in missing]
    instances = 0
    texts = []
    with progress_bar(total=sentences * arguments.dupe_factor, unit=" sentences", unit_scale=True) as bar:
        try:
            with contextlib.closing(run_tasks(make_part, tasks, arguments.workers, bar)) as results:
                for finished, counts in enumerate(results, start=1):
                    instances += counts.instances
                    texts.append(counts.text)
                    print_line(
                        f"part-{counts.part} ({finished} of {len(missing)}): {counts.instances:,} instances, "
                        f"{counts.documents:,} documents"
                    )
        finally:
            remove_temporary_files(arguments.output_dir, missing)
    print(f"instances: {instances:,}, parts: {len(missing)}, in {arguments.output_dir}")
    return TextCounts(*map(sum, zip(*texts, strict=True)))


def make_part(part, extents, paths, arguments, report):
    """Makes the file of one part and returns its PartCounts. Calls `report` with the number of sentences processed."""
    with contextlib.ExitStack() as stack:
        buckets = [
            stack.enter_context(tempfile.TemporaryFile(dir=arguments.output_dir))
            for _ in range(count_buckets(extents, arguments))
        ]
        rng = make_generator(arguments.random_seed, part)
        counts = fill_buckets(buckets, part, extents, paths, arguments, rng, report)
        with ofrecord.open_writer(arguments.output_dir / f"part-{part}") as write:
            for bucket in buckets:
                bucket.seek(0)
                records = [record for _, record in ofrecord.read_open_file(bucket, "bucket")]
                for index in rng.permutation(len(records)).tolist():
                    write(records[index])
    return counts


def fill_buckets(buckets, part, extents, paths, arguments, rng, report):
    """Writes the serialized instances of a part to random buckets and returns the PartCounts.

    Raises UserError if the part has too little text.
    """
    tokenizer, pieces = load_tokenizer(arguments.vocab_file, arguments.do_lower_case, arguments.do_whole_word_mask)
    documents_used = instances = 0
    texts = []
    for block_index, block in enumerate(split_blocks(extents)):
        documents = read_documents(block, paths, tokenizer)
        number = len(documents.document_starts) - 1
        if number == 1:
            raise UserError(f"part-{part}: all but one of its documents have no text; give a smaller --part_num")
        documents_used += number
        texts.append(count_text(documents, pieces, tokenizer.vocab[UNKNOWN]))
        for features in make_instances(documents, pieces, arguments, (part, block_index), report):
            records = ofrecord.serialize_batch(features)
            for record, bucket in zip(records, rng.integers(len(buckets), size=len(records)).tolist(), strict=True):
                ofrecord.write_record(buckets[bucket], record)
            instances += len(records)
    if not instances:
        raise UserError(f"part-{part}: its documents have no text; give a smaller --part_num")
    return PartCounts(part, documents_used, instances, TextCounts(*map(sum, zip(*texts, strict=True))))


def count_text(documents, pieces, unknown):
    """Returns the TextCounts of a block; `unknown` is the id of [UNK]."""
    continuations = 0
    if documents.continues_word is not None:
        continuations = np.count_nonzero(documents.continues_word | pieces.is_continuation[documents.ids])
    return TextCounts(len(documents.ids), np.count_nonzero(documents.ids == unknown), continuations)


def make_instances(documents, pieces, arguments, key, report):
    """Yields batches of the instances of a block, as features from `make_features`.

    `key` (part, block) gives each block its own random stream.
    """
    pair_rng = random.Random(f"{arguments.random_seed} {key}")
    mask_rng = make_generator(arguments.random_seed, *key)
    number = len(documents.document_starts) - 1

    def all_pairs():
        for _ in range(arguments.dupe_factor):
            for document in range(number):
                yield from sentence_pairs(
                    documents, document, arguments.max_seq_length, arguments.short_seq_prob, pair_rng
                )
                report(documents.document_starts[document + 1] - documents.document_starts[document])

    pairs = all_pairs()
    while batch := list(itertools.islice(pairs, INSTANCES_PER_BATCH)):
        yield make_features(
            documents,
            batch,
            pieces,
            arguments.max_seq_length,
            arguments.max_predictions_per_seq,
            arguments.masked_lm_prob,
            arguments.do_whole_word_mask,
            mask_rng,
        )


def count_buckets(extents, arguments):
    """Returns the number of buckets for a part, so that a bucket has about BUCKET_BYTES."""
    # A document makes two instances or, if it is long, about one for every two bytes of max_seq_length.
    instances = sum(2 * extent.documents + extent.size // (2 * arguments.max_seq_length) for extent in extents)
    instance_bytes = 5 * arguments.max_seq_length + 9 * arguments.max_predictions_per_seq + 150
    return min(MAX_BUCKETS, 1 + instances * arguments.dupe_factor * instance_bytes // BUCKET_BYTES)


@functools.lru_cache(maxsize=1)
def load_tokenizer(vocab_file, do_lower_case, do_whole_word_mask):
    """Returns the Tokenizer and the Pieces of a vocabulary. Cached: a process makes several parts."""
    vocab = read_vocab(vocab_file)
    return Tokenizer(vocab, do_lower_case, do_whole_word_mask), pieces_of_vocab(vocab)


if __name__ == "__main__":
    run_script(main)
