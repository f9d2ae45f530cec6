"""Runs google-research/bert's create_pretraining_data.py on the installed TensorFlow.

    python benchmarks/google_pretraining_data.py BERT_REPO --input_file=X --output_file=Y --vocab_file=V ...

BERT_REPO is a checkout of google-research/bert, written for TensorFlow 1; the flags are its script's. The last line of
output is the wall-clock and CPU seconds without imports, as JSON.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow.compat.v1 as tensorflow_1  # noqa: E402


def main():
    bert_repo, *flags = sys.argv[1:]
    # Its scripts import TensorFlow 1 as tensorflow.
    sys.modules["tensorflow"] = tensorflow_1
    sys.path[0] = bert_repo
    import create_pretraining_data

    create_pretraining_data.FLAGS(["create_pretraining_data.py", *flags])
    begin = time.perf_counter(), time.process_time()
    create_pretraining_data.main(None)
    end = time.perf_counter(), time.process_time()
    print(json.dumps({"seconds": end[0] - begin[0], "cpu_seconds": end[1] - begin[1]}))


if __name__ == "__main__":
    main()
