"""Runs the data and answer functions of google-research/bert's run_squad.py on the installed TensorFlow.

BERT_REPO is a checkout of google-research/bert, written for TensorFlow 1; the flags are those of its run_squad.py. The
last line of output is the seconds without imports, as JSON.

    python benchmarks/google_squad.py BERT_REPO features.json --task=train --train_file=X.json --vocab_file=V ...
    python benchmarks/google_squad.py BERT_REPO features.json --task=eval --predict_file=X.json --vocab_file=V ...
    python benchmarks/google_squad.py BERT_REPO all_results.npy --task=answer --predict_file=X.json --output_dir=D ...
    python benchmarks/google_squad.py BERT_REPO pieces.json --task=tokenize --predict_file=texts.json --vocab_file=V ...

`train` and `eval` write all features to a TFRecord file, like run_squad.py, and to the named JSON file ('' for none);
`answer` writes predictions.json and its companions; `tokenize` writes the pieces of each text in a JSON list of texts.
"""

import json
import os
import sys
import tempfile
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow.compat.v1 as tensorflow_1  # noqa: E402

FEATURE_NAMES = ["unique_id", "input_ids", "input_mask", "segment_ids", "start_position", "end_position"]


def main():
    bert_repo, path, task, *flags = sys.argv[1:]
    # Its scripts import TensorFlow 1 as tensorflow; they use tf.contrib only for training.
    sys.modules["tensorflow"] = tensorflow_1
    sys.path[0] = bert_repo
    import tokenization

    import run_squad

    run_squad.flags.DEFINE_bool("shuffle", False, "as main() does before it trains")
    run_squad.FLAGS(["run_squad.py", "--bert_config_file=none", *flags])
    tensorflow_1.logging.set_verbosity(tensorflow_1.logging.ERROR)
    # Excludes the time in which run_squad.py logs its first examples.
    begin = time.perf_counter()
    if task == "--task=answer":
        answer(run_squad, tokenization, path)
    elif task == "--task=tokenize":
        tokenize(run_squad, tokenization, path)
    else:
        make_features(run_squad, tokenization, task == "--task=train", path)
    print(json.dumps({"seconds": time.perf_counter() - begin}))


def make_features(run_squad, tokenization, is_training, path):
    flags = run_squad.FLAGS
    examples = run_squad.read_squad_examples(flags.train_file if is_training else flags.predict_file, is_training)
    if flags.shuffle:
        run_squad.random.Random(12345).shuffle(examples)
    features = []
    with tempfile.TemporaryDirectory() as folder:
        writer = run_squad.FeatureWriter(os.path.join(folder, "features.tf_record"), is_training)

        def write(feature):
            features.append(feature)
            writer.process_feature(feature)

        convert(run_squad, tokenization, examples, is_training, write)
        writer.close()
    if path:
        with open(path, "w") as file:
            json.dump([{name: getattr(feature, name) for name in FEATURE_NAMES} for feature in features], file)


def answer(run_squad, tokenization, path):
    flags = run_squad.FLAGS
    examples = run_squad.read_squad_examples(flags.predict_file, False)
    features = []
    convert(run_squad, tokenization, examples, False, features.append)
    results = [
        run_squad.RawResult(int(unique_id), start_logits.tolist(), end_logits.tolist())
        for unique_id, start_logits, end_logits in np.load(path)
    ]
    names = ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    run_squad.write_predictions(
        examples,
        features,
        results,
        flags.n_best_size,
        flags.max_answer_length,
        flags.do_lower_case,
        *(os.path.join(flags.output_dir, name) for name in names),
    )


def tokenize(run_squad, tokenization, path):
    tokenizer = tokenization.FullTokenizer(run_squad.FLAGS.vocab_file, run_squad.FLAGS.do_lower_case)
    with open(run_squad.FLAGS.predict_file) as file:
        texts = json.load(file)
    with open(path, "w") as file:
        json.dump([tokenizer.tokenize(text) for text in texts], file)


def convert(run_squad, tokenization, examples, is_training, write):
    flags = run_squad.FLAGS
    tokenizer = tokenization.FullTokenizer(flags.vocab_file, flags.do_lower_case)
    run_squad.convert_examples_to_features(
        examples, tokenizer, flags.max_seq_length, flags.doc_stride, flags.max_query_length, is_training, write
    )


if __name__ == "__main__":
    main()
