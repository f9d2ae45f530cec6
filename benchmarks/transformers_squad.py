"""Fine-tunes BERT on SQuAD windows with Hugging Face Transformers, then predicts: the other side of a comparison.

squad_with_transformers.py runs it, in an environment made of requirements-torch.txt; it imports nothing of this
project. The recipe is that of Transformers' own question answering examples, but with the Adam of the published BERT.
Prints the loss as run_squad.py does, and as its last line how many of the windows it was given are those that
Transformers cuts itself.
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
    # Transformers leaves the embedding of [PAD] as it is; in the published BERT it learns as that of any other word.
    model.bert.embeddings.word_embeddings.padding_idx = None
    fine_tune(model, train_windows, np.load(arguments.order_file, allow_pickle=False), arguments)
    np.save(arguments.all_results_file, predict(model, dev_windows, arguments.batch_size_per_device))
    print("; ".join(comparisons))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf_dir", required=True, help="folder of the model to fine-tune")
    parser.add_argument("--train_file", required=True, help="SQuAD questions that --train_windows were made of")
    parser.add_argument("--dev_file", required=True, help="SQuAD questions that --dev_windows were made of")
    parser.add_argument("--train_windows", required=True, help=".npz file: the fields of the records, [N, length] each")
    parser.add_argument("--dev_windows", required=True, help=".npz file: the fields of the records, [N, length] each")
    parser.add_argument("--all_results_file", required=True, help="where the logits go, as run_squad_predict.py's")
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
    parser.add_argument("--seed", type=int, required=True, help="of dropout")
    return parser.parse_args()


def load_windows(path):
    """name -> int64 tensor [N, length] of the fields of N records."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays.files}


def compare_windows(windows, squad_file, tokenizer, doc_stride):
    """One clause on how far the windows that Transformers cuts of `squad_file` are `windows`.

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
    """Makes PyTorch's Adam take step `step`, counted from 0, as that of google-research/bert's optimization.py.

    Linear warm-up, else linear decay; and the bias correction undone, which BERT's Adam has not. In a few hundred steps
    that makes a step three to six times as long. It is undone in epsilon, which stands beside the corrected root of the
    second moment, and in the weight decay, which the learning rate multiplies, too.
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
    """The parameters for AdamW: biases and those of LayerNorm do not decay."""
    decaying, others = [], []
    for name, parameter in model.named_parameters():
        (others if name.endswith("bias") or "LayerNorm" in name else decaying).append(parameter)
    return [
        {"params": decaying, "published_weight_decay": weight_decay_rate, "betas": BETAS},
        {"params": others, "published_weight_decay": 0.0, "betas": BETAS},
    ]


def model_inputs(windows, rows):
    """The fields of some records under the names that Transformers has for them."""
    return {
        "input_ids": windows["input_ids"][rows],
        "attention_mask": windows["input_mask"][rows],
        "token_type_ids": windows["segment_ids"][rows],
    }


def predict(model, windows, batch_size):
    """The logits of all windows, as run_squad_predict.py writes them."""
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
