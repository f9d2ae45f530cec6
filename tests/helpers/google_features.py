"""A small model and a text, and what google-research/bert's extract_features.py makes of them."""

import json
import random
import subprocess
import sys

import google_cases
import hard_text
import small_models
from running import ROOT
from snapshots import model_files
from tf_checkpoints import save_checkpoint

FLAGS = {"layers": "-1,0", "max_seq_length": 24, "batch_size": 4, "do_lower_case": True}


def text():
    """Lines of hard text, some of them pairs, long and empty ones among them; bytes."""
    generator = random.Random(0)
    strings = [*hard_text.EXAMPLES, *(google_cases.hard_string(generator, length) for length in (3, 20, 60) * 2)]
    # The first mark is for the beginning of a file; a line has no line end in it.
    strings = [string.replace("\n", " ").encode("utf-8", "ignore").decode() for string in strings]
    pairs = [f"{first} ||| {second}" for first, second in zip(strings, strings[3:] + strings[:3], strict=True)]
    return "".join(f"{line}\n" for line in ["the old house", *strings, *pairs, "the ||| ", " ||| old"]).encode()


def google_output(bert_repo, folder):
    """Returns what Google's script writes, bytes; works in `folder`. `bert_repo`: as for google_features.py."""
    values = small_models.values()
    names = {name: name.replace("-", "/").replace("/weight", "/kernel") for name in values}
    save_checkpoint(folder / "bert_model.ckpt", {names[name]: array for name, array in values.items()})
    (folder / "bert_config.json").write_text(json.dumps(model_files.config_of(small_models.SIZE)))
    (folder / "vocab.txt").write_text("\n".join(small_models.VOCAB) + "\n", encoding="utf-8")
    (folder / "text.txt").write_bytes(text())
    flags = {
        "input_file": folder / "text.txt",
        "output_file": folder / "features.jsonl",
        "init_checkpoint": folder / "bert_model.ckpt",
        "bert_config_file": folder / "bert_config.json",
        "vocab_file": folder / "vocab.txt",
        **FLAGS,
    }
    command = [sys.executable, ROOT / "benchmarks/google_features.py", bert_repo]
    subprocess.run([*command, *(f"--{name}={value}" for name, value in flags.items())], check=True)
    return (folder / "features.jsonl").read_bytes()
