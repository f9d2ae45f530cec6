"""One side of sentence_vectors.py: a pass over all lines for each line on stdin; prints the seconds of each as JSON.

usage: sentence_vectors_side.py ours|transformers MODEL TEXT OUTPUT

At the end it writes the vectors, scaled to length 1, to OUTPUT. The batches of both sides have 32 lines, and texts are
cut to 128 pieces.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

BATCH_SIZE, MAX_SEQ_LENGTH = 32, 128


def ours(model_folder, lines):
    """Returns a function that computes the vectors of all lines, float32 [N, H]."""
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root), str(root / "tools")]
    os.environ["BERT_SUPERVISE"] = "0"
    import extract_features

    flags = {"model_load_dir": model_folder, "input_file": "-", "output_file": "-", "pooling": "mean", "device": "cpu"}
    sys.argv = ["extract_features.py", *(f"--{name}={value}" for name, value in flags.items())]
    sys.argv += ["--normalize", f"--batch_size={BATCH_SIZE}", f"--max_seq_length={MAX_SEQ_LENGTH}"]
    arguments = extract_features.parse_arguments()
    model = extract_features.loaded.read(arguments, heads=())
    model.run.log_dir = os.path.dirname(os.path.abspath(model_folder))
    scorer = extract_features.load_encoder(model, [-1])
    texts = [(line, None) for line in lines]

    def run():
        features, _ = extract_features.batches.encode(texts, model.tokenizer, MAX_SEQ_LENGTH)
        vectors = dict(extract_features.vectors_of(features, scorer, BATCH_SIZE, arguments))
        return np.stack([vectors[row] for row in range(len(vectors))])

    return run


def transformers(model_folder, lines):
    """Returns a function that computes the vectors of all lines, float32 [N, H]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder).eval()

    def run():
        ids = tokenizer(lines, truncation=True, max_length=MAX_SEQ_LENGTH)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        vectors = np.zeros((len(ids), model.config.hidden_size), np.float32)
        for first in range(0, len(order), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(mean).numpy()
        return vectors

    return run


def main():
    side, model_folder, text, output = sys.argv[1:]
    lines = [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    run = {"ours": ours, "transformers": transformers}[side](model_folder, lines)
    vectors = None
    for _ in sys.stdin:
        begin = time.perf_counter()
        vectors = run()
        print(json.dumps(time.perf_counter() - begin), flush=True)
    np.save(output, vectors)


if __name__ == "__main__":
    main()
