"""The files that describe a snapshot's model: configuration, vocabulary, case, labels.

    <snapshot>/bert-embeddings-word_embeddings/bert_config.json       with the keys of google-research/bert
    <snapshot>/bert-embeddings-word_embeddings/vocab.txt              one piece per line
    <snapshot>/bert-embeddings-word_embeddings/tokenizer_config.json  {"do_lower_case": ...}, as in Hugging Face
    <snapshot>/bert-embeddings-word_embeddings/labels.txt             of a classifier, one per line, ordered by id

Each file may be missing. They are in the folder of a backbone variable so that `cp -R` of a BERT over a snapshot copies
them too; `oneflow.load` ignores them.
"""

import dataclasses
import json
from pathlib import Path

from snapshots import variables
from system.errors import UserError
from system.input_files import open_input, read_json

CONFIG_FILE = "bert_config.json"
VOCAB_FILE = "vocab.txt"
TOKENIZER_FILE = "tokenizer_config.json"
LABELS_FILE = "labels.txt"

# The settings that are the same for every BERT of this suite.
_FIXED = {"hidden_act": "gelu", "initializer_range": 0.02}
_LARGEST_VOCAB = 1 << 28  # bytes


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """The paths of a snapshot's files (None if missing), and the value in tokenizer_config.json."""

    config: Path | None = None
    vocab: Path | None = None
    do_lower_case: bool | None = None
    labels: Path | None = None


def find(snapshot):
    """Returns the ModelFiles of the snapshot folder `snapshot`. Raises UserError if the case cannot be read."""
    folder = Path(snapshot) / variables.WORD_EMBEDDINGS
    config, vocab, tokenizer, labels = (
        path if path.is_file() else None
        for path in (folder / name for name in (CONFIG_FILE, VOCAB_FILE, TOKENIZER_FILE, LABELS_FILE))
    )
    return ModelFiles(config, vocab, read_case(tokenizer) if tokenizer else None, labels)


def read_case(path):
    """Returns `do_lower_case` from a tokenizer_config.json, or None. Raises UserError if the file is damaged."""
    content = read_json(path)
    value = content.get("do_lower_case") if isinstance(content, dict) else None
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{path}: do_lower_case is {value!r:.40}; it must be true or false")
    return value


def config_of(size, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1):
    """Returns the bert_config.json, as a dict, for a variables.ModelSize."""
    dropout = {
        "hidden_dropout_prob": hidden_dropout_prob,
        "attention_probs_dropout_prob": attention_probs_dropout_prob,
    }
    return _FIXED | dropout | dataclasses.asdict(size)


def encode(config=None, vocab=None, do_lower_case=None, labels=None):
    """Returns name -> bytes of the files for the arguments that are not None.

    `config`: a dict; `vocab`: the bytes of a vocabulary; `do_lower_case`: a bool; `labels`: the bytes of a labels.txt.
    """
    files = {}
    if config is not None:
        files[CONFIG_FILE] = _encode_json(config)
    if vocab is not None:
        files[VOCAB_FILE] = vocab
    if do_lower_case is not None:
        files[TOKENIZER_FILE] = _encode_json({"do_lower_case": do_lower_case})
    if labels is not None:
        files[LABELS_FILE] = labels
    return files


def read_vocab_bytes(path):
    """Returns the bytes of a vocabulary file. Raises OSError, or UserError if it is too large."""
    with open_input(path, "rb") as file:
        data = file.read(_LARGEST_VOCAB + 1)
    if len(data) > _LARGEST_VOCAB:
        raise UserError(f"{path}: too large for a vocabulary")
    return data


def _encode_json(content):
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
