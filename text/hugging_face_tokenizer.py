"""Reads the tokeniser settings of a Hugging Face folder and lists how they differ from this suite's tokeniser.

tokenizer_config.json has the arguments of a transformers class, tokenizer.json the tokeniser that the `tokenizers`
library saved. Where they disagree, transformers follows tokenizer_config.json.
"""

import re
from pathlib import Path
from typing import NamedTuple

from system.input_files import read_json
from text.tokenization import UNKNOWN

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

# Classes that tokenise like BertTokenizer, or by tokenizer.json.
_CLASSES = re.compile(r"(Bert|DistilBert|Electra|MobileBert|ConvBert|LayoutLM|PreTrained)Tokenizer(Fast)?")


class TokenizerOfModel(NamedTuple):
    """The tokeniser settings of a folder."""

    do_lower_case: bool | None  # None if neither file has it
    is_word_piece: bool
    differences: list[str]  # one clause for each difference from this suite's tokeniser


def read_tokenizer(folder):
    """Returns the TokenizerOfModel of a Hugging Face folder. Raises UserError if a file cannot be read."""
    config, content = (_read_object(Path(folder) / name) for name in (CONFIG_FILE, TOKENIZER_FILE))
    model, normalizer, splitter = (_object(content.get(key)) for key in ("model", "normalizer", "pre_tokenizer"))
    lowercase, strip_accents, chinese = (
        config.get(of_config, normalizer.get(of_normalizer, usual))
        for of_config, of_normalizer, usual in (
            ("do_lower_case", "lowercase", None),
            ("strip_accents", "strip_accents", None),
            ("tokenize_chinese_chars", "handle_chinese_chars", True),
        )
    )
    kind = "BPE" if "merges" in model else model.get("type", "WordPiece")
    if config.get("subword_tokenizer_type", "wordpiece") != "wordpiece":
        kind = config["subword_tokenizer_type"]
    # transformers defaults to uncased, and strips accents from uncased text.
    does_strip = (True if lowercase is None else lowercase) if strip_accents is None else strip_accents

    differences = []
    if kind != "WordPiece":
        differences.append(f"its pieces are {kind}, not WordPiece")
    if not _CLASSES.fullmatch(str(config.get("tokenizer_class") or "BertTokenizer")):
        differences.append(f"its tokeniser is a {config['tokenizer_class']}")
    elif content and normalizer.get("type") != "BertNormalizer":
        differences.append(f"it normalises by {normalizer.get('type', 'nothing')}, not as BERT does")
    elif content and splitter.get("type") != "BertPreTokenizer":
        differences.append(f"it splits text by {splitter.get('type', 'nothing')}, not as BERT does")
    if lowercase is not False and does_strip is False:
        differences.append("it lower-cases text but keeps accents (strip_accents is false)")
    if lowercase is False and does_strip is True:
        differences.append("it strips accents but keeps capitals (strip_accents is true)")
    if chinese is False:
        differences.append("it does not split Chinese text into characters (tokenize_chinese_chars is false)")
    if config.get("do_basic_tokenize") is False:
        differences.append("it does not split text into words first (do_basic_tokenize is false)")
    if model.get("continuing_subword_prefix", "##") != "##" or model.get("unk_token", UNKNOWN) != UNKNOWN:
        differences.append(f"it does not use ## and {UNKNOWN}")
    return TokenizerOfModel(lowercase if isinstance(lowercase, bool) else None, kind == "WordPiece", differences)


def _read_object(path):
    return _object(read_json(path)) if path.is_file() else {}


def _object(content):
    return content if isinstance(content, dict) else {}
