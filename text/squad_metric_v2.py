"""The metric of SQuAD v2.0: exact match and F1 with questions that have no answer, thresholds and precision-recall.

The official script's definitions: Rajpurkar et al. 2018, "Know What You Don't Know". A score is exact match (0 or 1) or
F1 of one question; `na_probs` is how likely each question has no answer, of any scale.
"""

from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Precision and recall of the questions answered below each threshold, arrays of floats in [0, 1]."""

    precisions: np.ndarray
    recalls: np.ndarray
    average_precision: float  # per cent


def apply_threshold(scores, na_probs, is_answerable, threshold):
    """Returns id -> score where questions with a probability above `threshold` count as predicted to have no answer."""
    return {
        question_id: float(not is_answerable[question_id]) if na_probs[question_id] > threshold else score
        for question_id, score in scores.items()
    }


def mean_per_cent(scores, ids):
    """Returns the mean score of the questions `ids`, in per cent."""
    return 100.0 * sum(scores[question_id] for question_id in ids) / len(ids)


def best_threshold(predictions, scores, na_probs, is_answerable):
    """Returns (the best mean score in per cent, the threshold of `na_probs` that gives it).

    Questions up to the threshold are answered, the others are not. `predictions` are texts, "" for no answer.
    """
    best = current = sum(not answerable for answerable in is_answerable.values())
    threshold = 0.0
    for question_id in sorted(na_probs, key=na_probs.__getitem__):
        if is_answerable[question_id]:
            current += scores[question_id]
        elif predictions[question_id]:
            current -= 1
        if current > best:
            best, threshold = current, na_probs[question_id]
    return 100.0 * best / len(scores), threshold


def precision_recall(scores, na_probs, is_answerable):
    """Returns the Curve of answering the questions in the order of `na_probs`; recall is of the answerable ones.

    Questions of equal probability are answered together. At least one question must be answerable.
    """
    answerable_count = sum(is_answerable.values())
    ids = sorted(na_probs, key=na_probs.__getitem__)
    precisions, recalls = [1.0], [0.0]
    true_positives = average = 0.0
    for index, question_id in enumerate(ids):
        if is_answerable[question_id]:
            true_positives += scores[question_id]
        if index + 1 == len(ids) or na_probs[question_id] != na_probs[ids[index + 1]]:
            precision, recall = true_positives / (index + 1), true_positives / answerable_count
            average += precision * (recall - recalls[-1])
            precisions.append(precision)
            recalls.append(recall)
    return Curve(np.array(precisions), np.array(recalls), 100.0 * average)
