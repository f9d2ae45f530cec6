"""Makes OFRecord parts for pre-training from plain text: one sentence a line, documents separated by blank lines.

The instances are those of google-research/bert's create_pretraining_data.py (see pretraining_instances.py). What differs
is how it gets through a corpus that does not fit into memory:

1. Scan. Every file is read once: it has to be UTF-8, and its documents are grouped into extents, ranges of some
   hundred kilobytes that begin and end with a document.
2. Deal. The extents, in random order, are dealt to the parts, so that each part is a sample of the whole input. A
   document is in one part only, and a file never goes on in the next one.
3. Make. A part is made by one process, block after block of its extents (32 MiB of text). A block is tokenised once and
   used dupe_factor times; a random next sentence comes from another document of the same block.
4. Shuffle. The instances of a part are thrown into buckets, temporary files, at random; each bucket is then shuffled in
   memory and appended to the part. All orders of the instances of a part are equally likely.

A process needs the memory of a block and a bucket, however large the input; the temporary files of a part are as large
as the part. All chance comes from --random_seed, the number of the part and that of the block: the parts are the same
whatever the number of processes, and whichever of them were there before.
"""

import argparse
import contextlib
import fcntl
import functools
import glob
import hashlib
import heapq
import itertools
import json
import multiprocessing
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import unicodedata
from array import array
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers.models import WordPiece
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ofrecord  # noqa: E402
from command_line import ArgumentParser, add_bool, fraction, non_negative_int, positive_int  # noqa: E402
from pretraining_instances import (  # noqa: E402
    MIN_SEQ_LENGTH,
    Documents,
    make_features,
    pieces_of_vocab,
    sentence_pairs,
)
from tokenization import MAX_CHARACTERS_PER_WORD, UNKNOWN, read_vocab, split_words  # noqa: E402
from util import RunError, UserError, atomic_file, describe_os_error, run_script  # noqa: E402

SETTINGS_FILE = "create_pretraining_data.json"
# Raise it with any change that makes other instances of the same text and flags.
ALGORITHM = 1
# The flags on which the parts depend.
FLAGS_IN_SETTINGS = (
    "do_lower_case",
    "do_whole_word_mask",
    "max_seq_length",
    "max_predictions_per_seq",
    "masked_lm_prob",
    "short_seq_prob",
    "dupe_factor",
    "random_seed",
    "part_num",
)

READ_BYTES = 1 << 20
# A longer line or document is taken for a file that is not in the format, before it fills the memory.
MAX_LINE_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 256 << 20
EXTENT_BYTES = 64 << 10
MAX_EXTENTS = 1 << 16
# In a small input, extents are made so small that a part still gets so many.
EXTENTS_PER_PART = 128
BLOCK_BYTES = 32 << 20
BUCKET_BYTES = 64 << 20
# Each is an open file.
MAX_BUCKETS = 256
INSTANCES_PER_BATCH = 1024
# So many words, and stretches of text, have their ids remembered: about 100 bytes each.
MAX_REMEMBERED = 1 << 18
MAX_REMEMBERED_CHARACTERS = 32
ID_BYTES = 4
# Stands before each record in a bucket.
LENGTH = struct.Struct("<Q")


class Extent(NamedTuple):
    """A range of an input file that begins and ends with a document."""

    file: int  # index of the file in the input
    offset: int  # bytes
    size: int  # bytes
    documents: int
    sentences: int


class FileScan(NamedTuple):
    """What scanning an input file found."""

    sha256: str
    extents: list


class PartCounts(NamedTuple):
    """What a finished part holds."""

    part: int
    documents: int
    instances: int


def main():
    arguments = parse_arguments()
    vocab = read_vocab(arguments.vocab_file, required=("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]"))
    paths = find_input(arguments.input_file)
    output_dir = arguments.output_dir
    make_folder(output_dir)
    with lock_folder(output_dir):
        scans = scan_input(paths, arguments)
        extents = [extent for scan in scans for extent in scan.extents]
        dealt = deal_extents(extents, arguments.part_num, arguments.random_seed)
        accept_settings(output_dir, make_settings(arguments, vocab, scans))
        remove_temporary_files(output_dir)

        wanted = arguments.parts or range(arguments.part_num)
        missing = [part for part in wanted if not (output_dir / f"part-{part}").exists()]
        if len(missing) < len(wanted):
            found = f"{len(wanted) - len(missing)} of {len(wanted)} parts are there, made with the same settings"
            print(f"{output_dir}: {found}; {len(missing)} to make", flush=True)
        if missing:
            make_parts(missing, dealt, paths, arguments)


def parse_arguments():
    parser = ArgumentParser(description="Makes OFRecord parts for pre-training from plain text.")
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--input_file",
        required=True,
        metavar="FILES",
        help="text files, one sentence a line, blank lines between documents: names or patterns, separated by commas",
    )
    group.add_argument("--vocab_file", required=True, metavar="FILE", help="WordPiece vocabulary, one piece a line")
    group.add_argument(
        "--output_dir",
        required=True,
        type=Path,
        metavar="FOLDER",
        help=f"gets part-0, part-1, ... and {SETTINGS_FILE}; the same command goes on where an interrupted one was",
    )
    group.add_argument("--part_num", type=positive_int, default=1, metavar="N", help="number of parts")
    group.add_argument(
        "--parts",
        type=part_range,
        metavar="FIRST-LAST",
        help="make only these parts, to share the work among machines (default: all)",
    )
    group.add_argument(
        "--workers",
        type=positive_int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes, each of which makes one part at a time (default: one for each CPU core)",
    )
    group = parser.add_argument_group("instances")
    add_bool(group, "--do_lower_case", default=True, help="lower-case the text and strip accents (an uncased model)")
    add_bool(group, "--do_whole_word_mask", help="mask all pieces of a word or none")
    group.add_argument("--max_seq_length", type=positive_int, default=128, metavar="N", help="tokens in an instance")
    group.add_argument(
        "--max_predictions_per_seq", type=positive_int, default=20, metavar="N", help="masked tokens at most"
    )
    group.add_argument("--masked_lm_prob", type=fraction, default=0.15, metavar="P", help="share of masked tokens")
    group.add_argument(
        "--short_seq_prob",
        type=fraction,
        default=0.1,
        metavar="P",
        help="share of documents cut into sequences shorter than max_seq_length",
    )
    group.add_argument(
        "--dupe_factor", type=positive_int, default=10, metavar="N", help="times the text is used, with other masks"
    )
    group.add_argument("--random_seed", type=non_negative_int, default=12345, metavar="N", help="seed of all chance")
    arguments = parser.parse_args()
    if arguments.max_seq_length < MIN_SEQ_LENGTH:
        parser.error(f"--max_seq_length {arguments.max_seq_length} leaves no room for two sentences: at least 5")
    if arguments.parts and arguments.parts[-1] >= arguments.part_num:
        parser.error(f"--parts {arguments.parts[0]}-{arguments.parts[-1]}: --part_num is {arguments.part_num}")
    return arguments


def part_range(text):
    """argparse's type for a range of part numbers: `3` or `0-15`."""
    first, _, last = text.partition("-")
    parts = range(non_negative_int(first), non_negative_int(last or first) + 1)
    if not parts:
        raise argparse.ArgumentTypeError(f"'{text}' ends before it begins")
    return parts


def find_input(patterns):
    """The input files, a list of paths: the patterns in the order given, the files of a pattern sorted, none twice."""
    paths = []
    for pattern in filter(None, patterns.split(",")):
        found = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))
        if not found:
            raise UserError(f"--input_file: there is no file {pattern}")
        paths += found
        for path in found:
            if not os.access(path, os.R_OK):
                raise UserError(f"--input_file: {path}: no permission to read it")
    if not paths:
        raise UserError("--input_file is empty")
    return list(dict.fromkeys(paths))


def make_folder(folder):
    """Makes the output folder if it is not there. Raises UserError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir: {describe_os_error(error)}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir: {folder}: no permission to write there")


@contextlib.contextmanager
def lock_folder(folder):
    """Keeps other runs out of `folder`; the system gives the lock back when the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is writing there; wait for its end") from None
        except OSError:
            pass  # Some network file systems cannot lock a folder.
        yield
    finally:
        os.close(descriptor)


def remove_temporary_files(output_dir):
    """Removes the beginnings of parts that killed processes have left."""
    for path in output_dir.glob(".part-*.tmp"):
        path.unlink(missing_ok=True)


# Scanning and dealing


def scan_input(paths, arguments):
    """The FileScan of every path. Raises UserError if there is no text, or only one document."""
    total = sum(os.path.getsize(path) for path in paths)
    extent_bytes = min(EXTENT_BYTES, total // (EXTENTS_PER_PART * arguments.part_num))
    extent_bytes = max(extent_bytes, total // MAX_EXTENTS)
    scans = [None] * len(paths)
    with tqdm(total=total, desc="scanning", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        tasks = [(file, path, extent_bytes) for file, path in enumerate(paths)]
        for file, scan in run_tasks(scan_file, tasks, arguments.workers, bar):
            scans[file] = scan

    documents = sum(extent.documents for scan in scans for extent in scan.extents)
    sentences = sum(extent.sentences for scan in scans for extent in scan.extents)
    if documents == 0:
        raise UserError(f"{arguments.input_file}: there is no text in the input")
    if documents == 1:
        raise UserError(
            f"{arguments.input_file}: the input is one document, but a random next sentence has to come from another; "
            "separate the documents by blank lines"
        )
    print(f"files: {len(paths)}, documents: {documents:,}, sentences: {sentences:,}, bytes: {total:,}", flush=True)
    return scans


def scan_file(file, path, extent_bytes, report):
    """Checks an input file and finds its extents, each of `extent_bytes` at least but for the last.

    Returns (file, FileScan); calls `report` with the number of bytes as they are read. Raises UserError for what is
    not UTF-8 or not in lines and documents of a reasonable size.
    """
    digest = hashlib.sha256()
    extents = []
    offset = extent_start = document_start = 0
    sentences = documents = extent_sentences = 0

    def on_data(data):
        digest.update(data)
        report(len(data))

    for line, size in read_lines(path, on_data):
        offset += size
        if line.strip():
            sentences += 1
            if offset - document_start > MAX_DOCUMENT_BYTES:
                raise UserError(
                    f"{path}: the document at byte {document_start} is longer than {MAX_DOCUMENT_BYTES >> 20} MiB; "
                    "separate the documents by blank lines"
                )
            continue
        documents += sentences > 0
        extent_sentences += sentences
        sentences = 0
        document_start = offset
        if documents and offset - extent_start >= extent_bytes:
            extents.append(Extent(file, extent_start, offset - extent_start, documents, extent_sentences))
            extent_start = offset
            documents = extent_sentences = 0
    documents += sentences > 0
    extent_sentences += sentences
    if documents:
        extents.append(Extent(file, extent_start, offset - extent_start, documents, extent_sentences))
    return file, FileScan(digest.hexdigest(), extents)


def read_lines(path, on_data):
    """Yields every line of a file as (text, size in bytes with its line end); calls `on_data` with the bytes it reads."""
    with open(path, "rb") as file:
        rest = b""
        offset = 0
        while data := file.read(READ_BYTES):
            on_data(data)
            lines, line_end, after = data.rpartition(b"\n")
            if line_end:
                lines = rest + lines
                for line, encoded in zip(decode(lines, path, offset).split("\n"), lines.split(b"\n")):
                    yield line, len(encoded) + 1
                offset += len(lines) + 1
                rest = b""
            rest += after
            if len(rest) > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: the line at byte {offset} is longer than {MAX_LINE_BYTES >> 20} MiB; "
                    "give each sentence a line of its own"
                )
        # The last line of a file need not have a line end.
        yield decode(rest, path, offset), len(rest)


def decode(data, path, offset):
    """The text of `data`, which stands at byte `offset` of the file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: byte {offset + error.start} is {data[error.start]:#04x}") from None


def deal_extents(extents, part_num, random_seed):
    """Deals the extents, in random order, to the parts, of which each gets about the same number of bytes.

    Returns a list of extents for every part. Raises UserError if there are not two documents for every part.
    """
    dealt = [[] for _ in range(part_num)]
    # (whether the part has two documents, bytes, part, documents): the first of the heap is the most needy.
    parts = [(False, 0, part, 0) for part in range(part_num)]
    for index in make_generator(random_seed).permutation(len(extents)):
        _, size, part, documents = parts[0]
        extent = extents[index]
        dealt[part].append(extent)
        documents += extent.documents
        heapq.heapreplace(parts, (documents >= 2, size + extent.size, part, documents))
    if not parts[0][0]:
        documents = sum(extent.documents for extent in extents)
        raise UserError(f"{documents} documents are too few for --part_num {part_num}: every part needs two")
    return dealt


# Settings: a folder holds parts of one data set only


def make_settings(arguments, vocab, scans):
    """All on which the parts depend, to be kept beside them."""
    pieces = "\n".join(f"{piece} {index}" for piece, index in vocab.items())
    return {
        "algorithm": ALGORITHM,
        "unicode": unicodedata.unidata_version,
        "vocab_sha256": hashlib.sha256(pieces.encode()).hexdigest(),
        **{name: getattr(arguments, name) for name in FLAGS_IN_SETTINGS},
        "input_sha256": [scan.sha256 for scan in scans],
    }


def accept_settings(output_dir, settings):
    """Writes the settings file, or raises UserError if the folder holds parts that were made with other settings."""
    path = output_dir / SETTINGS_FILE
    parts = sorted(output_dir.glob("part-*"))
    if not parts:
        with atomic_file(path, "w") as file:
            file.write(json.dumps(settings, indent=2) + "\n")
        return
    advice = "give another --output_dir, or delete this one"
    try:
        found = dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{output_dir}: holds {parts[0].name}, but no {SETTINGS_FILE}; {advice}") from None
    except (ValueError, TypeError):
        raise UserError(f"{path}: is damaged; {advice}") from None
    for name, value in settings.items():
        if found.get(name) != value:
            is_digest = name.endswith("sha256")
            difference = "other " + name.removesuffix("_sha256") if is_digest else f"{name} {found.get(name)}, not {value}"
            raise UserError(f"{output_dir}: holds parts that were made with {difference}; {advice}")


# Making parts


def make_parts(missing, dealt, paths, arguments):
    """Makes the missing parts, several at a time, and says so of each."""
    sentences = sum(extent.sentences for part in missing for extent in dealt[part])
    tasks = [(part, dealt[part], paths, arguments) for part in missing]
    instances = 0
    with tqdm(total=sentences * arguments.dupe_factor, unit=" sentences", unit_scale=True, disable=None) as bar:
        try:
            with contextlib.closing(run_tasks(make_part, tasks, arguments.workers, bar)) as results:
                for finished, counts in enumerate(results, start=1):
                    instances += counts.instances
                    with tqdm.external_write_mode():
                        print(
                            f"part-{counts.part} ({finished} of {len(missing)}): {counts.instances:,} instances, "
                            f"{counts.documents:,} documents",
                            flush=True,
                        )
        finally:
            remove_temporary_files(arguments.output_dir)
    print(f"instances: {instances:,}, parts: {len(missing)}, in {arguments.output_dir}")


def make_part(part, extents, paths, arguments, report):
    """Makes the file of one part and returns its PartCounts; calls `report` with the number of sentences as it goes."""
    tokenizer, pieces = load_tokenizer(arguments.vocab_file, arguments.do_lower_case)
    documents_used = instances = 0
    with contextlib.ExitStack() as stack:
        buckets = [
            stack.enter_context(tempfile.TemporaryFile(dir=arguments.output_dir))
            for _ in range(count_buckets(extents, arguments))
        ]
        shuffle_rng = make_generator(arguments.random_seed, part)
        for block_index, block in enumerate(split_blocks(extents)):
            documents = read_documents(block, paths, tokenizer)
            number = len(documents.document_starts) - 1
            if number == 1:
                raise UserError(f"part-{part}: all but one of its documents have no text; use fewer parts")
            documents_used += number
            for features in make_instances(documents, pieces, arguments, (part, block_index), report):
                records = ofrecord.serialize_batch(features)
                for record, bucket in zip(records, shuffle_rng.integers(len(buckets), size=len(records)).tolist()):
                    buckets[bucket].write(LENGTH.pack(len(record)) + record)
                instances += len(records)
        if not instances:
            raise UserError(f"part-{part}: its documents have no text; use fewer parts")

        with ofrecord.open_writer(arguments.output_dir / f"part-{part}") as write:
            for bucket in buckets:
                records = read_bucket(bucket)
                for index in shuffle_rng.permutation(len(records)).tolist():
                    write(records[index])
    return PartCounts(part, documents_used, instances)


def make_instances(documents, pieces, arguments, key, report):
    """Yields the instances of a block in batches, as features of `make_features`.

    `key` (part, block) makes the block's chance its own.
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


def make_generator(random_seed, *key):
    """A source of chance that depends on the seed and on where it is used."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(random_seed, spawn_key=key)))


def split_blocks(extents):
    """Splits the extents of a part into blocks of BLOCK_BYTES or a little more, with two documents at least in each."""
    blocks = [[]]
    size = documents = 0
    for extent in extents:
        if size >= BLOCK_BYTES and documents >= 2:
            blocks.append([])
            size = documents = 0
        blocks[-1].append(extent)
        size += extent.size
        documents += extent.documents
    if documents < 2 and len(blocks) > 1:
        last = blocks.pop()
        blocks[-1] += last
    return blocks


def count_buckets(extents, arguments):
    """The number of buckets for a part, such that a bucket is about BUCKET_BYTES in size."""
    # A document makes two instances or, if it is long, about one for every two bytes of max_seq_length.
    instances = sum(2 * extent.documents + extent.size // (2 * arguments.max_seq_length) for extent in extents)
    instance_bytes = 5 * arguments.max_seq_length + 9 * arguments.max_predictions_per_seq + 150
    return min(MAX_BUCKETS, 1 + instances * arguments.dupe_factor * instance_bytes // BUCKET_BYTES)


def read_bucket(bucket):
    """All records in a bucket."""
    bucket.seek(0)
    records = []
    while header := bucket.read(LENGTH.size):
        records.append(bucket.read(LENGTH.unpack(header)[0]))
    return records


# Tokenising


class StretchIds(dict):
    """Stretch of text without a space -> the ids of its pieces, packed as int32; made when it is first asked for.

    No rule of the tokenisation looks across a space. Most stretches are words that have been seen before, so that
    tokenising is mostly looking up and joining bytes.
    """

    def __init__(self, vocab, do_lower_case):
        super().__init__()
        self._do_lower_case = do_lower_case
        self._model = WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD)
        self._ids_of_words = {}

    def __missing__(self, stretch):
        ids = b"".join([self._ids_of_word(word) for word in split_words(stretch, self._do_lower_case)])
        # A text in Chinese has no spaces: its stretches are whole lines, which are not worth remembering.
        if len(stretch) <= MAX_REMEMBERED_CHARACTERS:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[stretch] = ids
        return ids

    def _ids_of_word(self, word):
        ids = self._ids_of_words.get(word)
        if ids is None:
            if len(self._ids_of_words) >= MAX_REMEMBERED:
                self._ids_of_words.clear()
            ids = array("i", [token.id for token in self._model.tokenize(word)]).tobytes()
            if len(word) <= MAX_REMEMBERED_CHARACTERS:
                self._ids_of_words[word] = ids
        return ids


@functools.lru_cache(maxsize=1)
def load_tokenizer(vocab_file, do_lower_case):
    """The StretchIds and the Pieces of a vocabulary; a process keeps them from part to part."""
    vocab = read_vocab(vocab_file)
    return StretchIds(vocab, do_lower_case), pieces_of_vocab(vocab)


def read_documents(extents, paths, tokenizer):
    """Reads and tokenises the documents of `extents`; lines and documents without a piece are left out."""
    sentences = []
    sentence_starts = [0]
    document_starts = [0]
    for extent in extents:
        for line in read_extent(extent, paths).split("\n"):
            line = line.strip()
            if line:
                ids = b"".join(map(tokenizer.__getitem__, line.split(" ")))
                if ids:
                    sentences.append(ids)
                    sentence_starts.append(sentence_starts[-1] + len(ids) // ID_BYTES)
            elif len(sentences) > document_starts[-1]:
                document_starts.append(len(sentences))
        if len(sentences) > document_starts[-1]:
            document_starts.append(len(sentences))
    return Documents(np.frombuffer(b"".join(sentences), dtype=np.int32), sentence_starts, document_starts)


def read_extent(extent, paths):
    """The text of an extent."""
    path = paths[extent.file]
    with open(path, "rb") as file:
        file.seek(extent.offset)
        data = file.read(extent.size)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if len(data) < extent.size or not text:
        raise RunError(f"{path}: has changed since it was scanned; run the command again")
    return text


# Processes


def run_tasks(function, tasks, workers, bar):
    """Yields `function(*task, report)` for every task, as they end, in up to `workers` processes.

    `report(n)` moves the tqdm `bar` on by n. When one task fails, or the caller is interrupted, the others are stopped.
    """
    if min(workers, len(tasks)) == 1:
        for task in tasks:
            yield function(*task, bar.update)
        return
    context = multiprocessing.get_context("spawn")
    progress = context.Value("q", 0)
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=start_worker, initargs=(progress,)
    ) as pool:
        try:
            pending = {pool.submit(run_task, function, task) for task in tasks}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(progress.value - bar.n)
                for future in finished:
                    yield future.result()
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RunError("a worker process was killed (out of memory?); the same command goes on") from None
            raise


# In a worker process: the number it shares with its parent.
worker_progress = None


def start_worker(progress):
    """Makes a process fit for tasks: it leaves Ctrl-C to its parent, and ends when the parent is killed."""
    global worker_progress
    worker_progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def run_task(function, task):
    """Runs a task in a worker process."""
    return function(*task, report_progress)


def report_progress(number):
    with worker_progress.get_lock():
        worker_progress.value += number


if __name__ == "__main__":
    run_script(main)
