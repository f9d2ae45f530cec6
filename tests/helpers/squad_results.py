"""Random results of run_squad_predict.py, and the other files that npy2json.py reads."""

import json

import numpy as np

import hard_text
import reference_squad
from records.prediction_file import result_dtype

SETTINGS = {
    "max_seq_length": 24,
    "doc_stride": 5,
    "max_query_length": 6,
    "do_lower_case": True,
    "n_best_size": 20,
    "max_answer_length": 30,
    "version_2_with_negative": False,
    "null_score_diff_threshold": 0.0,
}


def make_results(content, seed, ties, **options):
    """Returns random results for every window of `content`; with `ties` the logits have few distinct values."""
    options = {**SETTINGS, **options}
    names = ["max_seq_length", "doc_stride", "max_query_length", "do_lower_case"]
    features = reference_squad.make_features(
        reference_squad.read_examples(content), hard_text.VOCAB, **{name: options[name] for name in names}
    )
    generator = np.random.default_rng(seed)
    results = np.zeros(len(features), result_dtype(options["max_seq_length"]))
    results["unique_id"] = [feature["unique_id"] for feature in features]
    for name in ("start_logits", "end_logits"):
        results[name] = generator.normal(0, 4, results[name].shape)
        if ties:
            results[name] = np.round(results[name] / 4)
    return results


def write_inputs(folder, content, results):
    """Writes the input of npy2json.py to `folder` and returns the flags that name it."""
    (folder / "dev.json").write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("\n".join(hard_text.VOCAB) + "\n", encoding="utf-8")
    np.save(folder / "all_results.npy", results)
    return {
        "predict_file": folder / "dev.json",
        "vocab_file": folder / "vocab.txt",
        "all_results_file": folder / "all_results.npy",
        "output_dir": folder / "answers",
    }
