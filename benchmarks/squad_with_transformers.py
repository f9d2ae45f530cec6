"""Fine-tunes on SQuAD, predicts and scores with this project and with Hugging Face Transformers, side by side.

    python benchmarks/squad_with_transformers.py --squad_dir ../shared/data/squad-small --hf_dir ./all-MiniLM-L6-v2

`--squad_dir` has train-v1.1.json and dev-v1.1.json, `--hf_dir` is the folder of an uncased BERT from Hugging Face.
Transformers runs in its own environment (torch_environment.py), which the first run creates.

The sides run on the CPU, one after the other: this project as published, then with --skip_padding, which leaves
padding out of the softmax of the loss, then Transformers. All have the same windows and their order, batch size, number
of steps, peak learning rate, warm-up, weight decay, clipping, dropout rate, initial weights of the head and the Adam of
google-research/bert, without bias correction. npy2json.py and evaluate-v1.1.py score them. Apart from that only
rounding and, with --dropout, the masks differ.
"""

import json
import statistics
from typing import NamedTuple

from comparison import (
    absolute_path,
    add_flags,
    check_inputs,
    convert_model,
    copy_records,
    flags,
    initial_head,
    last_line,
    model_flags,
    other_side,
    prepare_seed,
    recipe,
    run,
    script,
)

# isort: split

import torch_environment
from system.command_line import ArgumentParser, add_number, positive_int, probability
from util import run_script

SIDES = ("this project", "with --skip_padding", "Transformers")
FOLDERS = ("this_project", "skip_padding", "transformers")
VARIABLES = ("cls-squad-output-weight", "cls-squad-output-bias")


class Score(NamedTuple):
    """Exact match and F1 of a run in percent, and its seconds."""

    exact_match: float
    f1: float
    seconds: float


def main():
    arguments = parse_arguments()
    check_inputs(arguments.hf_dir, **{f"squad_dir/{name}": squad_file(name, arguments) for name in ("train", "dev")})
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    python_of_transformers = torch_environment.find_or_make()
    record_counts = prepare(arguments)
    iter_num = max(1, record_counts["train"] * arguments.num_epochs // arguments.batch_size)
    training_flags = recipe(iter_num, arguments.batch_size, arguments.learning_rate, arguments.dropout, 10)
    print(f"{record_counts['train']} windows to train on, {record_counts['dev']} to predict")
    print(" ".join(training_flags), flush=True)

    print(f"| |{'|'.join(f' {side}: exact match | F1 | seconds ' for side in SIDES)}|")
    print(f"|{' --- |' * (1 + 3 * len(SIDES))}", flush=True)
    scores = []
    for seed in arguments.seeds:
        head = initial_head(arguments.hf_dir, 2, seed)
        prepare_seed(seed, arguments.work_dir, head, VARIABLES, arguments.batch_size, iter_num)
        padded, packed, theirs = (arguments.work_dir / f"{name}-{seed}" for name in FOLDERS)
        seconds = (
            run_this_project(padded, seed, False, training_flags, arguments),
            run_this_project(packed, seed, True, training_flags, arguments),
            run_transformers(theirs, seed, training_flags, arguments, python_of_transformers),
        )
        scores.append([score(*side, arguments) for side in zip((padded, packed, theirs), seconds, strict=True)])
        print_row(f"seed {seed}", scores[-1])
    print_row("mean", [Score(*map(statistics.mean, zip(*side, strict=True))) for side in zip(*scores, strict=True)])
    print(last_line(theirs / "transformers_squad.log"))


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--squad_dir", type=absolute_path, required=True, metavar="DIR", help="folder of train-v1.1.json, dev-v1.1.json"
    )
    add_flags(parser, "squad_with_transformers", batch_size=1, max_seq_length=256)
    add_number(parser, "--dropout", probability, 0.0, "dropout everywhere")
    add_number(parser, "--doc_stride", positive_int, 128, "pieces from one window to the next")
    return parser.parse_args()


def prepare(arguments):
    """Makes the input of both sides in work_dir: vocab.txt, the snapshot `initial` and the windows of the files.

    Writes windows as OFRecord parts and, for Transformers, as an .npz file. Returns the number of windows by file.
    """
    work_dir = arguments.work_dir
    convert_model(arguments.hf_dir, work_dir)
    counts = {}
    for name in ("train", "dev"):
        run(
            script("tools/create_squad_data.py")
            + flags(input_file=squad_file(name, arguments), output_dir=work_dir / name, is_training=name == "train")
            + window_flags(arguments),
            work_dir / f"create_squad_data-{name}.log",
        )
        counts[name] = copy_records(work_dir / name, work_dir / f"{name}.npz")
    return counts


def squad_file(name, arguments):
    return arguments.squad_dir / f"{name}-v1.1.json"


def window_flags(arguments):
    """Returns the window flags of tools/create_squad_data.py and npy2json.py."""
    return flags(
        vocab_file=arguments.work_dir / "vocab.txt",
        max_seq_length=arguments.max_seq_length,
        doc_stride=arguments.doc_stride,
    )


def run_this_project(folder, seed, skip_padding, training_flags, arguments):
    """Fine-tunes and predicts into `folder`/all_results.npy. Returns the seconds it took."""
    folder.mkdir(exist_ok=True)
    common = model_flags(arguments.hf_dir)
    common += flags(seq_length=arguments.max_seq_length, device="cpu", data_part_num=1, log_dir=folder)
    common += flags(skip_padding=skip_padding)
    training = run(
        script("run_squad.py", "--save_last_snapshot")
        + flags(data_dir=arguments.work_dir / "train", model_load_dir=arguments.work_dir / f"initial-{seed}")
        + flags(model_save_dir=folder, seed=seed)
        + training_flags
        + common,
        folder / "run_squad.log",
    )
    prediction = run(
        script("run_squad_predict.py")
        + flags(data_dir=arguments.work_dir / "dev", model_load_dir=folder / "last_snapshot")
        + flags(all_results_file=folder / "all_results.npy", batch_size_per_device=arguments.batch_size)
        + common,
        folder / "run_squad_predict.log",
    )
    return training.seconds + prediction.seconds


def run_transformers(folder, seed, training_flags, arguments, python):
    """Fine-tunes and predicts into `folder`/all_results.npy. Returns the seconds it took."""
    folder.mkdir(exist_ok=True)
    cost = run(
        other_side(python, "transformers_squad.py")
        + flags(hf_dir=arguments.hf_dir, doc_stride=arguments.doc_stride)
        + flags(train_file=squad_file("train", arguments), train_windows=arguments.work_dir / "train.npz")
        + flags(dev_file=squad_file("dev", arguments), dev_windows=arguments.work_dir / "dev.npz")
        + flags(head_file=arguments.work_dir / f"head-{seed}.npy", order_file=arguments.work_dir / f"order-{seed}.npy")
        + flags(all_results_file=folder / "all_results.npy", seed=seed)
        + training_flags,
        folder / "transformers_squad.log",
        HF_HUB_OFFLINE="1",
    )
    return cost.seconds


def score(folder, seconds, arguments):
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


def print_row(title, scores):
    cells = [f"{score.exact_match:.1f} | {score.f1:.1f} | {score.seconds:.0f}" for score in scores]
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
