"""Trains a WordPiece vocabulary on text, with the `tokenizers` library.

The same text and flags give the same bytes, in every process: the library numbers the single characters within words
(##a, ##b, ...) in an order that changes from run to run, and so breaks ties between pairs differently; here they are
given to it in sorted order.
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
from system.command_line import ArgumentParser, add_bool, positive_int
from system.errors import UserError, one_line
from system.input_files import find_files, open_input
from system.output_files import atomic_file, check_can_write, check_is_no_input
from system.progress import bars_are_shown, end_in_place_of_bars, print_warning, progress_bar
from text.pretraining_text import read_lines
from text.tokenization import LARGEST_SHARE_OF_UNKNOWN, split_words
from util import run_script

# So many characters beside ASCII become pieces; more only where there is room.
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
        raise UserError(f"--input_file={arguments.input_file}: there is no text in it")
    size = arguments.alphabet_size or SURE_ALPHABET
    *alphabet, left_out = choose_alphabet(heads, tails, size, arguments.do_lower_case)
    single = len(SPECIAL_PIECES) + sum(map(len, alphabet))
    if single > arguments.vocab_size:
        raise UserError(
            f"--vocab_size={arguments.vocab_size} is too small: the special pieces and the single characters are "
            f"{single}; give at least that, or a smaller --alphabet_size"
        )
    lines = read_words(paths, arguments.do_lower_case)
    # Each further piece joins two within a word. The library takes memory for as many as it is told of, or aborts.
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
    parser.add_argument("--vocab_file", required=True, type=Path, metavar="FILE", help="the vocabulary to write")
    add_bool(parser, "--overwrite", help="replace a vocabulary that this tool has made")
    parser.add_argument("--vocab_size", type=positive_int, default=30522, metavar="N", help="pieces at most")
    add_bool(parser, "--do_lower_case", default=True, help="lower-case the text and strip accents (an uncased model)")
    parser.add_argument(
        "--min_frequency", type=positive_int, default=2, metavar="N", help="how often a piece occurs at least"
    )
    parser.add_argument(
        "--alphabet_size",
        type=positive_int,
        metavar="N",
        help="how many characters beside ASCII, the most frequent ones, become pieces; words with others are [UNK] "
        f"(default: {SURE_ALPHABET}, and more where --vocab_size leaves room)",
    )
    return parser.parse_args()


def check_vocab_file(arguments):
    """Raises UserError if --vocab_file exists, unless it is a vocabulary and --overwrite is given."""
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
    """Yields the words of every line, a list."""
    for path in paths:
        with progress_bar(
            total=os.path.getsize(path), desc=one_line(path), unit="B", unit_scale=True, leave=False
        ) as bar:
            for line, _ in read_lines(path, lambda data: bar.update(len(data))):
                yield split_words(line, do_lower_case)


def count_characters(lines):
    """How often each character occurs: Counters of those at the head of a word, and of those further on."""
    heads = Counter()
    tails = Counter()
    for words in lines:
        heads.update(word[0] for word in words)
        tails.update("".join(word[1:] for word in words))
    return heads, tails


def choose_alphabet(heads, tails, size, do_lower_case):
    """The characters that become pieces, sorted; the pieces (##a) of those that go on a word; the others, left out.

    The first are those of ASCII, so that no punctuation mark is unknown only because the text lacks it, and the `size`
    most frequent others. The last are in the order of their frequency.
    """
    letters = string.ascii_lowercase if do_lower_case else string.ascii_letters
    ascii_alphabet = set(letters + string.digits + string.punctuation)
    totals = heads + tails
    others = sorted(totals.keys() - ascii_alphabet, key=lambda character: (-totals[character], character))
    characters = sorted(ascii_alphabet.union(others[:size]))
    continuing = set(letters + string.digits).union(tails)
    return characters, ["##" + character for character in characters if character in continuing], others[size:]


def fill(pieces, characters, tails, vocab_size):
    """Adds to the list `pieces` those of the `characters` that `vocab_size` leaves room for; returns the others.

    `tails` has the characters that go on a word, and so need a second piece (##a).
    """
    for index, character in enumerate(characters):
        new = [character, f"##{character}"] if character in tails else [character]
        if len(pieces) + len(new) > vocab_size:
            return characters[index:]
        pieces += new
    return []


def report_left_out(lines, left_out):
    """Says which share of the words, of which `lines` are lists, become [UNK] for the characters that are left out."""
    is_known = frozenset(left_out).isdisjoint
    known = words = 0
    for line in lines:
        words += len(line)
        known += sum(map(is_known, line))
    share = 1 - known / words
    text = (
        f"{len(left_out):,} characters are left out, for which {share:.2%} of the words of the text become [UNK]; a "
        "larger --vocab_size, or --alphabet_size, takes in more"
    )
    if share < LARGEST_SHARE_OF_UNKNOWN:
        print(text)
    else:
        print_warning(text)


def train(lines, characters, continuations, vocab_size, min_frequency):
    """The pieces of a vocabulary trained on `lines` of words, in the order of their ids."""
    # What the library's trainer for WordPiece does. This one tells how far it is.
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
    # Merging, the library does not return for minutes.
    with show_merges() if bars_are_shown() else contextlib.nullcontext(), signals.end_from_thread(end_in_place_of_bars):
        tokenizer.train_from_iterator((" ".join(words) for words in lines), trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


@contextlib.contextmanager
def show_merges():
    """Within the block a bar shows how far the library has come with merging pieces, which it tells on stderr."""
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
                # Nobody has the pipe open any more, which ends the thread.
                os.dup2(terminal, 2)
                thread.join()


def draw_merges(lines):
    """Draws a bar from the library's lines, JSON objects that tell the stage, and how much of it is done and to do."""
    with contextlib.ExitStack() as stack:
        bar = None
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                sys.stderr.write(line)
                continue
            if told["stage"] != "Compute merges":
                continue
            if bar is None:
                bar = stack.enter_context(
                    progress_bar(total=told["total"], desc="merging", unit=" pieces", unit_scale=True, leave=False)
                )
            bar.update(told["current"] - bar.n)


if __name__ == "__main__":
    run_script(main)
