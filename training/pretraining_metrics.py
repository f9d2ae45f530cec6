"""Metrics of pre-training, named as in google-research/bert. Needs no OneFlow."""

import numpy as np

from system.errors import UserError

# The first is the default of --metric_for_best_model.
NAMES = (
    "loss",
    "masked_lm_loss",
    "masked_lm_accuracy",
    "next_sentence_loss",
    "next_sentence_accuracy",
    "perplexity",
)

# The record fields of pretrain.BertForPretraining.scores and of metrics().
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
    """Returns the metrics, name -> float: means over all predictions, weighted for masked tokens.

    `fields`: masked_lm_weights [N, P]; `scores`: the outputs of pretrain.BertForPretraining.scores for N records. loss
    is the sum of both losses, perplexity is exp(masked_lm_loss). Raises UserError if no token is masked.
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
