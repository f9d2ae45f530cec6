"""Fine-tunes on SQuAD, predicts and scores with this project and with Hugging Face Transformers, side by side.

    python benchmarks/squad_with_transformers.py --squad_dir ../shared/data/squad-small --hf_dir ./all-MiniLM-L6-v2

`--squad_dir` has train-v1.1.json and dev-v1.1.json, `--hf_dir` is the folder of an uncased BERT from Hugging Face.
Transformers runs in its own environment (torch_environment.py), which the first run creates.

Both sides run on the CPU, one after the other, with the same windows and their order, batch size, number of steps, peak
learning rate, warm-up, weight decay, clipping, dropout rate and initial weights of the head. Both use the Adam of
google-research/bert, without bias correction, and npy2json.py and evaluate-v1.1.py score both. Only rounding and, with
--dropout, the masks differ.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch_environment  # noqa: E402
from records import ofrecord  # noqa: E402
from snapshots import layout, variables  # noqa: E402
from system.command_line import ArgumentParser, non_negative_float, non_negative_int, positive_int, probability  # noqa: E402
from system.errors import RunError, UserError  # noqa: E402
from util import run_script  # noqa: E402

WARMUP_SHARE = 0.1
WEIGHT_DECAY_RATE = 0.01
# The standard deviation of the initial weights.
INITIALIZER_RANGE = 0.02


class Score(NamedTuple):
    """Exact match and F1 of a run in percent, and its seconds."""

    exact_match: float
    f1: float
    seconds: float


def main():
    arguments = parse_arguments()
    check_inputs(arguments)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    python_of_transformers = torch_environment.find_or_make()
    record_counts = prepare(arguments)
    recipe = make_recipe(record_counts["train"], arguments)
    print(f"{record_counts['train']} windows to train on, {record_counts['dev']} to predict")
    print(" ".join(recipe), flush=True)

    print("| | exact match | F1 | seconds | Transformers: exact match | F1 | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    ours, theirs = [], []
    for seed in arguments.seeds:
        prepare_seed(seed, record_counts["train"], arguments)
        folder = arguments.work_dir / f"this_project-{seed}"
        ours.append(score(folder, arguments, run_this_project(folder, seed, recipe, arguments)))
        folder = arguments.work_dir / f"transformers-{seed}"
        theirs.append(
            score(folder, arguments, run_transformers(folder, seed, recipe, arguments, python_of_transformers))
        )
        print_row(f"seed {seed}", ours[-1], theirs[-1])
    our_mean, their_mean = mean(ours), mean(theirs)
    print_row("mean", our_mean, their_mean)
    print(f"The means of F1 differ by {abs(our_mean.f1 - their_mean.f1):.1f} points.")
    print(last_line(folder / "transformers_squad.log"))


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--squad_dir", type=absolute_path, required=True, metavar="DIR", help="folder of train-v1.1.json, dev-v1.1.json"
    )
    parser.add_argument(
        "--hf_dir", type=absolute_path, required=True, metavar="DIR", help="folder of an uncased BERT from Hugging Face"
    )
    parser.add_argument(
        "--work_dir",
        type=absolute_path,
        default=ROOT / ".cache/squad_with_transformers",
        metavar="DIR",
        help="folder for data, models, results and logs",
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, default="1,2,3", metavar="A,B,...", help="each side runs once per seed"
    )
    parser.add_argument("--num_epochs", type=positive_int, default=3, metavar="N", help="passes over the training data")
    parser.add_argument("--batch_size", type=positive_int, default=1, metavar="N", help="windows per batch")
    parser.add_argument(
        "--learning_rate", type=non_negative_float, default=5e-5, metavar="X", help="peak learning rate"
    )
    parser.add_argument("--dropout", type=probability, default=0.0, metavar="P", help="dropout everywhere")
    parser.add_argument(
        "--max_seq_length", type=positive_int, default=256, metavar="N", help="length of a window, in pieces"
    )
    parser.add_argument(
        "--doc_stride", type=positive_int, default=128, metavar="N", help="pieces from one window to the next"
    )
    return parser.parse_args()


def absolute_path(text):
    return Path(os.path.abspath(text))


def parse_seeds(text):
    seeds = [non_negative_int(seed) for seed in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"'{text}' has a seed twice")
    return seeds


def check_inputs(arguments):
    """Raises UserError for bad input before the environment of Transformers is created."""
    for name in ("train", "dev"):
        if not squad_file(name, arguments).is_file():
            raise UserError(f"--squad_dir: there is no file {squad_file(name, arguments)}")
    if not arguments.hf_dir.is_dir():
        raise UserError(f"--hf_dir: there is no folder {arguments.hf_dir}")


def prepare(arguments):
    """Makes the input of both sides in work_dir: vocab.txt, the snapshot `initial` and the windows of the files.

    Writes windows as OFRecord parts and, for Transformers, as an .npz file. Returns the number of windows by file.
    """
    work_dir = arguments.work_dir
    run(
        script("tools/convert_hf.py", "import", "--overwrite")
        + flags(hf_dir=arguments.hf_dir, of_dump_path=work_dir / "initial", vocab_dump_path=work_dir / "vocab.txt"),
        work_dir / "convert_hf.log",
    )
    counts = {}
    for name in ("train", "dev"):
        run(
            script("tools/create_squad_data.py")
            + flags(input_file=squad_file(name, arguments), output_dir=work_dir / name, is_training=name == "train")
            + window_flags(arguments),
            work_dir / f"create_squad_data-{name}.log",
        )
        records = [features for _, features in ofrecord.read(work_dir / name / "part-0")]
        fields = {field: np.stack([record[field] for record in records]) for field in records[0]}
        np.savez(work_dir / f"{name}.npz", **fields)
        counts[name] = len(records)
    return counts


def prepare_seed(seed, record_count, arguments):
    """Makes the input of both sides that depends on the seed: initial weights of the head, and order of the windows.

    Writes the weights to the snapshot initial-<seed> and to head-<seed>.npy, and the order to order-<seed>.npy.
    """
    work_dir = arguments.work_dir
    size, _ = variables.read_config(arguments.hf_dir / "config.json")
    head = np.random.default_rng(seed).normal(0.0, INITIALIZER_RANGE, (size.hidden_size, 2)).astype(np.float32)
    np.save(work_dir / f"head-{seed}.npy", head)
    with layout.open_writer(work_dir / f"initial-{seed}") as write:
        write("cls-squad-output-weight", head)
        write("cls-squad-output-bias", np.zeros(2, np.float32))
    shutil.copytree(work_dir / "initial", work_dir / f"initial-{seed}", dirs_exist_ok=True)
    run(
        [sys.executable, ROOT / "benchmarks/window_order.py", work_dir / "train", work_dir / "train.npz"]
        + [arguments.batch_size, count_iterations(record_count, arguments), seed, work_dir / f"order-{seed}.npy"],
        work_dir / f"window_order-{seed}.log",
    )


def count_iterations(record_count, arguments):
    return max(1, record_count * arguments.num_epochs // arguments.batch_size)


def squad_file(name, arguments):
    return arguments.squad_dir / f"{name}-v1.1.json"


def window_flags(arguments):
    """Returns the window flags of tools/create_squad_data.py and npy2json.py."""
    return flags(
        vocab_file=arguments.work_dir / "vocab.txt",
        max_seq_length=arguments.max_seq_length,
        doc_stride=arguments.doc_stride,
    )


def make_recipe(record_count, arguments):
    """Returns the flags that run_squad.py and transformers_squad.py share."""
    iter_num = count_iterations(record_count, arguments)
    return flags(
        iter_num=iter_num,
        batch_size_per_device=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_batches=round(iter_num * WARMUP_SHARE),
        weight_decay_rate=WEIGHT_DECAY_RATE,
        hidden_dropout_prob=arguments.dropout,
        attention_probs_dropout_prob=arguments.dropout,
        loss_print_every_n_iter=10,
    )


def run_this_project(folder, seed, recipe, arguments):
    """Fine-tunes and predicts into `folder`/all_results.npy. Returns the seconds it took."""
    folder.mkdir(exist_ok=True)
    size, _ = variables.read_config(arguments.hf_dir / "config.json")
    model = flags(
        seq_length=arguments.max_seq_length,
        vocab_size=size.vocab_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        hidden_size_per_head=size.hidden_size // size.num_attention_heads,
        intermediate_size=size.intermediate_size,
        max_position_embeddings=size.max_position_embeddings,
        type_vocab_size=size.type_vocab_size,
    )
    common = model + flags(device="cpu", data_part_num=1, log_dir=folder)
    return run(
        script("run_squad.py", "--save_last_snapshot")
        + flags(data_dir=arguments.work_dir / "train", model_load_dir=arguments.work_dir / f"initial-{seed}")
        + flags(model_save_dir=folder, seed=seed)
        + recipe
        + common,
        folder / "run_squad.log",
    ) + run(
        script("run_squad_predict.py")
        + flags(data_dir=arguments.work_dir / "dev", model_load_dir=folder / "last_snapshot")
        + flags(all_results_file=folder / "all_results.npy", batch_size_per_device=arguments.batch_size)
        + common,
        folder / "run_squad_predict.log",
    )


def run_transformers(folder, seed, recipe, arguments, python):
    """Fine-tunes and predicts into `folder`/all_results.npy. Returns the seconds it took."""
    folder.mkdir(exist_ok=True)
    return run(
        # -I isolates it from this project's environment.
        [python, "-I", ROOT / "benchmarks/transformers_squad.py"]
        + flags(hf_dir=arguments.hf_dir, doc_stride=arguments.doc_stride)
        + flags(train_file=squad_file("train", arguments), train_windows=arguments.work_dir / "train.npz")
        + flags(dev_file=squad_file("dev", arguments), dev_windows=arguments.work_dir / "dev.npz")
        + flags(head_file=arguments.work_dir / f"head-{seed}.npy", order_file=arguments.work_dir / f"order-{seed}.npy")
        + flags(all_results_file=folder / "all_results.npy", seed=seed)
        + recipe,
        folder / "transformers_squad.log",
        HF_HUB_OFFLINE="1",
    )


def score(folder, arguments, seconds):
    """Returns the Score of `folder`/all_results.npy."""
    dev_file = squad_file("dev", arguments)
    run(
        script("npy2json.py")
        + flags(all_results_file=folder / "all_results.npy", predict_file=dev_file, output_dir=folder)
        + window_flags(arguments),
        folder / "npy2json.log",
    )
    run(script("evaluate-v1.1.py", dev_file, folder / "predictions.json"), folder / "evaluate.log")
    result = json.loads(last_line(folder / "evaluate.log"))
    return Score(result["exact_match"], result["f1"], seconds)


def script(name, *arguments):
    """Returns a command line of this project."""
    return [sys.executable, ROOT / name, *arguments]


def flags(**values):
    return [f"--{name}={value}" for name, value in values.items()]


def run(command, log_file, **environment):
    """Runs `command`, logging to `log_file`. Returns the seconds; raises RunError with the last line on failure."""
    begin = time.perf_counter()
    with open(log_file, "wb") as log:
        status = subprocess.run([*map(str, command)], stdout=log, stderr=log, env=os.environ | environment).returncode
    if status:
        raise RunError(f"status {status}: {last_line(log_file)} ({log_file})")
    return time.perf_counter() - begin


def last_line(path):
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""


def mean(scores):
    return Score(*map(statistics.mean, zip(*scores, strict=True)))


def print_row(title, *scores):
    cells = [f"{score.exact_match:.1f} | {score.f1:.1f} | {score.seconds:.0f}" for score in scores]
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
