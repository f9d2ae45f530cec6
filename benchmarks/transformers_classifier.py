"""Fine-tunes BERT to classify sentences with Hugging Face Transformers: the other side of a comparison.

classifier_with_transformers.py runs this script in an environment from requirements-torch.txt. Writes the logits of the
evaluation records as logits.npy and the losses, seconds and peak memory as training.json.
"""

import argparse
import json
import resource
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

import transformers_training as training


def main():
    arguments = parse_arguments()
    records = training.load_records(arguments.train_records)
    evaluated = training.load_records(arguments.dev_records)
    head = np.load(arguments.head_file, allow_pickle=False)
    model = training.load_model(AutoModelForSequenceClassification, "classifier", arguments, num_labels=head.shape[1])

    def targets_of(rows):
        return {"labels": records["label_ids"][rows, 0]}

    losses, seconds = training.fine_tune(model, records, targets_of, arguments)
    folder = Path(arguments.output_dir)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    result = {"losses": losses, "seconds": seconds, "peak_gb": peak}
    (folder / "training.json").write_text(json.dumps(result))
    np.save(folder / "logits.npy", predict(model, evaluated, arguments.batch_size_per_device))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    training.add_flags(parser)
    training.add_head_flag(parser)
    parser.add_argument("--train_records", required=True, help=".npz file with the fields of the records")
    parser.add_argument("--dev_records", required=True, help=".npz file with the fields of the records")
    parser.add_argument("--output_dir", required=True)
    return parser.parse_args()


def predict(model, records, batch_size):
    """Returns the logits of all records, float32 [N, labels]."""
    model.eval()
    with torch.no_grad():
        count = len(records["input_ids"])
        batches = [
            model(**training.model_inputs(records, slice(first, first + batch_size))).logits
            for first in range(0, count, batch_size)
        ]
    return torch.cat(batches).numpy()


if __name__ == "__main__":
    main()
