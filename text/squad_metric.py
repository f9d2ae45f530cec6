"""The metric of SQuAD: exact match and F1 of a predicted text and its references, as the official scripts have them."""

import collections
import re
import string

VERSION = "1.1"  # of the data set, as its files state it

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def evaluate(references, predictions):
    """{"exact_match": per cent, "f1": per cent}: means over all questions of the best score over their references.

    `references`: id -> list of texts; `predictions`: id -> text. A question without a prediction scores 0.
    """
    exact_match = f1 = 0
    for question_id, texts in references.items():
        if question_id in predictions:
            is_exact, best_f1 = score(predictions[question_id], texts)
            exact_match += is_exact
            f1 += best_f1
    return {"exact_match": 100.0 * exact_match / len(references), "f1": 100.0 * f1 / len(references)}


def score(prediction, references):
    """(whether the text is one of the references, its best F1 over them); normalised, at least one reference."""
    prediction = normalise(prediction)
    references = [normalise(text) for text in references]
    is_exact = prediction in references
    return is_exact, max(f1_score(prediction.split(), reference.split()) for reference in references)


def score_v2(prediction, references):
    """As `score`, by the metric of SQuAD v2.0: with no references the right prediction is the empty text.

    References of which normalising leaves nothing do not count.
    """
    references = [text for text in references if normalise(text)]
    if references:
        return score(prediction, references)
    is_right = normalise(prediction) == ""
    return is_right, float(is_right)


def normalise(text):
    """Lower case, no ASCII punctuation, no articles, single blanks; in this order."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def f1_score(prediction, reference):
    """The harmonic mean of precision and recall of the words that two lists share, as often as both have them."""
    num_shared = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
    if num_shared == 0:
        return 0
    precision = num_shared / len(prediction)
    recall = num_shared / len(reference)
    return 2 * precision * recall / (precision + recall)
