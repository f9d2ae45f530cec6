"""Wiki markup to sentences: the passages of an article, without lists, tables and headings.

BERT was trained on such passages of Wikipedia (Devlin et al. 2018, section 3.1). mwparserfromhell parses the markup.
Templates are removed: what they would show is defined in other pages.
"""

import re
import unicodedata
from typing import NamedTuple

import mwparserfromhell
from mwparserfromhell import nodes

from text.sentences import split_sentences

# What a file or category link begins with, beside its names in the language of the wiki.
LINKS_WITHOUT_TEXT = ("file", "image", "media", "category")
# The parser tries every opening mark that is never closed against the rest of the page, which takes hours for a page
# of thousands. It reads no markup that is nested deeper than this.
MOST_OPEN = 40

# Marks in the text. XML does not allow these characters.
_LIST_ITEM, _FORMULA = "\x01", "\x02"
_PARAGRAPH = "\n\n"

_FORMULAS = frozenset(("math", "chem", "ce", "hiero", "score"))
_TAGS_WITHOUT_TEXT = frozenset(
    "ref references gallery timeline imagemap syntaxhighlight source pre templatedata table ul ol dl style script "
    "indicator mapframe maplink graph section categorytree inputbox poem".split()
)
_BLOCKS = frozenset("div p blockquote center section hr".split())
_SINGLE_TAGS = frozenset("br wbr hr meta link img li dt dd th td tr p".split())
_MARK = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|<(?P<slash>/?)(?P<tag>[a-zA-Z]+)(?P<rest>[^<>]*)>|\[(?:https?:)?//(?![^\[\]\n]*\])"
)
_CLOSED_BY = {"[[": "]]", "{{": "}}", "{|": "|}"}
_COMMENT = re.compile(r"<!--.*?(-->|$)", re.DOTALL)
_NO_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>)")
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z-]+)?:")
_LEFTOVER = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|</?[a-zA-Z]+[^<>]*>|^[|!]")
_SWITCH = re.compile(r"__[A-Z]+__")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_QUOTES = re.compile(r"'{2,}")
_APOSTROPHE = re.compile(r"(?<=\w)'''(?!')")
# -{zh-hans:x;zh-hant:y}- shows x or y by variant of the language, as in Chinese; -{H|...}- and others show nothing.
_VARIANTS = re.compile(r"-\{(?:([^{}|]*)\|)?([^{}]*)\}-")
_VARIANT = re.compile(r"(?:^|;)\s*(?:zh|[a-z]{2,3}(?:-[a-z]+)+)\s*:\s*([^;]*)")
_FLAGS_WITHOUT_TEXT = frozenset(("H", "T", "D", "N", "-"))
_EMPTY_BRACKETS = re.compile(r"\s*(\([\s,;:–—-]*\)|（[\s，；：、,;:]*）)")
_BEGINNING_OF_BRACKETS = re.compile(r"\([\s,;:]+")
_END_OF_BRACKETS = re.compile(r"[\s,;:]+\)")
_SPACE_BEFORE_STOP = re.compile(r"\s+([.,;:!?](\s|$))")
# Names of the templates of disambiguation pages begin with one of these, in English and in some large wikis.
_DISAMBIGUATION = re.compile(
    r"disambig|dab\b|hndis|geodis|begriffsklärung|homonymie|desambigua|disambigua|ujednoznacznienie|неоднозначность|"
    r"消歧义|消歧義|曖昧さ回避|aimai|동음이의|dp$",
    re.IGNORECASE,
)


class Article(NamedTuple):
    """What an article holds."""

    sentences: list
    is_disambiguation: bool


def read_article(markup, links_without_text=LINKS_WITHOUT_TEXT):
    """Returns the Article of wiki markup, or None if the markup is too broken to be parsed.

    `links_without_text`: the prefixes, in lower case, of links that show a file or name a category.
    """
    markup = _NO_TAG.sub("&lt;", _COMMENT.sub("", markup))
    if not _can_be_parsed(markup):
        return None
    try:
        # Quotes, which need not be balanced, would keep the parser from what is around them.
        parsed = mwparserfromhell.parse(markup, skip_style_tags=True)
    except mwparserfromhell.parser.ParserError:
        return None
    is_disambiguation = "__DISAMBIG__" in markup or any(
        isinstance(node, nodes.Template) and _DISAMBIGUATION.match(str(node.name).strip()) for node in parsed.nodes
    )
    text = "".join(_texts_of(parsed, links_without_text))
    sentences = [sentence for paragraph in _paragraphs_of(text) for sentence in split_sentences(paragraph)]
    return Article([sentence for sentence in sentences if _FORMULA not in sentence], is_disambiguation)


def _can_be_parsed(markup):
    """Whether at most MOST_OPEN marks are open at once, or never closed."""
    unclosed = 0
    stack = []
    for match in _MARK.finditer(markup):
        mark = match[0]
        if mark in _CLOSED_BY:
            stack.append(_CLOSED_BY[mark])
        elif match["tag"] and not match["slash"]:
            if match["tag"].lower() not in _SINGLE_TAGS and not match["rest"].endswith("/"):
                stack.append(match["tag"].lower())
        elif mark[0] == "[":
            unclosed += 1
        else:
            closes = match["tag"].lower() if match["tag"] else mark
            if closes in stack:
                while stack.pop() != closes:
                    unclosed += 1
        if len(stack) + unclosed > MOST_OPEN:
            return False
    return True


def _texts_of(parsed, links_without_text):
    """Yields the text of each node that has one."""
    for node in parsed.nodes:
        if isinstance(node, nodes.Text):
            yield node.value
        elif isinstance(node, nodes.HTMLEntity):
            yield node.normalize()
        elif isinstance(node, nodes.Heading):
            yield _PARAGRAPH
        elif isinstance(node, nodes.Wikilink):
            yield from _texts_of_link(node, links_without_text)
        elif isinstance(node, nodes.ExternalLink):
            if node.title is not None:
                yield from _texts_of(node.title, links_without_text)
        elif isinstance(node, nodes.Tag):
            yield from _texts_of_tag(node, links_without_text)


def _texts_of_link(link, links_without_text):
    title = str(link.title).strip()
    if title.partition(":")[0].strip().lower() in links_without_text:
        return
    if link.text is not None:
        yield from _texts_of(link.text, links_without_text)
    elif not _LANGUAGE_LINK.match(title):
        yield title.removeprefix(":")


def _texts_of_tag(tag, links_without_text):
    name = str(tag.tag).strip().lower()
    if tag.wiki_markup in ("*", "#", ":", ";"):
        yield _LIST_ITEM
    elif name in _FORMULAS:
        yield _FORMULA
    elif name in _BLOCKS or name in _TAGS_WITHOUT_TEXT:
        around = "" if name == "ref" else _PARAGRAPH
        yield around
        if name in _BLOCKS and tag.contents is not None:
            yield from _texts_of(tag.contents, links_without_text)
        yield around
    elif name == "br":
        yield " "
    elif tag.contents is not None:
        yield from _texts_of(tag.contents, links_without_text)


def _paragraphs_of(text):
    """Yields the paragraphs of `text`, each on one line, normalised."""
    lines = []
    for line in text.split("\n"):
        line = _clean(line)
        if line and line[0] != _LIST_ITEM and not _LEFTOVER.search(line):
            lines.append(line)
        elif lines:
            yield " ".join(lines)
            lines = []
    if lines:
        yield " ".join(lines)


def _clean(line):
    """Removes what is left of markup from a line: quotes, switches, brackets around removed templates."""
    line = _SWITCH.sub("", unicodedata.normalize("NFC", _SURROGATES.sub("", line)))
    for _ in range(2):  # they may be nested
        line = _VARIANTS.sub(_first_variant, line)
    line = _without_quotes(line)
    line = _EMPTY_BRACKETS.sub("", line)
    line = _END_OF_BRACKETS.sub(")", _BEGINNING_OF_BRACKETS.sub("(", line))
    return _SPACE_BEFORE_STOP.sub(r"\1", " ".join(line.split()))


def _first_variant(match):
    """Returns the text of the first variant, or that of all."""
    if not _FLAGS_WITHOUT_TEXT.isdisjoint(flag.strip() for flag in (match[1] or "").split(";")):
        return ""
    variants = _VARIANT.findall(match[2])
    return variants[0].strip() if variants else match[2]


def _without_quotes(line):
    """Removes the marks of bold and italics. As in MediaWiki, one of them may follow an apostrophe (l'''Avare'')."""
    lengths = [len(run) for run in _QUOTES.findall(line)]
    if sum(n in (2, 5) for n in lengths) % 2 and sum(n in (3, 5) for n in lengths) % 2:
        line = _APOSTROPHE.sub("'", line, count=1)
    return _QUOTES.sub(lambda match: "'" if len(match[0]) == 4 else "", line)
