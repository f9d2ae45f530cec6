"""How well a model predicts masked tokens and next sentences, in google-research/bert's words. Needs no OneFlow."""

import numpy as np

from system.errors import UserError

# The first is what the best model is chosen by, unless another one is asked for.
NAMES = (
    "loss",
    "masked_lm_loss",
    "masked_lm_accuracy",
    "next_sentence_loss",
    "next_sentence_accuracy",
    "perplexity",
)

# The fields of a record that pretrain.BertForPretraining.scores takes, and those that metrics() takes.
INPUTS = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "next_sentence_labels",
)
FIELDS = ("masked_lm_weights",)


def metrics(fields, scores):
    """name -> float: means over all predictions, those of masked tokens by their weights.

    `fields`: masked_lm_weights [N, P]; `scores`: what pretrain.BertForPretraining.scores gives of all N records. loss
    is that of both tasks, perplexity e to the power of masked_lm_loss. Raises UserError if no token is masked.
    """
    weights = fields["masked_lm_weights"].astype(np.float64)
    if not weights.sum() > 0:
        raise UserError("--eval_data_dir: its records mask no token: all masked_lm_weights are 0; make them anew")
    masked_lm_loss, masked_lm_accuracy = (float((weights * values).sum() / weights.sum()) for values in scores[:2])
    next_sentence_loss, next_sentence_accuracy = (float(values.mean(dtype=np.float64)) for values in scores[2:])
    return {
        "masked_lm_loss": masked_lm_loss,
        "masked_lm_accuracy": masked_lm_accuracy,
        "next_sentence_loss": next_sentence_loss,
        "next_sentence_accuracy": next_sentence_accuracy,
        "loss": masked_lm_loss + next_sentence_loss,
        "perplexity": float(np.exp(masked_lm_loss)),
    }
