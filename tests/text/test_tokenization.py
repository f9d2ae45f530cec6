"""Tests text/tokenization.py against the simple implementation in reference_squad.py, on hard text."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hard_text
import reference_squad
from system.errors import UserError
from text.tokenization import Tokenizer, check_case, read_pieces, read_vocab, split_words


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_every_character_alone_and_within_a_word(do_lower_case):
    for code_point in range(sys.maxunicode + 1):
        character = chr(code_point)
        # The reference takes 20 microseconds per character: elsewhere, test one character in eight.
        if code_point < 0x3000 or 0xA000 <= code_point < 0xAC00 or code_point % 8 == 0:
            text = character + "A" + character
            expected = list(reference_squad.split_words(text, do_lower_case))
            assert split_words(text, do_lower_case) == expected, hex(code_point)


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("text", hard_text.EXAMPLES)
def test_pieces_of_hard_text(text, do_lower_case):
    tokenizer = Tokenizer(hard_text.VOCAB, do_lower_case)
    expected = reference_squad.tokenize(text, hard_text.VOCAB, do_lower_case)
    assert tokenizer.tokenize(text) == expected
    assert tokenizer.tokenize(text) == expected, "the cached pieces differ"


@settings(max_examples=400, deadline=None)
@given(hard_text.texts, st.booleans())
def test_pieces_of_any_text(text, do_lower_case):
    tokenizer = Tokenizer(hard_text.VOCAB, do_lower_case)
    assert tokenizer.tokenize(text) == reference_squad.tokenize(text, hard_text.VOCAB, do_lower_case)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=20), st.text("ab ", max_size=60))
def test_longest_match_first_with_any_vocabulary(entries, text):
    pieces = ["[UNK]", *entries, *("##" + entry for entry in entries)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    assert Tokenizer(vocab, True).tokenize(text) == reference_squad.tokenize(text, vocab, True)


def test_words_as_published():
    assert split_words("John Johanson's, \tHOUSE", True) == ["john", "johanson", "'", "s", ",", "house"]
    assert split_words("Zoë 中国x", False) == ["Zoë", "中", "国", "x"]
    vocab = {"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3}
    assert Tokenizer(vocab, True).tokenize("unaffable unaffabler") == ["un", "##aff", "##able", "[UNK]"]


def test_vocabulary_file(tmp_path):
    path = tmp_path / "vocab.txt"
    # A byte order mark, a Windows line end, white space around a piece, U+2028 within one, an empty line, no line end.
    path.write_bytes("\ufeff[PAD]\r\n  [CLS]\t\n[SEP]\na\u2028b\n\n[UNK]".encode())
    assert read_vocab(path) == {"[PAD]": 0, "[UNK]": 5, "[CLS]": 1, "[SEP]": 2, "a\u2028b": 3}


def test_empty_lines_of_a_vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[UNK]\n[CLS]\n\n[SEP]\na\n\n \r\n\n")
    assert read_pieces(path) == ["[UNK]", "[CLS]", "", "[SEP]", "a"]
    assert read_vocab(path) == {"[UNK]": 0, "[CLS]": 1, "[SEP]": 3, "a": 4}


@pytest.mark.parametrize(
    "content, fragment",
    [
        (b"", "0 pieces"),
        (b"[UNK]\n[CLS]\n", "no [SEP]"),
        (b"[UNK]\n\xff\n", "not UTF-8"),
    ],
)
def test_invalid_vocabulary(tmp_path, content, fragment):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as error:
        read_vocab(path)
    assert fragment in str(error.value)


def test_unreadable_vocabulary(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=f"vocab_file.*{path}"):
            read_vocab(path)


class TestCase:
    """A --do_lower_case that does not fit the vocabulary is usually a mistake and makes predictions bad."""

    CASED = {"[UNK]": 0, "The": 1, "old": 2, "Zoë": 3}
    UNCASED = {"[UNK]": 0, "the": 1, "old": 2, "中": 3}

    def warning(self, capsys, vocab, do_lower_case):
        check_case("vocab.txt", vocab, do_lower_case)
        return capsys.readouterr().err

    def test_a_cased_vocabulary(self, capsys):
        text = self.warning(capsys, self.CASED, True)
        assert "warning: vocab.txt: 67% of the pieces have capital letters" in text
        assert "give --do_lower_case=False" in text and len(text.splitlines()) == 1
        assert self.warning(capsys, self.CASED, False) == ""

    def test_an_uncased_vocabulary(self, capsys):
        text = self.warning(capsys, self.UNCASED, False)
        assert "warning: vocab.txt: no piece has a capital letter" in text and "give --do_lower_case=True" in text
        assert self.warning(capsys, self.UNCASED, True) == ""

    KOREAN = {"[UNK]": 0, "등": 1, "##대": 2, ".": 3}

    def test_composed_syllables(self, capsys):
        text = self.warning(capsys, self.KOREAN, True)
        assert "67% of the pieces, such as 등, have letters that --do_lower_case=True decomposes" in text
        assert text.endswith("strips of accents; give --do_lower_case=False\n")
        assert self.warning(capsys, self.KOREAN, False) == "", "a script without capitals is not an uncased vocabulary"

    def test_small_letters_with_accents(self, capsys):
        text = self.warning(capsys, {"[UNK]": 0, "möchte": 1, "bären": 2, "und": 3}, True)
        assert "give --do_lower_case=False and lower-case text" in text
        assert self.warning(capsys, {"[UNK]": 0, "möchte": 1, "Bären": 2, "und": 3}, False) == ""

    def test_a_few_capitals_do_not_make_a_cased_vocabulary(self, capsys):
        assert self.warning(capsys, {**{f"piece{index}": index for index in range(99)}, "A": 99}, True) == ""
