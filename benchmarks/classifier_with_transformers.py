"""Fine-tunes a classifier with this project and with Hugging Face Transformers, side by side.

    python benchmarks/classifier_with_transformers.py --train_file train.tsv --dev_file dev.tsv --hf_dir MODEL

Each line of the files is `label<tab>sentence`; `--hf_dir` is the folder of an uncased BERT from Hugging Face.
Transformers runs in its own environment (torch_environment.py), which the first run creates.

Both sides run on the CPU, one after the other, with the same records and their order, batch size, number of steps, peak
learning rate, warm-up, weight decay, clipping and initial weights of the head, and without dropout. Both use the Adam
of google-research/bert, without bias correction. Only rounding differs.

Real labelled sentences: the source package of vaderSentiment 3.3.2 on PyPI (MIT licence) carries 10,605 sentences from
film reviews, each with the mean of 20 ratings from -4 to 4. The first command leaves out those between -0.5 and 0.5.

    awk -F'\t' '$2 * $2 >= 0.25 {print ($2 > 0 ? "positive" : "negative") FS $3}' \
      movieReviewSnippets_GroundTruth.txt | shuf --random-source=movieReviewSnippets_GroundTruth.txt > all.tsv
    head -n 1000 all.tsv > dev.tsv; sed -n 1001,5000p all.tsv > train.tsv
"""

import json
import statistics

import numpy as np

from comparison import (
    absolute_path,
    add_flags,
    check_inputs,
    convert_model,
    copy_records,
    flags,
    initial_head,
    model_flags,
    other_side,
    prepare_seed,
    recipe,
    run,
    script,
)

# isort: split

import torch_environment
from snapshots import variables
from system.command_line import ArgumentParser
from text.classification import read_labels
from util import run_script

# The losses of these first steps are compared one by one.
NUM_COMPARED = 50
VARIABLES = (variables.CLASSIFIER_WEIGHTS, "output_bias")


def main():
    arguments = parse_arguments()
    check_inputs(arguments.hf_dir, train_file=arguments.train_file, dev_file=arguments.dev_file)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    python_of_transformers = torch_environment.find_or_make()
    counts, num_labels = prepare(arguments)
    iter_num = counts["train"] * arguments.num_epochs // arguments.batch_size
    training_flags = recipe(iter_num, arguments.batch_size, arguments.learning_rate, 0.0, 1)
    print(f"{counts['train']} sentences to train on, {counts['dev']} to predict; {iter_num} steps")
    print(" ".join(training_flags))
    print(
        "| | accuracy | Transformers | largest difference of 50 losses | step, ms | Transformers | ratio "
        "| peak GB | Transformers |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for seed in arguments.seeds:
        head = initial_head(arguments.hf_dir, num_labels, seed)
        prepare_seed(seed, arguments.work_dir, head, VARIABLES, arguments.batch_size, iter_num, num_labels)
        ours = run_this_project(seed, training_flags, arguments)
        theirs = run_transformers(seed, training_flags, arguments, python_of_transformers)
        print_row(seed, ours, theirs)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, text in (("train_file", "learn"), ("dev_file", "score")):
        parser.add_argument(f"--{name}", type=absolute_path, required=True, metavar="TSV", help=f"sentences to {text}")
    add_flags(parser, "classifier_with_transformers", batch_size=32, max_seq_length=64)
    return parser.parse_args()


def prepare(arguments):
    """Makes the snapshot `initial`, the records and their copies. Returns their numbers by file and that of labels."""
    work_dir = arguments.work_dir
    convert_model(arguments.hf_dir, work_dir)
    counts = {}
    for name, path in (("train", arguments.train_file), ("dev", arguments.dev_file)):
        labels = flags(labels_file=work_dir / "train/labels.txt") if name == "dev" else []
        run(
            script("tools/create_classifier_data.py")
            + flags(input_file=path, text_column=2, label_column=1, header=False, output_dir=work_dir / name)
            + flags(vocab_file=work_dir / "vocab.txt", max_seq_length=arguments.max_seq_length)
            + labels,
            work_dir / f"create_classifier_data-{name}.log",
        )
        counts[name] = copy_records(work_dir / name, work_dir / f"{name}.npz")
    return counts, len(read_labels(work_dir / "train/labels.txt"))


def run_this_project(seed, training_flags, arguments):
    """Fine-tunes and evaluates. Returns {losses, seconds, peak_gb, accuracy}, of every step those that are lists."""
    work_dir = arguments.work_dir
    folder = work_dir / f"this_project-{seed}"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("metrics-*.jsonl"):
        old.unlink()
    cost = run(
        script("run_classifier.py", "--do_train", "--save_last_snapshot")
        + flags(data_dir=work_dir / "train", model_load_dir=work_dir / f"initial-{seed}", model_save_dir=folder)
        + flags(seq_length=arguments.max_seq_length, device="cpu", log_dir=folder, seed=seed)
        + model_flags(arguments.hf_dir)
        + training_flags,
        folder / "train.log",
    )
    run(
        script("run_classifier.py", "--do_eval")
        + flags(eval_data_dir=work_dir / "dev", model_load_dir=folder / "last_snapshot", output_dir=folder)
        + flags(seq_length=arguments.max_seq_length, device="cpu"),
        folder / "evaluate.log",
    )
    (log,) = folder.glob("metrics-*.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    results = dict(line.split(" = ") for line in (folder / "eval_results.txt").read_text().splitlines())
    return {
        "losses": [step["total_loss"] for step in steps],
        "seconds": [step["sec_per_batch"] for step in steps],
        "peak_gb": cost.peak_gb,
        "accuracy": float(results["eval_accuracy"]),
    }


def run_transformers(seed, training_flags, arguments, python):
    """As run_this_project."""
    work_dir = arguments.work_dir
    folder = work_dir / f"transformers-{seed}"
    folder.mkdir(exist_ok=True)
    run(
        other_side(python, "transformers_classifier.py")
        + flags(hf_dir=arguments.hf_dir, seed=seed, output_dir=folder)
        + flags(train_records=work_dir / "train.npz", dev_records=work_dir / "dev.npz")
        + flags(head_file=work_dir / f"head-{seed}.npy", order_file=work_dir / f"order-{seed}.npy")
        + training_flags,
        folder / "train.log",
        HF_HUB_OFFLINE="1",
    )
    logits = np.load(folder / "logits.npy", allow_pickle=False)
    with np.load(work_dir / "dev.npz", allow_pickle=False) as records:
        accuracy = float(np.mean(logits.argmax(axis=1) == records["label_ids"][:, 0]))
    return json.loads((folder / "training.json").read_text()) | {"accuracy": accuracy}


def print_row(seed, ours, theirs):
    compared = [np.array(side["losses"][:NUM_COMPARED]) for side in (ours, theirs)]
    difference = np.abs(compared[0] - compared[1]).max()
    our_step, their_step = (1000 * statistics.median(side["seconds"]) for side in (ours, theirs))
    print(
        f"| seed {seed} | {ours['accuracy']:.3f} | {theirs['accuracy']:.3f} | {difference:.1e} | {our_step:.0f} | "
        f"{their_step:.0f} | {their_step / our_step:.2f} | {ours['peak_gb']:.2f} | {theirs['peak_gb']:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
