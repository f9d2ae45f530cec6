"""Splits text into sentences by a small rule, without a model of the language.

A sentence ends at . ! ? or … (with the quotes and brackets that close after it) where white space follows and the next
word does not begin in lower case; and at the full-width 。！？ also without white space. A full stop ends none after an
initial (J. Smith), an acronym with stops (U.S.), a number of one or two digits (German ordinals) and the abbreviations
below. Where the rule is wrong it rather joins two sentences than cuts one.
"""

import re

_ABBREVIATIONS = frozenset(
    "adm al approx apr art aug bros bzw ca capt cf ch cmdr co col comdr corp dec dept dr ed eds esp est etc feb fig "
    "figs fl ft gen gov hon inc jan jr jul jun lit lt ltd maj mar mr mrs ms mt nov nr oct op pp pres prof ref rep rev "
    "sen sep sept sgt sr st str vgl viz vol vols vs".split()
)
_END = re.compile(r"([.!?…]+)[\"'”’»)\]]*\s+(?=[\"'“‘«„(\[¿¡]*(\S))|[。！？]+[」』”’）]*\s*")
_LAST_WORD = re.compile(r"[^\s\"'“‘«„(\[]+$")
_ACRONYM = re.compile(r"\w(\.\w)*|\d\d")


def split_sentences(text):
    """Returns the list of the sentences of a paragraph, without white space around them."""
    sentences = []
    start = 0
    for match in _END.finditer(text):
        if match[1] and (match[2].islower() or (match[1] == "." and _is_abbreviated(text, start, match.start()))):
            continue
        sentences.append(text[start : match.end()].strip())
        start = match.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _is_abbreviated(text, start, end):
    """Whether the full stop at `end` belongs to an abbreviation."""
    word = _LAST_WORD.search(text, max(start, end - 20), end)
    return word is not None and (word[0].lower() in _ABBREVIATIONS or _ACRONYM.fullmatch(word[0]) is not None)
