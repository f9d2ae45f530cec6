"""SQuAD's metrics, exact match and F1 of a predicted text against its references, as in the official scripts.

Those of v2.0, with questions that have no answer: Rajpurkar et al. 2018, "Know What You Don't Know". There, a score is
exact match (0 or 1) or F1 of one question; `na_probs` is how likely each question has no answer, of any scale.
"""

import collections
import re
import string
from typing import NamedTuple

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def evaluate(references, predictions, is_v2=False):
    """Returns {"exact_match": ..., "f1": ...} in percent: the mean over questions of the best score over references.

    `references`: id -> list of texts; `predictions`: id -> text. A question without a prediction scores 0. With `is_v2`
    scores are those of `score_v2`.
    """
    score_one = score_v2 if is_v2 else score
    exact_match = f1 = 0
    for question_id, texts in references.items():
        if question_id in predictions:
            is_exact, best_f1 = score_one(predictions[question_id], texts)
            exact_match += is_exact
            f1 += best_f1
    return {"exact_match": 100.0 * exact_match / len(references), "f1": 100.0 * f1 / len(references)}


def score(prediction, references):
    """Returns (exact match as bool, best F1) of a text against at least one reference, all normalised."""
    prediction = normalise(prediction)
    references = [normalise(text) for text in references]
    is_exact = prediction in references
    return is_exact, max(f1_score(prediction.split(), reference.split()) for reference in references)


def score_v2(prediction, references):
    """Like `score`, for SQuAD v2.0: without references the correct prediction is the empty text.

    Ignores references that are empty after normalisation.
    """
    references = [text for text in references if normalise(text)]
    if references:
        return score(prediction, references)
    is_right = normalise(prediction) == ""
    return is_right, float(is_right)


def normalise(text):
    """Lower-cases, then removes ASCII punctuation, articles and repeated white space, in this order."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def f1_score(prediction, reference):
    """Returns the F1 of two lists of words, compared as multisets."""
    num_shared = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
    if num_shared == 0:
        return 0
    precision = num_shared / len(prediction)
    recall = num_shared / len(reference)
    return 2 * precision * recall / (precision + recall)


class Curve(NamedTuple):
    """Precision and recall of the questions answered below each threshold, lists of floats in [0, 1]."""

    precisions: list
    recalls: list
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
    return Curve(precisions, recalls, 100.0 * average)
