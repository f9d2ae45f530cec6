"""What the comparisons of fine-tuning with Hugging Face Transformers share."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from records import ofrecord  # noqa: E402
from snapshots import layout, variables  # noqa: E402
from system.command_line import add_number, non_negative_float, non_negative_int, positive_int  # noqa: E402
from system.errors import RunError, UserError  # noqa: E402

WARMUP_SHARE = 0.1
WEIGHT_DECAY_RATE = 0.01
# The standard deviation of the initial weights.
INITIALIZER_RANGE = 0.02


class Cost(NamedTuple):
    """What a command took: seconds, and its peak resident memory in GB."""

    seconds: float
    peak_gb: float


def absolute_path(text):
    return Path(os.path.abspath(text))


def parse_seeds(text):
    seeds = [non_negative_int(seed) for seed in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"'{text}' has a seed twice")
    return seeds


def add_flags(parser, name, batch_size, max_seq_length):
    """Adds the flags that the comparisons of fine-tuning share; `name` is the folder's in .cache."""
    parser.add_argument(
        "--hf_dir", type=absolute_path, required=True, metavar="DIR", help="folder of an uncased BERT from Hugging Face"
    )
    parser.add_argument(
        "--work_dir",
        type=absolute_path,
        default=ROOT / ".cache" / name,
        metavar="DIR",
        help="folder for data, models, results and logs",
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, default="1,2,3", metavar="A,B,...", help="each side runs once per seed"
    )
    add_number(parser, "--num_epochs", positive_int, 3, "passes over the training data")
    add_number(parser, "--batch_size", positive_int, batch_size, "records per batch")
    add_number(parser, "--learning_rate", non_negative_float, 5e-5, "peak learning rate")
    add_number(parser, "--max_seq_length", positive_int, max_seq_length, "length of a record, in pieces")


def check_inputs(hf_dir, **files):
    """Raises UserError for a missing file or folder before the environment of Transformers is created."""
    for flag, path in files.items():
        if not path.is_file():
            raise UserError(f"--{flag}: there is no file {path}")
    if not hf_dir.is_dir():
        raise UserError(f"--hf_dir: there is no folder {hf_dir}")


def convert_model(hf_dir, work_dir):
    """Converts the encoder of `hf_dir` to the snapshot `work_dir`/initial and its vocabulary to vocab.txt."""
    run(
        script("tools/convert_hf.py", "import", "--overwrite")
        + flags(hf_dir=hf_dir, of_dump_path=work_dir / "initial", vocab_dump_path=work_dir / "vocab.txt"),
        work_dir / "convert_hf.log",
    )


def model_flags(hf_dir):
    """Returns the flags of the model's shape."""
    size, _ = variables.read_config(hf_dir / "config.json")
    return flags(
        vocab_size=size.vocab_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        hidden_size_per_head=size.hidden_size // size.num_attention_heads,
        intermediate_size=size.intermediate_size,
        max_position_embeddings=size.max_position_embeddings,
        type_vocab_size=size.type_vocab_size,
    )


def copy_records(folder, npz_file):
    """Copies the records of `folder`/part-0 to an .npz file for Transformers. Returns the number of records."""
    records = [features for _, features in ofrecord.read(folder / "part-0")]
    np.savez(npz_file, **{field: np.stack([record[field] for record in records]) for field in records[0]})
    return len(records)


def prepare_seed(seed, work_dir, head, names, batch_size, iter_num, num_labels=None):
    """Makes the input of both sides that depends on the seed.

    The initial weights of the head, a float32 array [hidden, N], go into head-<seed>.npy and the snapshot
    initial-<seed>, where `names` = (weights, bias) are its variables; the order of the records into order-<seed>.npy.
    """
    np.save(work_dir / f"head-{seed}.npy", head)
    weights, bias = names
    with layout.open_writer(work_dir / f"initial-{seed}") as write:
        # Google's output_weights is [labels, hidden].
        write(weights, head.T.copy() if weights == variables.CLASSIFIER_WEIGHTS else head)
        write(bias, np.zeros(head.shape[1], np.float32))
    shutil.copytree(work_dir / "initial", work_dir / f"initial-{seed}", dirs_exist_ok=True)
    task = ("squad", 0) if num_labels is None else ("classifier", num_labels)
    write_order(*task, work_dir / "train", work_dir / "train.npz", batch_size, iter_num, seed)


def write_order(task, size, data_dir, records_file, batch_size, iter_num, seed):
    """Writes order-<seed>.npy beside `records_file`, a copy of the records of `data_dir`; see record_order.py."""
    order_file = records_file.parent / f"order-{seed}.npy"
    run(
        [sys.executable, ROOT / "benchmarks/record_order.py", task, size, data_dir, records_file]
        + [batch_size, iter_num, seed, order_file],
        order_file.with_suffix(".log"),
    )
    return order_file


def initial_head(hf_dir, count, seed):
    """Returns initial weights of a head, float32 [hidden, count]."""
    size, _ = variables.read_config(hf_dir / "config.json")
    shape = (size.hidden_size, count)
    return np.random.default_rng(seed).normal(0.0, INITIALIZER_RANGE, shape).astype(np.float32)


def recipe(iter_num, batch_size, learning_rate, dropout, loss_print_every_n_iter):
    """Returns the flags of training that both sides take."""
    return flags(
        iter_num=iter_num,
        batch_size_per_device=batch_size,
        learning_rate=learning_rate,
        warmup_batches=round(iter_num * WARMUP_SHARE),
        weight_decay_rate=WEIGHT_DECAY_RATE,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        loss_print_every_n_iter=loss_print_every_n_iter,
    )


def script(name, *arguments):
    """Returns a command line of this project."""
    return [sys.executable, ROOT / name, *arguments]


def other_side(python, name):
    """Returns a command line of a script here in the environment of Transformers, isolated from this project's."""
    return [python, "-E", "-s", ROOT / "benchmarks" / name]


def flags(**values):
    return [f"--{name}={value}" for name, value in values.items()]


def run(command, log_file, **environment):
    """Runs `command`, logging to `log_file`. Returns the Cost; raises RunError with the last line on failure."""
    begin = time.perf_counter()
    with open(log_file, "wb") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=os.environ | environment)
        # Its memory is the largest of the process and of the children that it has waited for.
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RunError(f"status {os.waitstatus_to_exitcode(status)}: {last_line(log_file)} ({log_file})")
    return Cost(time.perf_counter() - begin, usage.ru_maxrss / 1e6)


def last_line(path):
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""
