"""The metrics of classification tasks and the result files of run_classifier.py."""

import os
import warnings

import numpy as np
from scipy import special, stats
from sklearn import metrics

from system.output_files import atomic_file
from system.progress import print_line
from text.classification import encode_labels

PROBABILITIES_FILE = "test_results.tsv"
PREDICTIONS_FILE = "predictions.tsv"
LABELS_FILE = "labels.txt"


def evaluate(names, logits, label_ids):
    """Returns the metrics `names` and the loss, name -> float, of logits [N, labels] and the right label_ids [N]."""
    logits = logits.astype(np.float64)
    return metrics_of(names, logits, label_ids) | {"loss": _loss(logits, label_ids)}


def metrics_of(names, rows, label_ids):
    """Returns the metrics `names`, name -> float, of logits or probabilities float64 [N, labels] and label_ids [N].

    With one label, `label_ids` are scores. f1 is that of the label 1. A correlation is nan where one side has a single
    value.
    """
    with warnings.catch_warnings():
        # The warnings are about correlations that are nan.
        warnings.simplefilter("ignore")
        return {name: float(_METRICS[name](rows, label_ids)) for name in names}


def _loss(logits, label_ids):
    if logits.shape[1] == 1:
        return float(np.mean(np.square(logits[:, 0] - label_ids)))
    return float(-np.mean(special.log_softmax(logits, axis=1)[np.arange(len(logits)), label_ids]))


def _of_classes(metric):
    return lambda logits, label_ids: metric(label_ids, logits.argmax(axis=1))


def _of_scores(correlation):
    return lambda logits, scores: correlation(logits[:, 0], scores).statistic if len(scores) > 1 else np.nan


_METRICS = {
    "accuracy": _of_classes(metrics.accuracy_score),
    "f1": _of_classes(lambda right, found: metrics.f1_score(right, found, zero_division=0.0)),
    "matthews_correlation": _of_classes(metrics.matthews_corrcoef),
    "pearson": _of_scores(stats.pearsonr),
    "spearman": _of_scores(stats.spearmanr),
}


def write_predictions(folder, logits, labels):
    """Writes the predictions of logits float32 [N, labels]; `labels` are their names, or None.

    test_results.tsv has a row of probabilities per record, as google-research/bert's; labels.txt names its columns, by
    numbers if the names are not known. predictions.tsv has the number and the label of each record, as GLUE takes them.
    With one label both have the score.
    """
    is_regression = logits.shape[1] == 1
    rows = logits if is_regression else special.softmax(logits.astype(np.float64), axis=1).astype(np.float32)
    names = labels or range(logits.shape[1])
    predicted = logits[:, 0] if is_regression else [names[index] for index in logits.argmax(axis=1)]
    if not is_regression:
        # Also without names: those of an earlier prediction in the folder would count as the names of these columns.
        with atomic_file(os.path.join(folder, LABELS_FILE)) as file:
            file.write(encode_labels(names))
    with atomic_file(os.path.join(folder, PROBABILITIES_FILE), "w") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in rows)
    with atomic_file(os.path.join(folder, PREDICTIONS_FILE), "w", encoding="utf-8") as file:
        file.write("index\tprediction\n")
        file.writelines(f"{index}\t{label}\n" for index, label in enumerate(predicted))
    print_line(f"Predicted {len(rows)} examples: {folder}/{PROBABILITIES_FILE}, {folder}/{PREDICTIONS_FILE}")
