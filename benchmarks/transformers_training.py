"""Training in Hugging Face Transformers with the Adam of the published BERT. Imports nothing from this project."""

import time

import numpy as np
import torch

MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-6


def add_flags(parser):
    """Adds the flags of comparison.recipe() and of the model and the order of the records."""
    parser.add_argument("--hf_dir", required=True, help="folder of the model to train")
    parser.add_argument("--batch_size_per_device", type=int, required=True)
    parser.add_argument("--iter_num", type=int, required=True)
    parser.add_argument("--warmup_batches", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--weight_decay_rate", type=float, required=True)
    parser.add_argument("--hidden_dropout_prob", type=float, required=True)
    parser.add_argument("--attention_probs_dropout_prob", type=float, required=True)
    parser.add_argument("--loss_print_every_n_iter", type=int, required=True)
    parser.add_argument("--order_file", required=True, help=".npy file: the training records in each batch")
    parser.add_argument("--seed", type=int, required=True, help="random seed of dropout")


def add_head_flag(parser):
    """Adds the flag of the head that comparison.prepare_seed() writes."""
    parser.add_argument("--head_file", required=True, help=".npy file: initial weights of the head, [hidden, N]")


def load_records(path):
    """Returns name -> int64 tensor [N, length] of the fields of N records."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays.files}


def load_model(model_class, head_name, arguments, **config):
    """Returns the model of --hf_dir with the head of --head_file as its linear layer `head_name`."""
    torch.manual_seed(arguments.seed)
    model = model_class.from_pretrained(
        arguments.hf_dir,
        hidden_dropout_prob=arguments.hidden_dropout_prob,
        attention_probs_dropout_prob=arguments.attention_probs_dropout_prob,
        **config,
    )
    head = getattr(model, head_name)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.load(arguments.head_file, allow_pickle=False)).T)
        head.bias.zero_()
    # Transformers does not train the embedding of [PAD]; the published BERT does.
    model.bert.embeddings.word_embeddings.padding_idx = None
    return model


def fine_tune(model, records, targets_of, arguments):
    """Trains `model`; `targets_of(rows)` returns the labels of records as the model takes them.

    Prints the mean loss every --loss_print_every_n_iter iterations. Returns the loss and the seconds of every step.
    """
    losses, seconds = [], []

    def after_step(iteration, loss, seconds_of_step):
        losses.append(loss)
        seconds.append(seconds_of_step)
        if len(losses) % arguments.loss_print_every_n_iter == 0:
            mean = np.mean(losses[-arguments.loss_print_every_n_iter :])
            print(f"iter {iteration}, total_loss: {mean:.3f}", flush=True)

    train(model, lambda rows: model(**model_inputs(records, rows), **targets_of(rows)).loss, arguments, after_step)
    return losses, seconds


def train(model, loss_of, arguments, after_step):
    """Trains `model` on the batches of --order_file; `loss_of(rows)` returns the loss of a batch.

    Calls after_step(iteration, loss, seconds) after every step.
    """
    order = np.load(arguments.order_file, allow_pickle=False)
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments.weight_decay_rate))
    model.train()
    for iteration, rows in enumerate(order):
        begin = time.perf_counter()
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        set_step(optimizer, iteration, arguments)
        optimizer.step()
        optimizer.zero_grad()
        after_step(iteration, loss.item(), time.perf_counter() - begin)


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


def model_inputs(records, rows):
    """Returns the fields of some records under their names in Transformers."""
    return {
        "input_ids": records["input_ids"][rows],
        "attention_mask": records["input_mask"][rows],
        "token_type_ids": records["segment_ids"][rows],
    }
