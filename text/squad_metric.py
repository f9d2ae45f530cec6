"""SQuAD's metrics: exact match and F1 of a predicted text against its references, as in the official scripts."""

import collections
import re
import string

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
