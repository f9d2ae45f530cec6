"""Text of pre-training data: checks it, distributes documents among parts and tokenises them.

A document is a run of lines, one sentence each, between blank lines or the ends of a file. Memory holds at most a
block of documents at a time.
"""

import hashlib
import heapq
from typing import NamedTuple

import numpy as np

from system.errors import RunError, UserError
from text.pretraining_instances import Documents
from text.tokenization import BEGINS_RUN, CONTINUES_RUN

READ_BYTES = 1 << 20
# A file with a longer line or document is rejected before it fills the memory.
MAX_LINE_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 256 << 20
EXTENT_BYTES = 64 << 10
MAX_EXTENTS = 1 << 16
# A small input gets smaller extents, so that each part still has this many.
EXTENTS_PER_PART = 128
BLOCK_BYTES = 32 << 20
ID_BYTES = 4
# The longest mean run of CJK characters that counts as text with spaces between words. Chinese words have about two
# characters on average; without spaces a run is a clause.
LONGEST_MEAN_WORD = 3


class Extent(NamedTuple):
    """A byte range of an input file that holds whole documents."""

    file: int  # index of the file in the input
    offset: int  # bytes
    size: int  # bytes
    documents: int
    sentences: int


class FileScan(NamedTuple):
    """The result of scanning an input file."""

    sha256: str
    extents: list
    lone_sentences: int  # documents of one sentence


def choose_extent_bytes(input_bytes, part_num):
    """Returns the size of an extent, small enough that each part samples the whole input."""
    return max(min(EXTENT_BYTES, input_bytes // (EXTENTS_PER_PART * part_num)), input_bytes // MAX_EXTENTS)


def scan_file(file, path, extent_bytes, report):
    """Checks an input file and splits it into extents of at least `extent_bytes` (the last may be smaller).

    Returns (file, FileScan). Calls `report` with the number of bytes read. Raises UserError if the file is not UTF-8 or
    has a line or document that is too long.
    """
    digest = hashlib.sha256()

    def on_data(data):
        digest.update(data)
        report(len(data))

    extents = []
    start = end = documents = sentences = lone_sentences = 0
    for end, sentences_of_document in find_documents(path, on_data):
        documents += 1
        lone_sentences += sentences_of_document == 1
        sentences += sentences_of_document
        if end - start >= extent_bytes:
            extents.append(Extent(file, start, end - start, documents, sentences))
            start = end
            documents = sentences = 0
    if documents:
        extents.append(Extent(file, start, end - start, documents, sentences))
    return file, FileScan(digest.hexdigest(), extents, lone_sentences)


def find_documents(path, on_data):
    """Yields (end offset in bytes, number of sentences) for each document of a file.

    Raises UserError if a document is too long.
    """
    start = offset = sentences = 0
    for line, size in read_lines(path, on_data):
        offset += size
        if line.strip():
            sentences += 1
            if offset - start > MAX_DOCUMENT_BYTES:
                raise UserError(
                    f"{path}: the document at byte {start} is longer than {MAX_DOCUMENT_BYTES >> 20} MiB; "
                    "separate the documents by blank lines"
                )
        else:
            if sentences:
                yield offset, sentences
            start = offset
            sentences = 0
    if sentences:
        yield offset, sentences


def read_lines(path, on_data):
    """Yields (text, size in bytes with its line end) for each line of a file; calls `on_data` with the bytes read.

    Raises UserError if a line is not UTF-8 or too long.
    """
    with open(path, "rb") as file:
        rest = b""
        offset = 0
        while data := file.read(READ_BYTES):
            on_data(data)
            lines, line_end, after = data.rpartition(b"\n")
            if line_end:
                lines = rest + lines
                for line, encoded in zip(decode(lines, path, offset).split("\n"), lines.split(b"\n"), strict=True):
                    yield line, len(encoded) + 1
                offset += len(lines) + 1
                rest = b""
            rest += after
            if len(rest) > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: the line at byte {offset} is longer than {MAX_LINE_BYTES >> 20} MiB; "
                    "give each sentence a line of its own"
                )
        # The last line may lack a line end.
        yield decode(rest, path, offset), len(rest)


def decode(data, path, offset):
    """Decodes `data`, the bytes at `offset` of the file, without a byte order mark. Raises UserError if not UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: byte {offset + error.start} is {data[error.start]:#04x}") from None
    return text if offset else text.removeprefix("\ufeff")


def deal_extents(extents, part_num, random_seed):
    """Distributes the extents among the parts in random order, about the same number of bytes to each.

    Returns a list of extents for each part. Raises UserError unless each part gets two documents.
    """
    documents = sum(extent.documents for extent in extents)
    too_few = UserError(
        f"--part_num={part_num}: {documents} documents are too few, or too unequal, as every part needs two; "
        "give a smaller --part_num"
    )
    # Checked before anything of size part_num is allocated.
    if documents < 2 * part_num:
        raise too_few
    dealt = [[] for _ in range(part_num)]
    # (has two documents, bytes, part, documents): the first of the heap gets the next extent.
    parts = [(False, 0, part, 0) for part in range(part_num)]
    for index in make_generator(random_seed).permutation(len(extents)):
        _, size, part, documents_of_part = parts[0]
        extent = extents[index]
        dealt[part].append(extent)
        documents_of_part += extent.documents
        heapq.heapreplace(parts, (documents_of_part >= 2, size + extent.size, part, documents_of_part))
    if not parts[0][0]:
        raise too_few
    return dealt


def make_generator(random_seed, *key):
    """Returns a random generator for a seed and a key (part, block): each key has an independent stream."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(random_seed, spawn_key=key)))


def split_blocks(extents):
    """Splits the extents of a part into blocks of about BLOCK_BYTES with at least two documents each."""
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


def read_documents(extents, paths, tokenizer):
    """Reads and tokenises the documents of `extents`. Skips lines and documents that have no pieces."""
    sentences = []
    sentence_starts = [0]
    document_starts = [0]
    for extent in extents:
        for line in read_extent(extent, paths).split("\n"):
            line = line.strip()
            if line:
                ids = tokenizer.encode(line)
                if ids:
                    sentences.append(ids)
                    sentence_starts.append(sentence_starts[-1] + len(ids) // ID_BYTES)
            elif len(sentences) > document_starts[-1]:
                document_starts.append(len(sentences))
        if len(sentences) > document_starts[-1]:
            document_starts.append(len(sentences))
    ids = np.frombuffer(b"".join(sentences), dtype=np.int32)
    if not tokenizer.marks_runs:
        return Documents(ids, sentence_starts, document_starts)
    continues_word = find_words([sentence_starts[start] for start in document_starts], ids)
    return Documents(ids & (BEGINS_RUN - 1), sentence_starts, document_starts, continues_word)


def find_words(document_starts, marked_ids):
    """Returns bool [tokens]: whether the token is a CJK character that continues a word.

    `marked_ids`: ids from a Tokenizer with `marks_runs`. `document_starts`: token indexes, and the number of tokens.
    In a document with short runs of CJK characters, spaces separate the words and each run is a word. In other
    documents each character is a word.
    """
    continues_run = marked_ids >= CONTINUES_RUN
    if len(continues_run) == 0:
        return continues_run
    runs = np.add.reduceat((marked_ids & BEGINS_RUN) != 0, document_starts[:-1], dtype=np.int64)
    characters = runs + np.add.reduceat(continues_run, document_starts[:-1], dtype=np.int64)
    has_spaces = characters <= LONGEST_MEAN_WORD * runs
    return continues_run & np.repeat(has_spaces, np.diff(document_starts))


def read_extent(extent, paths):
    """Returns the text of an extent. Raises RunError if the file has changed since it was scanned."""
    path = paths[extent.file]
    with open(path, "rb") as file:
        file.seek(extent.offset)
        data = file.read(extent.size)
    try:
        text = decode(data, path, extent.offset)
    except UserError:
        text = ""
    if len(data) < extent.size or not text:
        raise RunError(f"{path}: has changed since it was scanned; run the command again")
    return text
