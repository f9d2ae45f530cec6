"""WordPiece tokenisation with google-research/bert's semantics, to the code point: text -> words -> pieces.

The words are made here, with this Python's own Unicode tables, as google's script makes them; the normalisers of the
`tokenizers` library differ from it in places (the final sigma, unassigned and control characters, the version of
Unicode). The pieces of a word are found by `tokenizers`.
"""

import codecs
import collections
import hashlib
import unicodedata

from tokenizers.models import WordPiece

from system.errors import UserError
from system.input_files import open_input, reading
from system.progress import print_warning

UNKNOWN = "[UNK]"
CLASSIFIER = "[CLS]"
SEPARATOR = "[SEP]"
# A longer word becomes [UNK] whole.
MAX_CHARACTERS_PER_WORD = 200
# Of the pieces of an uncased vocabulary, with capitals or accents: those for other scripts may hold some.
_LARGEST_SHARE_OF_OTHERS = 0.05
# From so many [UNK] among the pieces of a text on, its vocabulary is another text's.
LARGEST_SHARE_OF_UNKNOWN = 0.05
# So many of the characters that are lost are named.
_NAMED_CHARACTERS = 10

# The blocks whose characters are words of their own. Hangul, Hiragana and Katakana are written with spaces or treated
# as if they were.
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
# What ASCII has besides letters, digits and blanks counts as punctuation, also where Unicode calls it a symbol ($, ^).
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def read_pieces(path, name=None):
    """Reads a vocabulary file, one piece a line, into a list: the piece at index i has the id i.

    A line without one is "": it keeps its number, unless it is at the end of the file. Raises UserError if the file
    cannot be read or is not UTF-8; it is called `name` there, or by its path.
    """
    with reading(name or path), open_input(path, newline="\n") as file:
        pieces = [line.strip() for line in file]
    while pieces and not pieces[-1]:
        pieces.pop()
    return pieces


def read_vocab(path, required=(UNKNOWN, CLASSIFIER, SEPARATOR)):
    """The pieces of a vocabulary file as a dict: piece -> id, the number of its line from 0.

    Of a piece that occurs twice the last line counts; an empty line is none. Raises UserError as `read_pieces` does,
    and if one of the `required` pieces is missing.
    """
    vocab = {piece: index for index, piece in enumerate(read_pieces(path, f"--vocab_file={path}")) if piece}
    missing = [piece for piece in required if piece not in vocab]
    if missing:
        raise UserError(f"{path}: not a BERT vocabulary: it has {len(vocab)} pieces, but no {' and no '.join(missing)}")
    return vocab


def vocab_checksum(data):
    """A checksum, in hex digits, of the pieces and their ids in a vocabulary file with the bytes `data`.

    Line ends, blanks around a piece and empty lines at the end make no difference.
    """
    lines = [line.strip() for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def check_case(path, vocab, do_lower_case):
    """Warns if the pieces of `vocab`, read from `path`, do not look as if they were made with this `do_lower_case`."""
    # [UNK] and its like are written in capitals in every vocabulary.
    words = [piece for piece in vocab if not piece.startswith("[")]
    capitals = sum(piece != piece.lower() for piece in words) / max(1, len(words))
    # Korean syllables, say, which NFD takes apart, or the dots of ö. With these, no text gives such a piece.
    composed = [piece for piece in words if _without_accents(piece) != piece]
    has_case = any(piece.upper() != piece.lower() for piece in words)
    keeps_accents = len(composed) > _LARGEST_SHARE_OF_OTHERS * len(words)
    if do_lower_case and capitals > _LARGEST_SHARE_OF_OTHERS:
        problem = f"{capitals:.0%} of the pieces have capital letters, which no text has with --do_lower_case=True"
        remedy = "for a cased model give --do_lower_case=False"
    elif do_lower_case and keeps_accents:
        problem = (
            f"{len(composed) / len(words):.0%} of the pieces, {composed[0]} say, have letters that "
            "--do_lower_case=True takes apart or strips of accents, so no text has them"
        )
        remedy = "give --do_lower_case=False"
        if has_case and not capitals:
            remedy += " and text in lower case, which is how their model was made"
    elif not do_lower_case and has_case and not capitals and not keeps_accents:
        problem = "no piece has a capital letter, so with --do_lower_case=False words that have one become [UNK]"
        remedy = "for an uncased model give --do_lower_case=True"
    else:
        return
    print_warning(f"{path}: {problem}; {remedy}")


def report_unknown(path, unknown, total, lost):
    """Says which share of the pieces of a text is [UNK]: `unknown` of `total`, with the vocabulary read from `path`.

    Warns where that is much. `lost()` then gives a Counter of the characters that are the reason.
    """
    share = unknown / max(1, total)
    print(f"[UNK]: {share:.2%} of {total:,} pieces", flush=True)
    if share >= LARGEST_SHARE_OF_UNKNOWN:
        named = " ".join(character for character, _ in lost().most_common(_NAMED_CHARACTERS))
        print_warning(
            f"{path}: {share:.0%} of the pieces of the text are [UNK], for these characters most often: {named}; the "
            "vocabulary or --do_lower_case is not that of this text"
        )


def count_lost_characters(lines, vocab, do_lower_case):
    """How often each character makes a word of `lines` of text [UNK], as a Counter."""
    tokenizer = Tokenizer(vocab, do_lower_case)
    lost = collections.Counter()
    for line in lines:
        for word in split_words(line, do_lower_case):
            if tokenizer._split_word(word) == [UNKNOWN]:
                lost.update(c for i, c in enumerate(word) if (c if i == 0 else f"##{c}") not in vocab)
    return lost


def split_words(text, do_lower_case):
    """Splits `text` into a list of words, as google-research/bert's BasicTokenizer does.

    Control characters and U+FFFD go, every blank separates, a CJK or punctuation character is a word of its own;
    with `do_lower_case` letters become small and lose their accents (NFD without non-spacing marks).
    """
    text = text.translate(_CLEANED)
    if do_lower_case:
        text = _without_accents(text.lower())
    return text.translate(_PUNCTUATION_APART).split()


def is_cjk(word):
    """Whether a word is one of the characters that are words of their own, whatever stands beside them."""
    return len(word) == 1 and any(first <= ord(word) <= last for first, last in _CJK_BLOCKS)


def _without_accents(text):
    return unicodedata.normalize("NFD", text).translate(_WITHOUT_ACCENTS)


class Tokenizer:
    """Makes word pieces of text. It remembers the pieces of every blank-separated stretch of text it has met."""

    def __init__(self, vocab, do_lower_case):
        """`vocab`: piece -> id, as `read_vocab` gives it."""
        self.vocab = vocab
        self.do_lower_case = do_lower_case
        self._word_piece = WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD)
        self._pieces = {}

    def tokenize(self, text):
        """The pieces of `text`: a list of strings."""
        # No rule looks across a blank, so that the stretches between them can be tokenised, and remembered, singly.
        return [piece for stretch in text.split(" ") for piece in self._pieces_of(stretch)]

    def _pieces_of(self, stretch):
        pieces = self._pieces.get(stretch)
        if pieces is None:
            words = split_words(stretch, self.do_lower_case)
            pieces = self._pieces[stretch] = tuple(piece for word in words for piece in self._split_word(word))
        return pieces

    def _split_word(self, word):
        try:
            return [token.value for token in self._word_piece.tokenize(word)]
        except UnicodeEncodeError:
            # JSON can express half a surrogate pair, which no vocabulary can hold.
            return [UNKNOWN]


class _CharacterTable(dict):
    """A table for str.translate that asks `replacement(character)` for each character when it is first met."""

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
