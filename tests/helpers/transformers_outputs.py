"""Loads a Hugging Face folder with transformers and torch, and saves the outputs of its model.

    python tests/helpers/transformers_outputs.py CLASS FOLDER BATCH.npz OUTPUTS.npz

Prints, as JSON, what transformers says of the loading, how its tokenizer splits a text if the folder has a vocabulary,
and the versions of what ran.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def main():
    class_name, folder, batch_file, outputs_file = sys.argv[1:]
    transformers.logging.set_verbosity_error()
    model, loading = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    with np.load(batch_file) as batch:
        inputs = {name: torch.from_numpy(batch[name]) for name in batch}
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    np.savez(outputs_file, **{name: value.numpy() for name, value in outputs.items()})
    report = {
        "loading": {key: sorted(map(str, value)) for key, value in loading.items()},
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if Path(folder, "vocab.txt").exists():
        report["tokens"] = transformers.AutoTokenizer.from_pretrained(folder).tokenize("Hello unaffable")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
