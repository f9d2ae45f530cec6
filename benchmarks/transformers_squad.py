"""Fine-tunes BERT on SQuAD windows with Hugging Face Transformers, then predicts: the other side of a comparison.

squad_with_transformers.py runs this script in an environment from requirements-torch.txt. The recipe is that of
Transformers' question answering examples, but with the Adam of the published BERT. Prints the loss like run_squad.py;
the last line says how many of the given windows equal Transformers' own.
"""

import argparse
import json

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import transformers_training as training


def main():
    arguments = parse_arguments()
    train_windows = training.load_records(arguments.train_windows)
    dev_windows = training.load_records(arguments.dev_windows)
    tokenizer = AutoTokenizer.from_pretrained(arguments.hf_dir)
    comparisons = [
        compare_windows(train_windows, arguments.train_file, tokenizer, arguments.doc_stride),
        compare_windows(dev_windows, arguments.dev_file, tokenizer, arguments.doc_stride),
    ]

    model = training.load_model(AutoModelForQuestionAnswering, "qa_outputs", arguments)

    def targets_of(rows):
        return {name: train_windows[name][rows, 0] for name in ("start_positions", "end_positions")}

    training.fine_tune(model, train_windows, targets_of, arguments)
    np.save(arguments.all_results_file, predict(model, dev_windows, arguments.batch_size_per_device))
    print("; ".join(comparisons))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    training.add_flags(parser)
    training.add_head_flag(parser)
    parser.add_argument("--train_file", required=True, help="SQuAD questions of --train_windows")
    parser.add_argument("--dev_file", required=True, help="SQuAD questions of --dev_windows")
    parser.add_argument(
        "--train_windows", required=True, help=".npz file with the fields of the records, [N, length] each"
    )
    parser.add_argument(
        "--dev_windows", required=True, help=".npz file with the fields of the records, [N, length] each"
    )
    parser.add_argument(
        "--all_results_file", required=True, help="file for the logits, in the format of run_squad_predict.py"
    )
    parser.add_argument("--doc_stride", type=int, required=True)
    return parser.parse_args()


def compare_windows(windows, squad_file, tokenizer, doc_stride):
    """Describes how many of `windows` equal those that Transformers makes from `squad_file`.

    Its `stride` is the overlap of two windows, where SQuAD's doc_stride is the distance from one to the next.
    """
    seq_length = windows["input_ids"].shape[1]
    theirs = []
    with open(squad_file, encoding="utf-8") as file:
        articles = json.load(file)["data"]
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        for question in (qa["question"].lstrip() for qa in paragraph["qas"]):
            room = seq_length - len(tokenizer(question)["input_ids"]) - 1
            cut = tokenizer(
                question,
                paragraph["context"],
                truncation="only_second",
                max_length=seq_length,
                stride=max(0, room - doc_stride),
                return_overflowing_tokens=True,
            )
            theirs.extend(map(tuple, cut["input_ids"]))
    lengths = windows["input_mask"].sum(dim=1)
    ours = [tuple(ids[:length].tolist()) for ids, length in zip(windows["input_ids"], lengths, strict=True)]
    same = sum(x == y for x, y in zip(ours, theirs, strict=True))
    return f"{squad_file}: {len(ours)} windows, {len(theirs)} if cut by Transformers, {same} of them the same"


def predict(model, windows, batch_size):
    """Returns the logits of all windows, in the format of run_squad_predict.py."""
    count, seq_length = windows["input_ids"].shape
    logits = (np.float32, (seq_length,))
    results = np.zeros(count, [("unique_id", np.int64), ("start_logits", *logits), ("end_logits", *logits)])
    results["unique_id"] = windows["unique_ids"][:, 0]
    model.eval()
    with torch.no_grad():
        for first in range(0, count, batch_size):
            rows = slice(first, first + batch_size)
            output = model(**training.model_inputs(windows, rows))
            results["start_logits"][rows] = output.start_logits
            results["end_logits"][rows] = output.end_logits
    return results


if __name__ == "__main__":
    main()
