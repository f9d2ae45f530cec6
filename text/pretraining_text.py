"""The text of pre-training data: checking, dealing out and tokenising documents.

A document is a run of lines, one sentence each, between blank lines or the ends of a file. No function here holds more
of a corpus than a block of documents.
"""

import hashlib
import heapq
from array import array
from typing import NamedTuple

import numpy as np
from tokenizers.models import WordPiece

from system.errors import RunError, UserError
from text.pretraining_instances import Documents
from text.tokenization import MAX_CHARACTERS_PER_WORD, UNKNOWN, is_cjk, split_words

READ_BYTES = 1 << 20
# A longer line or document is taken for a file that is not in the format, before it fills the memory.
MAX_LINE_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 256 << 20
EXTENT_BYTES = 64 << 10
MAX_EXTENTS = 1 << 16
# In a small input, extents are made so small that a part still gets so many.
EXTENTS_PER_PART = 128
BLOCK_BYTES = 32 << 20
# So many words, and stretches of text, have their ids remembered: about 100 bytes each.
MAX_REMEMBERED = 1 << 18
MAX_REMEMBERED_CHARACTERS = 32
ID_BYTES = 4
# Added to the id of a CJK character, where words are masked whole: it begins a run of such characters, or goes on one.
BEGINS_RUN = 1 << 29
GOES_ON_RUN = 1 << 30
# In Chinese text with blanks between the words a run is a word, of hardly two characters on average; else a clause.
LONGEST_MEAN_WORD = 3


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
    lone_sentences: int  # documents of one sentence


def choose_extent_bytes(input_bytes, part_num):
    """The size of an extent, small enough to give each part a share of all of the input."""
    return max(min(EXTENT_BYTES, input_bytes // (EXTENTS_PER_PART * part_num)), input_bytes // MAX_EXTENTS)


def scan_file(file, path, extent_bytes, report):
    """Checks an input file and finds its extents, each of `extent_bytes` at least but for the last.

    Returns (file, FileScan); calls `report` with the number of bytes as they are read. Raises UserError for what is
    not UTF-8 or not in lines and documents of a reasonable size.
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
    """Yields (offset of its end in bytes, number of sentences) of every document of a file.

    Raises UserError if one is too long to be a document.
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
    """Yields every line of a file as (text, size in bytes with its line end); calls `on_data` with all bytes read.

    Raises UserError if a line is not UTF-8 or too long to be one.
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
        # The last line of a file need not have a line end.
        yield decode(rest, path, offset), len(rest)


def decode(data, path, offset):
    """The text of `data`, which stands at byte `offset` of the file; raises UserError if it is not UTF-8.

    A byte order mark at the beginning of the file is no part of it.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: byte {offset + error.start} is {data[error.start]:#04x}") from None
    return text if offset else text.removeprefix("\ufeff")


def deal_extents(extents, part_num, random_seed):
    """Deals the extents, in random order, to the parts, of which each gets about the same number of bytes.

    Returns a list of extents for every part. Raises UserError if there are not two documents for every part.
    """
    documents = sum(extent.documents for extent in extents)
    too_few = UserError(
        f"--part_num={part_num}: {documents} documents are too few, or too unequal, as every part needs two; "
        "give a smaller --part_num"
    )
    # Before anything is made for each of so many parts.
    if documents < 2 * part_num:
        raise too_few
    dealt = [[] for _ in range(part_num)]
    # (whether the part has two documents, bytes, part, documents): the first of the heap is the most needy.
    parts = [(False, 0, part, 0) for part in range(part_num)]
    for index in make_generator(random_seed).permutation(len(extents)):
        _, size, part, of_part = parts[0]
        extent = extents[index]
        dealt[part].append(extent)
        of_part += extent.documents
        heapq.heapreplace(parts, (of_part >= 2, size + extent.size, part, of_part))
    if not parts[0][0]:
        raise too_few
    return dealt


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


class StretchIds(dict):
    """Stretch of text without a space -> the ids of its pieces, packed as int32; made when it is first asked for.

    No rule of the tokenisation looks across a space. Most stretches are words that have been seen before, so that
    tokenising is mostly looking up and joining bytes. With `marks_runs` the ids of CJK characters have BEGINS_RUN or
    GOES_ON_RUN added.
    """

    def __init__(self, vocab, do_lower_case, marks_runs=False):
        super().__init__()
        self.marks_runs = marks_runs
        self.unknown = vocab[UNKNOWN]
        self._do_lower_case = do_lower_case
        self._model = WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD)
        self._ids_of_words = {}

    def __missing__(self, stretch):
        words = split_words(stretch, self._do_lower_case)
        ids = b"".join([self._ids_of_word(word) for word in words])
        if self.marks_runs and any(map(is_cjk, words)):
            ids = self._mark_runs(words)
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

    def _mark_runs(self, words):
        ids = array("i")
        follows = False
        for word in words:
            first = len(ids)
            ids.frombytes(self._ids_of_word(word))
            if is_cjk(word):
                ids[first] |= GOES_ON_RUN if follows else BEGINS_RUN
            follows = is_cjk(word)
        return ids.tobytes()


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
    ids = np.frombuffer(b"".join(sentences), dtype=np.int32)
    if not tokenizer.marks_runs:
        return Documents(ids, sentence_starts, document_starts)
    goes_on = find_words([sentence_starts[start] for start in document_starts], ids)
    return Documents(ids & (BEGINS_RUN - 1), sentence_starts, document_starts, goes_on)


def find_words(document_starts, marked_ids):
    """Whether a token goes on a word of several CJK characters, bool [tokens], from ids as StretchIds marks them.

    A run of CJK characters is a word in documents with blanks between the words, which are known by their short runs;
    in others each character is a word. `document_starts` are indices of tokens, the last one is the number of all.
    """
    goes_on = marked_ids >= GOES_ON_RUN
    if len(goes_on) == 0:
        return goes_on
    runs = np.add.reduceat((marked_ids & BEGINS_RUN) != 0, document_starts[:-1], dtype=np.int64)
    characters = runs + np.add.reduceat(goes_on, document_starts[:-1], dtype=np.int64)
    has_blanks = characters <= LONGEST_MEAN_WORD * runs
    return goes_on & np.repeat(has_blanks, np.diff(document_starts))


def read_extent(extent, paths):
    """The text of an extent; raises RunError if the file has changed since it was scanned."""
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
