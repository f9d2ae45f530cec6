"""Makes text for tools/create_pretraining_data.py from a dump of Wikipedia: one sentence a line, blank lines between.

Reads *-pages-articles.xml.bz2 as a stream: one process reads the XML, --workers processes turn markup into sentences
(text/wikipedia.py). The files are the same for any number of workers.
"""

import suite  # noqa: F401

# isort: split

import bz2
import functools
import itertools
import json
import os
import shutil
import xml.parsers.expat
from pathlib import Path
from typing import NamedTuple

from system.command_line import ArgumentParser, add_bool, add_number, non_negative_int, positive_int
from system.errors import UserError, one_line
from system.input_files import find_files, reading
from system.limits import usable_processors
from system.output_files import atomic_folder, check_replaceable
from system.progress import print_warning, progress_bar
from system.workers import run_in_order
from text import wikipedia
from util import run_script

# What a folder of this tool holds beside the text: the counts.
SUMMARY_FILE = "wikipedia.json"
READ_BYTES = 1 << 20
BATCH_CHARACTERS = 1 << 18
FILE_BYTES = 128 << 20
# MediaWiki's own limit is 2 MiB.
MAX_PAGE_CHARACTERS = 32 << 20
# Keys of namespaces whose links show no text: media, files, categories.
KEYS_WITHOUT_TEXT = ("-2", "6", "14")


class Counts(NamedTuple):
    """What became of some articles."""

    articles: int
    sentences: int
    short: int
    disambiguations: int
    broken: int


class Pages:
    """The articles of a dump, from XML that is given in pieces.

    `articles` gets the markup of the pages in namespace 0 that are no redirects; the caller empties it.
    Raises UserError for XML that is none, or of something else.
    """

    def __init__(self, path):
        self.path = path
        self.articles = []
        self.pages = 0
        self.links_without_text = set(wikipedia.LINKS_WITHOUT_TEXT)
        self._has_root = False
        self._texts = None
        self._characters = 0
        self._page = {}
        self._key = None
        self._parser = xml.parsers.expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._on_doctype
        self._parser.StartElementHandler = self._on_start
        self._parser.EndElementHandler = self._on_end
        self._parser.CharacterDataHandler = self._on_text

    def feed(self, data, is_last=False):
        """Parses further bytes. Raises UserError if they are not the XML of a dump."""
        try:
            self._parser.Parse(data, is_last)
        except xml.parsers.expat.ExpatError as error:
            reason = xml.parsers.expat.ErrorString(error.code)
            raise UserError(
                f"{self.path}: not the XML of a dump: {reason} (line {error.lineno}, column {error.offset + 1})"
            ) from None

    def _on_doctype(self, *_):
        # Entities that name each other would fill the memory; a dump has none.
        raise UserError(f"{self.path}: not a dump of Wikipedia: it declares a document type, which no dump does")

    def _on_start(self, name, attributes):
        if not self._has_root and name != "mediawiki":
            raise UserError(
                f"{self.path}: not a dump of articles: it begins with <{name[:40]}>, not <mediawiki>; give "
                "*-pages-articles.xml.bz2"
            )
        self._has_root = True
        if name == "page":
            self._page = {}
        elif name == "redirect":
            self._page["redirect"] = ""
        elif name == "namespace":
            self._key = attributes.get("key")
        if name in ("ns", "model", "text", "namespace"):
            self._texts = []
            self._characters = 0

    def _on_text(self, text):
        if self._texts is not None:
            self._texts.append(text)
            self._characters += len(text)
            if self._characters > MAX_PAGE_CHARACTERS:
                raise UserError(
                    f"{self.path}: not a dump of Wikipedia: line {self._parser.CurrentLineNumber}: a page of more than "
                    f"{MAX_PAGE_CHARACTERS >> 20} million characters"
                )

    def _on_end(self, name):
        if self._texts is not None:
            text = "".join(self._texts)
            self._texts = None
            if name == "namespace" and self._key in KEYS_WITHOUT_TEXT and text:
                self.links_without_text.add(text.lower())
            else:
                # The newest of several revisions comes last.
                self._page[name] = text
        elif name == "page":
            self.pages += 1
            page = self._page
            if page.get("ns") == "0" and "redirect" not in page and page.get("model", "wikitext") == "wikitext":
                self.articles.append(page.get("text", ""))
            self._page = {}


def main():
    arguments = parse_arguments()
    paths = find_files("--input_file", [arguments.input_file])
    check_replaceable(arguments.output_dir, arguments.overwrite, SUMMARY_FILE)
    with atomic_folder(arguments.output_dir.resolve()) as folder:
        totals, files = extract(paths, folder, arguments)
        (folder / SUMMARY_FILE).write_text(json.dumps(totals, indent=2) + "\n")
    report(totals, files, arguments)


def parse_arguments():
    parser = ArgumentParser(description="Makes text for pre-training from a dump of Wikipedia.")
    parser.add_argument(
        "--input_file",
        required=True,
        metavar="FILES",
        help="*-pages-articles.xml.bz2, or its parts: names or patterns, separated by commas",
    )
    parser.add_argument(
        "--output_dir",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="folder for text-00000.txt, text-00001.txt, ...",
    )
    add_bool(parser, "--overwrite", help="replace a folder that this tool has made")
    text = "number of processes that parse markup (default: the number of processors)"
    add_number(parser, "--workers", positive_int, usable_processors(), text)
    add_number(parser, "--min_characters", non_negative_int, 300, "leave out articles with less text than this")
    add_bool(parser, "--keep_disambiguation", help="keep disambiguation pages")
    return parser.parse_args()


def extract(paths, folder, arguments):
    """Writes the text files; returns (counts by name, number of files). Raises UserError if a dump has no article."""
    totals = {"pages": 0, "articles": 0, "sentences": 0, "bytes": 0, "short": 0, "disambiguations": 0, "broken": 0}
    file = None
    files = 0
    total = sum(os.path.getsize(path) for path in paths)
    try:
        with progress_bar(total=total, unit="B", unit_scale=True, leave=False) as bar:
            tasks = read_batches(paths, folder, totals, bar, arguments)
            for path, counts in run_in_order(make_text, tasks, arguments.workers):
                if file is None or file.tell() >= FILE_BYTES:
                    if file is not None:
                        file.close()
                    file = open(folder / f"text-{files:05}.txt", "wb")
                    files += 1
                totals["bytes"] += path.stat().st_size
                with open(path, "rb") as text:
                    shutil.copyfileobj(text, file)
                path.unlink()
                for name, count in counts._asdict().items():
                    totals[name] += count
    finally:
        if file is not None:
            file.close()
    if totals["articles"] == 0:
        raise UserError(
            f"--input_file={arguments.input_file}: no article with text among {totals['pages']:,} pages; give "
            "*-pages-articles.xml.bz2, or a smaller --min_characters"
        )
    return totals, files


def read_batches(paths, folder, totals, bar, arguments):
    """Yields the arguments of make_text for some articles at a time; counts pages in `totals`.

    Raises UserError if a file is not bzip2 or ends too early.
    """
    numbers = itertools.count()
    for path in paths:
        name = one_line(path)
        bar.set_description(os.path.basename(name))
        pages = Pages(name)
        done = bar.n

        def batch(pages=pages):
            articles, pages.articles = pages.articles, []
            # In a file: what does not fit into the pipe to a worker that is stopped would block this process for ever.
            path = folder / f"batch-{next(numbers)}"
            path.write_text(json.dumps(articles))
            return path, tuple(sorted(pages.links_without_text)), arguments

        with reading(name), open(path, "rb") as raw, bz2.open(raw) as file:
            if raw.read(3) != b"BZh":
                raise UserError(f"{name}: not bzip2; give *-pages-articles.xml.bz2 as it was downloaded")
            raw.seek(0)
            for data in iter(functools.partial(read_piece, file, name), b""):
                pages.feed(data)
                bar.update(done + raw.tell() - bar.n)
                if sum(map(len, pages.articles)) >= BATCH_CHARACTERS:
                    yield batch()
            pages.feed(b"", is_last=True)
        yield batch()
        totals["pages"] += pages.pages


def read_piece(file, name):
    """Returns further bytes of a bzip2 file, b"" at its end. Raises UserError if it is damaged."""
    try:
        return file.read(READ_BYTES)
    except EOFError:
        raise UserError(f"{name}: ends too early: the download is not complete; fetch it again") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{name}: damaged: {error}; fetch it again") from None


def make_text(path, links_without_text, arguments):
    """Replaces the list of markup in the file `path` by the documents. Returns (path, Counts)."""
    documents = []
    sentences = short = disambiguations = broken = 0
    for markup in json.loads(path.read_text()):
        article = wikipedia.read_article(markup, links_without_text)
        if article is None:
            broken += 1
        elif article.is_disambiguation and not arguments.keep_disambiguation:
            disambiguations += 1
        elif not article.sentences or sum(map(len, article.sentences)) < arguments.min_characters:
            short += 1
        else:
            sentences += len(article.sentences)
            documents.append("\n".join(article.sentences) + "\n\n")
    path.write_text("".join(documents), encoding="utf-8")
    return path, Counts(len(documents), sentences, short, disambiguations, broken)


def report(totals, files, arguments):
    """Prints the counts; warns of pages that could not be parsed."""
    print(
        f"left out: {totals['short']:,} articles of less than {arguments.min_characters} characters, "
        f"{totals['disambiguations']:,} disambiguation pages"
    )
    if totals["broken"]:
        print_warning(f"{totals['broken']:,} articles left out: too many marks in their markup are never closed")
    print(
        f"articles: {totals['articles']:,}, sentences: {totals['sentences']:,}, bytes: {totals['bytes']:,}, "
        f"files: {files}, in {arguments.output_dir}"
    )


if __name__ == "__main__":
    run_script(main)
