"""Fine-tunes BERT on SQuAD windows with Hugging Face Transformers, then predicts: the other side of a comparison.

squad_with_transformers.py runs this script in an environment from requirements-torch.txt; it imports nothing from this
project. The recipe is that of Transformers' question answering examples, but with the Adam of the published BERT.
Prints the loss like run_squad.py; the last line says how many of the given windows equal Transformers' own.
"""

import argparse
import json

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-6


def main():
    arguments = parse_arguments()
    train_windows = load_windows(arguments.train_windows)
    dev_windows = load_windows(arguments.dev_windows)
    tokenizer = AutoTokenizer.from_pretrained(arguments.hf_dir)
    comparisons = [
        compare_windows(train_windows, arguments.train_file, tokenizer, arguments.doc_stride),
        compare_windows(dev_windows, arguments.dev_file, tokenizer, arguments.doc_stride),
    ]

    torch.manual_seed(arguments.seed)
    model = AutoModelForQuestionAnswering.from_pretrained(
        arguments.hf_dir,
        hidden_dropout_prob=arguments.hidden_dropout_prob,
        attention_probs_dropout_prob=arguments.attention_probs_dropout_prob,
    )
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.from_numpy(np.load(arguments.head_file, allow_pickle=False)).T)
        model.qa_outputs.bias.zero_()
    # Transformers does not train the embedding of [PAD]; the published BERT does.
    model.bert.embeddings.word_embeddings.padding_idx = None
    fine_tune(model, train_windows, np.load(arguments.order_file, allow_pickle=False), arguments)
    np.save(arguments.all_results_file, predict(model, dev_windows, arguments.batch_size_per_device))
    print("; ".join(comparisons))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf_dir", required=True, help="folder of the model to fine-tune")
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
    parser.add_argument("--batch_size_per_device", type=int, required=True)
    parser.add_argument("--iter_num", type=int, required=True)
    parser.add_argument("--warmup_batches", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--weight_decay_rate", type=float, required=True)
    parser.add_argument("--hidden_dropout_prob", type=float, required=True)
    parser.add_argument("--attention_probs_dropout_prob", type=float, required=True)
    parser.add_argument("--loss_print_every_n_iter", type=int, required=True)
    parser.add_argument("--head_file", required=True, help=".npy file: initial weights of the head, [hidden, 2]")
    parser.add_argument("--order_file", required=True, help=".npy file: the rows of --train_windows in each batch")
    parser.add_argument("--seed", type=int, required=True, help="random seed of dropout")
    return parser.parse_args()


def load_windows(path):
    """Returns name -> int64 tensor [N, length] of the fields of N records."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays.files}


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


def fine_tune(model, windows, order, arguments):
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments.weight_decay_rate))
    model.train()
    losses = []
    for iteration, rows in enumerate(order):
        output = model(
            **model_inputs(windows, rows),
            start_positions=windows["start_positions"][rows, 0],
            end_positions=windows["end_positions"][rows, 0],
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        set_step(optimizer, iteration, arguments)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
        if len(losses) == arguments.loss_print_every_n_iter:
            print(f"iter {iteration}, total_loss: {np.mean(losses):.3f}", flush=True)
            losses = []


def set_step(optimizer, step, arguments):
    """Sets PyTorch's Adam up for step `step`, counted from 0, to match google-research/bert's optimization.py.

    Sets linear warm-up and decay, and undoes the bias correction, which BERT's Adam lacks: over the first few hundred
    steps this makes steps three to six times as long. Epsilon, which is added to the corrected root of the second
    moment, and the weight decay, which is multiplied by the learning rate, are adjusted, too.
    """
    if step < arguments.warmup_batches:
        schedule = step / arguments.warmup_batches
    else:
        schedule = max(0, 1 - step / arguments.iter_num)
    beta1, beta2 = BETAS
    correction1, correction2 = 1 - beta1 ** (step + 1), (1 - beta2 ** (step + 1)) ** 0.5
    for group in optimizer.param_groups:
        group["lr"] = schedule * arguments.learning_rate * correction1 / correction2
        group["eps"] = EPSILON / correction2
        group["weight_decay"] = group["published_weight_decay"] * correction2 / correction1


def parameter_groups(model, weight_decay_rate):
    """Returns the parameter groups for AdamW: no weight decay for biases and LayerNorm."""
    decaying, others = [], []
    for name, parameter in model.named_parameters():
        (others if name.endswith("bias") or "LayerNorm" in name else decaying).append(parameter)
    return [
        {"params": decaying, "published_weight_decay": weight_decay_rate, "betas": BETAS},
        {"params": others, "published_weight_decay": 0.0, "betas": BETAS},
    ]


def model_inputs(windows, rows):
    """Returns the fields of some records under their names in Transformers."""
    return {
        "input_ids": windows["input_ids"][rows],
        "attention_mask": windows["input_mask"][rows],
        "token_type_ids": windows["segment_ids"][rows],
    }


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
            output = model(**model_inputs(windows, rows))
            results["start_logits"][rows] = output.start_logits
            results["end_logits"][rows] = output.end_logits
    return results


if __name__ == "__main__":
    main()
