"""Pre-trains a small BERT with this project and with Hugging Face Transformers, side by side, and draws both curves.

    python benchmarks/pretraining_with_transformers.py --data_dir train --eval_data_dir held-out -o curve.png

The folders are from tools/create_pretraining_data.py; the first has one part. Transformers runs in its own environment
(torch_environment.py), which the first run creates.

Both sides run on the CPU, one after the other, with the same initial weights, records and their order, batch size,
learning rate and warm-up, weight decay and clipping, without dropout, and with the Adam of google-research/bert. Only
rounding differs.
"""

import json
import shutil
import statistics

from comparison import (
    ROOT,
    absolute_path,
    copy_records,
    flags,
    other_side,
    recipe,
    run,
    script,
    write_order,
)

# isort: split

import torch_environment
from records import description
from system.command_line import ArgumentParser, add_number, non_negative_float, positive_int
from system.errors import UserError
from util import run_script

SEED = 1
SHAPE = ("num_hidden_layers", "num_attention_heads", "hidden_size_per_head")


def main():
    arguments = parse_arguments()
    work_dir = arguments.work_dir
    described = description.read(arguments.data_dir)
    if described is None or not (arguments.data_dir / "part-0").is_file():
        raise UserError(f"--data_dir={arguments.data_dir}: has no part-0 of tools/create_pretraining_data.py")
    work_dir.mkdir(parents=True, exist_ok=True)
    python_of_transformers = torch_environment.find_or_make()
    count = copy_records(arguments.data_dir, work_dir / "train.npz")
    evaluated = copy_records(arguments.eval_data_dir, work_dir / "eval.npz")
    print(f"{count} records to train on, {evaluated} to evaluate", flush=True)
    lengths = {
        "seq_length": described["max_seq_length"],
        "max_predictions_per_seq": described["max_predictions_per_seq"],
    }
    data = flags(data_dir=arguments.data_dir, **lengths, device="cpu", seed=SEED)
    make_initial_model(data, arguments)
    sizes = (arguments.batch_size, arguments.iter_num, SEED)
    most = lengths["max_predictions_per_seq"]
    order_file = write_order("pretraining", most, arguments.data_dir, work_dir / "train.npz", *sizes)
    training_flags = recipe(arguments.iter_num, arguments.batch_size, arguments.learning_rate, 0.0, 100)
    training_flags += flags(eval_every_n_iter=arguments.eval_every_n_iter)
    print(" ".join(training_flags), flush=True)
    ours = run_this_project(data + training_flags, arguments)
    theirs = run_transformers(training_flags, order_file, arguments, python_of_transformers)
    print_table(ours, theirs)
    folders = [work_dir / "this_project", work_dir / "transformers"]
    run(script("tools/plot_log.py", "-o", arguments.output, *folders), work_dir / "plot.log")


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, text in (("data_dir", "records to train on"), ("eval_data_dir", "held-out records")):
        parser.add_argument(f"--{name}", type=absolute_path, required=True, metavar="DIR", help=text)
    parser.add_argument(
        "--work_dir",
        type=absolute_path,
        default=ROOT / ".cache/pretraining_with_transformers",
        metavar="DIR",
        help="folder for models, results and logs",
    )
    parser.add_argument(
        "-o", "--output", type=absolute_path, required=True, metavar="PNG", help="picture of the curves"
    )
    for name, default in (*zip(SHAPE, (2, 4, 32), strict=True), ("batch_size", 64), ("iter_num", 4000)):
        add_number(parser, f"--{name}", positive_int, default, "as run_pretraining.py's")
    add_number(parser, "--eval_every_n_iter", positive_int, 500, "steps")
    add_number(parser, "--learning_rate", non_negative_float, 1e-3, "peak learning rate")
    return parser.parse_args()


def make_initial_model(data, arguments):
    """Makes the model that both sides start from: the snapshot initial/last_snapshot and the folder initial-hf."""
    work_dir = arguments.work_dir
    shutil.rmtree(work_dir / "initial", ignore_errors=True)
    run(
        script("run_pretraining.py", "--save_last_snapshot", "--save_optimizer=False")
        + data
        + flags(**{name: getattr(arguments, name) for name in SHAPE})
        # A step of learning rate 0 leaves the model as it is.
        + flags(iter_num=1, batch_size_per_device=1, learning_rate=0, warmup_batches=0, log_dir=work_dir / "initial")
        + flags(model_save_dir=work_dir / "initial"),
        work_dir / "initial.log",
    )
    run(
        script("tools/convert_hf.py", "export", "--overwrite")
        + flags(snapshot_dir=work_dir / "initial/last_snapshot", hf_dump_path=work_dir / "initial-hf"),
        work_dir / "convert_hf.log",
    )


def run_this_project(training_flags, arguments):
    """Pre-trains. Returns its JSON lines, those of steps and those of evaluations."""
    folder = arguments.work_dir / "this_project"
    shutil.rmtree(folder, ignore_errors=True)
    run(
        script("run_pretraining.py", "--reset_train_step", "--save_optimizer=False")
        + training_flags
        + flags(eval_data_dir=arguments.eval_data_dir, model_load_dir=arguments.work_dir / "initial/last_snapshot")
        + flags(log_dir=folder, model_save_dir=folder / "model"),
        arguments.work_dir / "this_project.log",
    )
    (log,) = folder.glob("metrics-*.jsonl")
    return read_lines(log)


def run_transformers(training_flags, order_file, arguments, python):
    """As run_this_project."""
    work_dir = arguments.work_dir
    folder = work_dir / "transformers"
    folder.mkdir(exist_ok=True)
    run(
        other_side(python, "transformers_pretraining.py")
        + flags(hf_dir=work_dir / "initial-hf", order_file=order_file, output_dir=folder, seed=SEED)
        + flags(train_records=work_dir / "train.npz", eval_records=work_dir / "eval.npz")
        + training_flags,
        work_dir / "transformers.log",
        HF_HUB_OFFLINE="1",
    )
    return read_lines(folder / "metrics-transformers.jsonl")


def read_lines(path):
    """Returns (JSON lines of steps, JSON lines of evaluations)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    evaluations = [line for line in lines if "eval_masked_lm_loss" in line]
    return [line for line in lines if "total_loss" in line], evaluations


def print_table(ours, theirs):
    (our_steps, our_evaluations), (their_steps, their_evaluations) = ours, theirs
    differences = [abs(x["total_loss"] - y["total_loss"]) for x, y in zip(our_steps, their_steps, strict=True)]
    print(f"Largest difference of the first 50 losses: {max(differences[:50]):.1e}")
    medians = [1000 * statistics.median(step["sec_per_batch"] for step in steps) for steps in (our_steps, their_steps)]
    print(f"Median step: {medians[0]:.0f} ms, Transformers {medians[1]:.0f} ms, ratio {medians[1] / medians[0]:.2f}")
    print("| steps | masked_lm_loss | masked_lm_accuracy | Transformers: masked_lm_loss | masked_lm_accuracy |")
    print("| --- | --- | --- | --- | --- |")
    names = ("eval_masked_lm_loss", "eval_masked_lm_accuracy")
    for mine, other in zip(our_evaluations, their_evaluations, strict=True):
        cells = [f"{side[name]:.3f}" for side in (mine, other) for name in names]
        print(f"| {mine['iter'] + 1} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_script(main)
