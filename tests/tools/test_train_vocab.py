"""Tests tools/train_vocab.py: the vocabulary is reproducible and covers its text."""

import os
import re
import resource
import string
import subprocess
import sys
from collections import Counter

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer

import hard_text
import reference_squad
import train_vocab
from in_process import run_in_process
from running import ROOT, assert_fails_with_one_line, run
from terminals import Terminal
from text.tokenization import read_vocab, split_words

pytestmark = pytest.mark.slow

SCRIPT = "tools/train_vocab.py"
CORPUS = ROOT / "dataset/corpus.txt"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_same_bytes_in_every_process(tmp_path):
    # The trainer's own order of pieces depends on the process and on the number of threads.
    found = set()
    for index in range(4):
        environment = os.environ | {"PYTHONHASHSEED": str(index), "RAYON_NUM_THREADS": str(1 + index % 2)}
        path = tmp_path / str(index)
        command = [sys.executable, ROOT / SCRIPT, f"--input_file={CORPUS}", f"--vocab_file={path}", "--vocab_size=1500"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found.add(path.read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_vocabulary_covers_its_text(tmp_path, do_lower_case):
    path = tmp_path / "vocab"
    result = run(SCRIPT, input_file=CORPUS, vocab_file=path, vocab_size=1000, do_lower_case=do_lower_case)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout == f"1000 pieces in {path}\n"
    pieces = path.read_text().splitlines()
    assert len(set(pieces)) == len(pieces) == 1000
    assert pieces[:5] == SPECIAL
    letters = string.ascii_lowercase if do_lower_case else string.ascii_letters
    assert set(letters + string.digits + string.punctuation) <= set(pieces)

    vocab = read_vocab(path)
    used = Counter()
    words = Counter()
    for line in CORPUS.read_text().splitlines():
        used.update(reference_squad.tokenize(line, vocab, do_lower_case))
        words.update(reference_squad.split_words(line, do_lower_case))
    assert used["[UNK]"] == 0
    # An untrained vocabulary would have the characters, too; this one has frequent words as single pieces.
    assert [word for word, _ in words.most_common(100) if word not in vocab] == []
    assert sum(used.values()) < 1.6 * sum(words.values())


def test_min_frequency(tmp_path):
    (tmp_path / "text").write_text("seven seven seven once\n" * 3 + "twelve twelve\n")
    for min_frequency, expected in [(3, {"seven", "once"}), (4, {"seven"}), (1, {"seven", "once", "twelve"})]:
        flags = {"input_file": tmp_path / "text", "vocab_file": tmp_path / "vocab", "min_frequency": min_frequency}
        result = run(SCRIPT, "--overwrite", **flags)
        assert result.returncode == 0, result.stderr
        assert {piece for piece in read_vocab(tmp_path / "vocab") if piece in ("seven", "once", "twelve")} == expected


def test_only_its_own_vocabulary_is_replaced(tmp_path):
    (tmp_path / "text").write_text("seven seven\n")
    flags = {"input_file": tmp_path / "text", "vocab_file": tmp_path / "vocab"}
    (tmp_path / "vocab").write_text("notes\n")
    result = run_in_process(train_vocab.main, SCRIPT, **flags)
    assert_fails_with_one_line(result, "exists already; give another file, or --overwrite")
    result = run_in_process(train_vocab.main, SCRIPT, "--overwrite", **flags)
    assert_fails_with_one_line(result, "is not a vocabulary of this tool")
    assert (tmp_path / "vocab").read_text() == "notes\n"
    (tmp_path / "vocab").unlink()
    for options in ((), ("--overwrite",)):
        assert run_in_process(train_vocab.main, SCRIPT, *options, **flags).returncode == 0


def test_vocab_size_beyond_memory(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, limits[1]))
    try:
        for size in (20_000, 2**31 - 1):
            flags = {"input_file": CORPUS, "vocab_file": tmp_path / f"{size}", "vocab_size": size, "min_frequency": 1}
            assert run(SCRIPT, **flags).returncode == 0
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    # All pieces that the text has.
    assert (tmp_path / "20000").read_bytes() == (tmp_path / f"{2**31 - 1}").read_bytes()


def test_alphabet(tmp_path):
    # Only the most frequent non-ASCII characters become pieces.
    (tmp_path / "text").write_text("中中中 国国 東 øøø øå\nøz 中z\n" + hard_text.EXAMPLES[2] + "\n")
    vocab_file = tmp_path / "vocab"
    result = run(SCRIPT, input_file=tmp_path / "text", vocab_file=vocab_file, alphabet_size=3, do_lower_case=False)
    assert result.returncode == 0
    vocab = read_vocab(vocab_file)
    assert {"中", "国", "ø", "##ø"} <= set(vocab)
    assert not {"東", "å", "##å", "##中"} & set(vocab)
    assert "characters are left out, so" in result.stderr


def test_alphabet_fills_the_vocabulary(tmp_path, monkeypatch):
    """All characters become pieces if there is room, else the most frequent ones."""
    monkeypatch.setattr(train_vocab, "SURE_ALPHABET", 1)
    (tmp_path / "text").write_text("中中中 国国 東 øø" + " word" * 92 + "\n")
    ascii_pieces = 5 + 26 + 10 + len(string.punctuation) + 26 + 10

    def train(size):
        flags = {"input_file": tmp_path / "text", "vocab_file": tmp_path / "vocab", "min_frequency": 1000}
        result = run_in_process(train_vocab.main, SCRIPT, "--overwrite", **flags, vocab_size=ascii_pieces + size)
        assert result.returncode == 0
        pieces = (tmp_path / "vocab").read_text().splitlines()
        assert len(pieces) == int(result.stdout.split()[0])
        return {piece for piece in pieces if not piece.isascii() or piece == "##ø"}, result

    pieces, result = train(100)
    assert pieces == {"中", "国", "東", "ø", "##ø"} and (len(result.stdout.splitlines()), result.stderr) == (1, "")
    pieces, result = train(3)
    assert pieces == {"中", "ø", "##ø"}
    assert (
        "2 characters are left out, so 3.03% of the words of the text become [UNK]" in result.stdout
        and result.stderr == ""
    )
    pieces, result = train(1)
    assert pieces == {"中"} and "left out, so 4.04% of the words" in result.stdout
    (tmp_path / "text").write_text("中中中 国国 東 øø\n")
    pieces, result = train(1)
    assert "train_vocab.py: warning: 3 characters are left out, so 57.14% of the words" in result.stderr


def test_terminal_shows_the_progress_of_merging(tmp_path):
    """The vocabulary is the same as without a terminal."""
    flags = {"input_file": CORPUS, "vocab_size": 2000, "min_frequency": 1}
    terminal = Terminal(SCRIPT, **flags, vocab_file=tmp_path / "terminal")
    assert terminal.status == 0, terminal.output
    assert re.search(r"merging: +\d+%.*<[\d:?]+, .*pieces/s", terminal.output)
    assert terminal.lines[0] == f"2000 pieces in {tmp_path / 'terminal'}"
    assert terminal.lines[1] == "" and terminal.is_left_clean()
    assert run(SCRIPT, **flags, vocab_file=tmp_path / "pipe").returncode == 0
    assert (tmp_path / "pipe").read_bytes() == (tmp_path / "terminal").read_bytes()


def test_pieces_equal_those_of_the_wordpiece_trainer():
    """The tool uses BpeTrainer, because WordPieceTrainer does not report progress."""
    lines = [split_words(line, True) for line in CORPUS.read_text().splitlines()]
    *alphabet, _ = train_vocab.choose_alphabet(*train_vocab.count_characters(lines), 1000, True)
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    trainer = WordPieceTrainer(
        vocab_size=2000,
        min_frequency=2,
        special_tokens=SPECIAL + sum(alphabet, []),
        initial_alphabet=alphabet[0],
        limit_alphabet=len(alphabet[0]),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(" ".join, lines), trainer)
    assert train_vocab.train(lines, *alphabet, 2000, 2) == sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


@pytest.mark.parametrize(
    "content, flags, fragment",
    [
        (b"", {}, "contains no text"),
        (b" \n\n", {}, "contains no text"),
        (b"a\xff\n", {}, "not UTF-8: byte 1 is 0xff"),
        (b"some text\n", {"vocab_size": 50}, "--vocab_size=50 is too small"),
        (b"some text\n", {"vocab_size": 0}, "--vocab_size"),
        (b"some text\n", {"min_frequency": 0}, "--min_frequency"),
        (b"some text\n", {"input_file": "none.txt"}, "--input_file=none.txt: there is no such file"),
        (b"some text\n", {"vocab_file": "/dev/null/vocab"}, "/dev/null/vocab: cannot be written"),
        (b"some text\n", {"vocab_file": ROOT}, f"{ROOT}: is a folder; give a file"),
    ],
)
def test_bad_input(tmp_path, content, flags, fragment):
    (tmp_path / "text").write_bytes(content)
    flags = {"input_file": tmp_path / "text", "vocab_file": tmp_path / "vocab"} | flags
    assert_fails_with_one_line(run(SCRIPT, **flags), fragment)
    assert not (tmp_path / "vocab").exists()
