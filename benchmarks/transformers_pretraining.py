"""Pre-trains BERT with Hugging Face Transformers: the other side of a comparison.

pretraining_with_transformers.py runs this script in an environment from requirements-torch.txt. Writes the losses and
the evaluations like run_pretraining.py, as JSON lines in `--output_dir`/metrics-transformers.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import BertForPreTraining

import transformers_training as training

EVALUATION_BATCH = 32


def main():
    arguments = parse_arguments()
    records = training.load_records(arguments.train_records)
    evaluated = training.load_records(arguments.eval_records)
    model = BertForPreTraining.from_pretrained(
        arguments.hf_dir,
        hidden_dropout_prob=arguments.hidden_dropout_prob,
        attention_probs_dropout_prob=arguments.attention_probs_dropout_prob,
    )
    # Transformers does not train the embedding of [PAD]; the published BERT does.
    model.bert.embeddings.word_embeddings.padding_idx = None
    with open(Path(arguments.output_dir) / "metrics-transformers.jsonl", "w", buffering=1) as log:

        def loss_of(rows):
            scores = score(model, records, rows)
            mlm_loss = (scores["masked_lm"] * scores["weights"]).sum() / (scores["weights"].sum() + 1e-5)
            return mlm_loss + scores["next_sentence"].mean()

        def after_step(iteration, loss, seconds):
            line = {"iter": iteration, "train_step": iteration, "total_loss": loss, "sec_per_batch": seconds}
            log.write(json.dumps(line) + "\n")
            if (iteration + 1) % arguments.eval_every_n_iter == 0:
                line = {"iter": iteration, "train_step": iteration, **evaluate(model, evaluated)}
                log.write(json.dumps(line) + "\n")

        training.train(model, loss_of, arguments, after_step)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    training.add_flags(parser)
    parser.add_argument("--train_records", required=True, help=".npz file with the fields of the records")
    parser.add_argument("--eval_records", required=True, help=".npz file with the fields of the records")
    parser.add_argument("--eval_every_n_iter", type=int, required=True)
    parser.add_argument("--output_dir", required=True)
    return parser.parse_args()


def score(model, records, rows):
    """Returns the cross-entropies and whether each prediction is correct, [B * P] for masked tokens and [B].

    Applies the modules of BertForPreTraining to the masked positions only, as google-research/bert does.
    """
    output = model.bert(**training.model_inputs(records, rows))
    positions = records["masked_lm_positions"][rows]
    hidden = output.last_hidden_state
    masked = hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[2])).flatten(0, 1)
    masked_lm_logits = model.cls.predictions(masked)
    next_sentence_logits = model.cls.seq_relationship(output.pooler_output)
    masked_lm_ids = records["masked_lm_ids"][rows].flatten()
    next_sentence_labels = records["next_sentence_labels"][rows, 0]
    return {
        "weights": records["masked_lm_weights"][rows].flatten().float(),
        "masked_lm": cross_entropy(masked_lm_logits, masked_lm_ids, reduction="none"),
        "masked_lm_is_right": masked_lm_logits.argmax(dim=1) == masked_lm_ids,
        "next_sentence": cross_entropy(next_sentence_logits, next_sentence_labels, reduction="none"),
        "next_sentence_is_right": next_sentence_logits.argmax(dim=1) == next_sentence_labels,
    }


def evaluate(model, records):
    """Returns the metrics of run_pretraining.py over all records."""
    model.eval()
    with torch.no_grad():
        count = len(records["input_ids"])
        batches = [
            score(model, records, np.arange(first, min(first + EVALUATION_BATCH, count)))
            for first in range(0, count, EVALUATION_BATCH)
        ]
    model.train()
    scores = {name: torch.cat([batch[name] for batch in batches]).double() for name in batches[0]}
    weights = scores["weights"]
    return {
        "eval_masked_lm_loss": ((scores["masked_lm"] * weights).sum() / weights.sum()).item(),
        "eval_masked_lm_accuracy": ((scores["masked_lm_is_right"] * weights).sum() / weights.sum()).item(),
        "eval_next_sentence_loss": scores["next_sentence"].mean().item(),
        "eval_next_sentence_accuracy": scores["next_sentence_is_right"].mean().item(),
    }


if __name__ == "__main__":
    main()
