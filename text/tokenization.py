"""WordPiece tokenisation, identical to google-research/bert's: text -> words -> pieces.

Text is split into words here, with Python's Unicode tables, as in Google's script: the normalisers of the `tokenizers`
library treat the final sigma, unassigned characters and control characters differently and have another version of
Unicode. `tokenizers` splits words into pieces.
"""

import codecs
import collections
import hashlib
import unicodedata
from array import array

from tokenizers.models import WordPiece

from system.errors import UserError
from system.input_files import open_input, reading
from system.progress import print_warning

UNKNOWN = "[UNK]"
CLASSIFIER = "[CLS]"
MASK = "[MASK]"
SEPARATOR = "[SEP]"
# A longer word becomes a single [UNK].
MAX_CHARACTERS_PER_WORD = 200
# An uncased vocabulary may hold this share of pieces with capitals or accents, from other scripts.
_LARGEST_SHARE_OF_OTHERS = 0.05
# A larger share of [UNK] means that the vocabulary does not belong to the text.
LARGEST_SHARE_OF_UNKNOWN = 0.05
# The most characters that a message lists.
_MAX_LISTED = 10
# Each tokeniser caches this many words and stretches of text, about 100 bytes each.
MAX_CACHED = 1 << 18
MAX_CACHED_CHARACTERS = 32
# Flags that a Tokenizer with `marks_runs` adds to the ids of CJK characters.
BEGINS_RUN = 1 << 29
CONTINUES_RUN = 1 << 30

# Each character of these blocks is a word. Hangul, Hiragana and Katakana are split at spaces like other scripts.
_CJK_BLOCKS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
# BERT treats ASCII symbols ($, ^) as punctuation, unlike Unicode.
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def read_pieces(path, name=None):
    """Reads a vocabulary file, one piece per line. Returns a list: the index of a piece is its id.

    An empty line is the piece "" and takes an id, except at the end of the file. Raises UserError, naming `name` or the
    path, if the file cannot be read or is not UTF-8.
    """
    with reading(name or path), open_input(path, newline="\n") as file:
        pieces = [line.strip() for line in file]
    while pieces and not pieces[-1]:
        pieces.pop()
    return pieces


def read_vocab(path, required=(UNKNOWN, CLASSIFIER, SEPARATOR)):
    """Reads a vocabulary file into a dict: piece -> id, its line number from 0.

    The last line of a repeated piece counts; empty lines are skipped. Raises UserError like `read_pieces`, and if a
    `required` piece is missing.
    """
    vocab = {piece: index for index, piece in enumerate(read_pieces(path, f"--vocab_file={path}")) if piece}
    missing = [piece for piece in required if piece not in vocab]
    if missing:
        raise UserError(f"{path}: not a BERT vocabulary: it has {len(vocab)} pieces, but no {' and no '.join(missing)}")
    return vocab


def vocab_checksum(data):
    """Returns the SHA-256, in hex digits, of the pieces in the bytes of a vocabulary file.

    Ignores the kind of line end, white space around pieces and empty lines at the end.
    """
    lines = [line.strip() for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def check_case(path, vocab, do_lower_case):
    """Warns if the pieces of `vocab`, read from `path`, do not fit `do_lower_case`."""
    # [UNK] and other special pieces have capitals in every vocabulary.
    words = [piece for piece in vocab if not piece.startswith("[")]
    capitals = sum(piece != piece.lower() for piece in words) / max(1, len(words))
    # Pieces that NFD decomposes, such as Korean syllables and ö. Uncased text never has them.
    composed = [piece for piece in words if _without_accents(piece) != piece]
    has_case = any(piece.upper() != piece.lower() for piece in words)
    keeps_accents = len(composed) > _LARGEST_SHARE_OF_OTHERS * len(words)
    if do_lower_case and capitals > _LARGEST_SHARE_OF_OTHERS:
        problem = f"{capitals:.0%} of the pieces have capital letters, which --do_lower_case=True removes from text"
        remedy = "for a cased model give --do_lower_case=False"
    elif do_lower_case and keeps_accents:
        problem = (
            f"{len(composed) / len(words):.0%} of the pieces, such as {composed[0]}, have letters that "
            "--do_lower_case=True decomposes or strips of accents"
        )
        remedy = "give --do_lower_case=False"
        if has_case and not capitals:
            remedy += " and lower-case text"
    elif not do_lower_case and has_case and not capitals and not keeps_accents:
        problem = "no piece has a capital letter, so with --do_lower_case=False capitalised words become [UNK]"
        remedy = "for an uncased model give --do_lower_case=True"
    else:
        return
    print_warning(f"{path}: {problem}; {remedy}")


def report_unknown(path, unknown, total, lines, vocab, do_lower_case):
    """Prints the share of [UNK] in a text, `unknown` of `total` pieces. Warns if it is large, naming the vocabulary.

    `lines`: an iterable over the text, read only for the warning, which names the characters that caused [UNK].
    """
    print(f"[UNK]: {unknown / max(1, total):.2%} of {total:,} pieces", flush=True)
    warn_of_unknown(path, unknown, total, lines, vocab, do_lower_case)


def warn_of_unknown(path, unknown, total, lines, vocab, do_lower_case):
    """The warning of report_unknown, which has the same arguments."""
    share = unknown / max(1, total)
    if share >= LARGEST_SHARE_OF_UNKNOWN:
        lost = _count_lost_characters(lines, vocab, do_lower_case)
        listed = " ".join(character for character, _ in lost.most_common(_MAX_LISTED))
        print_warning(
            f"{path}: {share:.0%} of the pieces of the text are [UNK], most often because of {listed}; the "
            "vocabulary or --do_lower_case does not fit this text"
        )


def _count_lost_characters(lines, vocab, do_lower_case):
    """Returns a Counter of the characters that turn words of `lines` into [UNK]."""
    tokenizer = Tokenizer(vocab, do_lower_case)
    lost = collections.Counter()
    for line in lines:
        for word in split_words(line, do_lower_case):
            if tokenizer.tokenize_word(word) == tokenizer.unknown:
                lost.update(c for i, c in enumerate(word) if (c if i == 0 else f"##{c}") not in vocab)
    return lost


def split_words(text, do_lower_case):
    """Splits `text` into a list of words, like google-research/bert's BasicTokenizer.

    Removes control characters and U+FFFD; splits at white space; each CJK or punctuation character is a word. With
    `do_lower_case`, lower-cases and strips accents (NFD without non-spacing marks).
    """
    text = text.translate(_CLEANED)
    if do_lower_case:
        text = _without_accents(text.lower())
    return text.translate(_PUNCTUATION_APART).split()


def is_cjk(word):
    """Whether a word is a single CJK character."""
    return len(word) == 1 and any(first <= ord(word) <= last for first, last in _CJK_BLOCKS)


def _without_accents(text):
    return unicodedata.normalize("NFD", text).translate(_WITHOUT_ACCENTS)


class Tokenizer(dict):
    """Splits text into word pieces. The dict caches: stretch of text without a space -> its ids, int32 bytes.

    No tokenisation rule looks across a space. Most stretches are words that have been seen before, so tokenising is
    mostly dict lookups and joining bytes. With `marks_runs`, the ids of CJK characters carry BEGINS_RUN or
    CONTINUES_RUN.
    """

    def __init__(self, vocab, do_lower_case, marks_runs=False):
        """`vocab`: piece -> id, from `read_vocab`."""
        super().__init__()
        self.vocab = vocab
        self.marks_runs = marks_runs
        self.unknown = array("i", [vocab[UNKNOWN]]).tobytes()
        self._do_lower_case = do_lower_case
        self._pieces = {index: piece for piece, index in vocab.items()}
        self._model = WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD)
        self._ids_of_words = {}

    def encode(self, text):
        """Returns the ids of the pieces of `text` as int32 bytes."""
        return b"".join(map(self.__getitem__, text.split(" ")))

    def tokenize(self, text):
        """Returns the pieces of `text`, a list of strings. Only without `marks_runs`."""
        return [self._pieces[index] for index in array("i", self.encode(text))]

    def tokenize_word(self, word):
        """Returns the ids of the pieces of a word from `split_words`, as int32 bytes."""
        ids = self._ids_of_words.get(word)
        if ids is None:
            try:
                ids = array("i", [token.id for token in self._model.tokenize(word)]).tobytes()
            except UnicodeEncodeError:
                # JSON can hold half a surrogate pair; a vocabulary cannot.
                ids = self.unknown
            _cache(self._ids_of_words, word, ids)
        return ids

    def __missing__(self, stretch):
        words = split_words(stretch, self._do_lower_case)
        if self.marks_runs and any(map(is_cjk, words)):
            ids = self._mark_runs(words)
        else:
            ids = b"".join(map(self.tokenize_word, words))
        _cache(self, stretch, ids)
        return ids

    def _mark_runs(self, words):
        ids = array("i")
        continues = False
        for word in words:
            first = len(ids)
            ids.frombytes(self.tokenize_word(word))
            if is_cjk(word):
                ids[first] |= CONTINUES_RUN if continues else BEGINS_RUN
            continues = is_cjk(word)
        return ids.tobytes()


def _cache(entries, key, value):
    # Chinese text has no spaces: its stretches are whole lines, which rarely recur.
    if len(key) <= MAX_CACHED_CHARACTERS:
        if len(entries) >= MAX_CACHED:
            entries.clear()
        entries[key] = value


class _CharacterTable(dict):
    """A table for str.translate that caches `replacement(character)`."""

    def __init__(self, replacement):
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code_point):
        self[code_point] = text = self._replacement(chr(code_point))
        return text


def _clean(character):
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf"):
        return ""
    return f" {character} " if is_cjk(character) else character


def _strip_accent(character):
    return "" if unicodedata.category(character) == "Mn" else character


def _set_punctuation_apart(character):
    is_punctuation = character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")
    return f" {character} " if is_punctuation else character


_CLEANED = _CharacterTable(_clean)
_WITHOUT_ACCENTS = _CharacterTable(_strip_accent)
_PUNCTUATION_APART = _CharacterTable(_set_punctuation_apart)
