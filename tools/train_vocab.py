"""Trains a WordPiece vocabulary on text with the `tokenizers` library.

The same text and flags always give the same vocabulary. The library alone would number the continuation characters
(##a, ##b, ...) in an order that changes from run to run, and break ties between pairs accordingly; so they are passed
to it in sorted order.
"""

import suite  # noqa: F401

# isort: split

import contextlib
import json
import os
import string
import sys
import threading
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from system import signals
from system.command_line import ArgumentParser, add_bool, add_number, positive_int
from system.errors import UserError, one_line
from system.input_files import find_files, open_input
from system.output_files import atomic_file, check_can_write, check_is_no_input
from system.progress import bars_are_shown, end_in_place_of_bars, print_warning, progress_bar
from text.pretraining_text import read_lines
from text.tokenization import LARGEST_SHARE_OF_UNKNOWN, split_words
from util import run_script

# This many non-ASCII characters become pieces; more only if there is room.
SURE_ALPHABET = 1000
SPECIAL_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL_LINES = "".join(f"{piece}\n" for piece in SPECIAL_PIECES).encode()


def main():
    arguments = parse_arguments()
    paths = find_files("--input_file", [arguments.input_file])
    check_can_write("--vocab_file", arguments.vocab_file)
    check_is_no_input(arguments.vocab_file, paths)
    check_vocab_file(arguments)
    heads, tails = count_characters(read_words(paths, arguments.do_lower_case))
    if not heads:
        raise UserError(f"--input_file={arguments.input_file}: contains no text")
    size = arguments.alphabet_size or SURE_ALPHABET
    *alphabet, left_out = choose_alphabet(heads, tails, size, arguments.do_lower_case)
    single = len(SPECIAL_PIECES) + sum(map(len, alphabet))
    if single > arguments.vocab_size:
        raise UserError(
            f"--vocab_size={arguments.vocab_size} is too small: there are {single} special pieces and single "
            "characters; give at least that, or a smaller --alphabet_size"
        )
    lines = read_words(paths, arguments.do_lower_case)
    # Each further piece merges two within a word, which bounds their number. The library allocates memory for
    # vocab_size pieces at once and aborts if it fails.
    vocab_size = min(arguments.vocab_size, single + tails.total())
    pieces = train(lines, *alphabet, vocab_size, arguments.min_frequency)
    if arguments.alphabet_size is None:
        left_out = fill(pieces, left_out, tails, arguments.vocab_size)
    with atomic_file(arguments.vocab_file, "w", encoding="utf-8") as file:
        file.writelines(piece + "\n" for piece in pieces)
    print(f"{len(pieces)} pieces in {arguments.vocab_file}")
    if left_out:
        report_left_out(read_words(paths, arguments.do_lower_case), left_out)


def parse_arguments():
    parser = ArgumentParser(description="Trains a WordPiece vocabulary on text.")
    parser.add_argument(
        "--input_file", required=True, metavar="FILES", help="text files: names or patterns, separated by commas"
    )
    parser.add_argument("--vocab_file", required=True, type=Path, metavar="FILE", help="vocabulary to write")
    add_bool(parser, "--overwrite", help="replace a vocabulary that this tool has made")
    add_number(parser, "--vocab_size", positive_int, 30522, "maximum number of pieces")
    add_bool(parser, "--do_lower_case", default=True, help="lower-case the text and strip accents, for uncased models")
    add_number(parser, "--min_frequency", positive_int, 2, "minimum number of occurrences of a piece")
    text = "number of non-ASCII characters, the most frequent ones, that become pieces; words with others are [UNK] "
    text += f"(default: {SURE_ALPHABET}, and more if --vocab_size has room)"
    add_number(parser, "--alphabet_size", positive_int, None, text)
    return parser.parse_args()


def check_vocab_file(arguments):
    """Raises UserError if --vocab_file exists, unless this tool made it and --overwrite is given."""
    path = arguments.vocab_file
    if not path.is_file():
        return
    if not arguments.overwrite:
        raise UserError(f"--vocab_file={path}: exists already; give another file, or --overwrite to replace it")
    with open_input(path, "rb") as file:
        beginning = file.read(len(SPECIAL_LINES))
    if beginning != SPECIAL_LINES:
        raise UserError(f"--vocab_file={path}: is not a vocabulary of this tool, so --overwrite does not replace it")


def read_words(paths, do_lower_case):
    """Yields a list of the words of each line."""
    for path in paths:
        with progress_bar(
            total=os.path.getsize(path), desc=one_line(path), unit="B", unit_scale=True, leave=False
        ) as bar:
            for line, _ in read_lines(path, lambda data: bar.update(len(data))):
                yield split_words(line, do_lower_case)


def count_characters(lines):
    """Counts characters. Returns two Counters: first characters of words, and all other characters."""
    heads = Counter()
    tails = Counter()
    for words in lines:
        heads.update(word[0] for word in words)
        tails.update("".join(word[1:] for word in words))
    return heads, tails


def choose_alphabet(heads, tails, size, do_lower_case):
    """Chooses the single characters of the vocabulary.

    Returns (sorted characters that become pieces, their continuation pieces (##a), the other characters by frequency).
    The pieces are all of ASCII, so that punctuation missing from the text is not unknown, and the `size` most frequent
    other characters.
    """
    letters = string.ascii_lowercase if do_lower_case else string.ascii_letters
    ascii_alphabet = set(letters + string.digits + string.punctuation)
    totals = heads + tails
    others = sorted(totals.keys() - ascii_alphabet, key=lambda character: (-totals[character], character))
    characters = sorted(ascii_alphabet.union(others[:size]))
    continuing = set(letters + string.digits).union(tails)
    return characters, ["##" + character for character in characters if character in continuing], others[size:]


def fill(pieces, characters, tails, vocab_size):
    """Appends `characters` to the list `pieces` up to `vocab_size`; returns those that do not fit.

    A character in `tails` continues a word and needs a second piece (##a).
    """
    for index, character in enumerate(characters):
        new = [character, f"##{character}"] if character in tails else [character]
        if len(pieces) + len(new) > vocab_size:
            return characters[index:]
        pieces += new
    return []


def report_left_out(lines, left_out):
    """Prints the share of the words in `lines`, lists of words, that become [UNK] without the characters `left_out`."""
    is_known = frozenset(left_out).isdisjoint
    known = words = 0
    for line in lines:
        words += len(line)
        known += sum(map(is_known, line))
    share = 1 - known / words
    text = (
        f"{len(left_out):,} characters are left out, so {share:.2%} of the words of the text become [UNK]; a "
        "larger --vocab_size or --alphabet_size includes more"
    )
    if share < LARGEST_SHARE_OF_UNKNOWN:
        print(text)
    else:
        print_warning(text)


def train(lines, characters, continuations, vocab_size, min_frequency):
    """Trains a vocabulary on `lines`, lists of words. Returns the pieces in the order of their ids."""
    # The same algorithm as the library's WordPieceTrainer, which does not report progress.
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=SPECIAL_PIECES + characters + continuations,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix="##",
        progress_format="json" if bars_are_shown() else "silent",
    )
    # The library does not return for minutes while it merges.
    with show_merges() if bars_are_shown() else contextlib.nullcontext(), signals.end_from_thread(end_in_place_of_bars):
        tokenizer.train_from_iterator((" ".join(words) for words in lines), trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


@contextlib.contextmanager
def show_merges():
    """Shows a progress bar for the library's merging, which it reports on stderr, within the block."""
    sys.stderr.flush()
    terminal = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)
    with (
        open(read_end, errors="replace") as lines,
        open(terminal, "w", buffering=1, errors="backslashreplace") as stderr,
    ):
        with contextlib.redirect_stderr(stderr):
            thread = threading.Thread(target=draw_merges, args=(lines,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                # Closes the pipe's last write end, which ends the thread.
                os.dup2(terminal, 2)
                thread.join()


def draw_merges(lines):
    """Draws a bar from the library's progress lines, JSON objects with the keys stage, current and total."""
    with contextlib.ExitStack() as stack:
        bar = None
        for line in lines:
            try:
                progress = json.loads(line)
            except ValueError:
                sys.stderr.write(line)
                continue
            if progress["stage"] != "Compute merges":
                continue
            if bar is None:
                bar = stack.enter_context(
                    progress_bar(total=progress["total"], desc="merging", unit=" pieces", unit_scale=True, leave=False)
                )
            bar.update(progress["current"] - bar.n)


if __name__ == "__main__":
    run_script(main)
