"""Times npy2json.py on 10,570 questions, as many as SQuAD v1.1's development set has, with random logits.

    python benchmarks/npy2json.py --input_file dev-v1.1.json --vocab_file vocab.txt [--bert_repo /tmp/bert]

Repeats the questions of the file; the logits of each window are noise with a peak, like a trained model's. With a
checkout of google-research/bert, runs its write_predictions on the same logits and the same single core (timed without
loading TensorFlow) and compares the files byte for byte.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from records import ofrecord, prediction_file  # noqa: E402

NUM_QUESTIONS = 10570
SEQ_LENGTH = 384
FILES = ["predictions.json", "nbest_predictions.json"]


def main():
    arguments = parse_arguments()
    # Child processes inherit the single core.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        questions = folder / "dev.json"
        write_questions(arguments.input_file, questions)
        flags = [f"--predict_file={questions}", f"--vocab_file={os.path.abspath(arguments.vocab_file)}"]
        num_windows = write_results(folder, questions, arguments.vocab_file)
        seconds = [seconds_of_ours(folder, flags) for _ in range(arguments.runs)]
        print(f"{NUM_QUESTIONS} questions, {num_windows} windows, one core")
        print("| | seconds |")
        print("| --- | --- |")
        print(f"| npy2json.py, whole process, median of {arguments.runs} | {statistics.median(seconds):.1f} |")
        if arguments.bert_repo:
            print(f"| run_squad.py, without imports | {seconds_of_google(folder, arguments.bert_repo, flags):.1f} |")
            for name in FILES:
                same = (folder / "ours" / name).read_bytes() == (folder / "google" / name).read_bytes()
                print(f"{name}: {'the same, byte for byte' if same else 'DIFFERENT'}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_file", required=True, help="SQuAD v1.1 questions")
    parser.add_argument("--vocab_file", required=True)
    parser.add_argument("--bert_repo", help="checkout of google-research/bert")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def write_questions(source, target):
    """Writes NUM_QUESTIONS questions of `source`, with unique ids, to `target`."""
    original = json.loads(Path(source).read_text(encoding="utf-8"))
    paragraphs = []
    number = 0
    while number < NUM_QUESTIONS:
        for article in original["data"]:
            for paragraph in article["paragraphs"]:
                qas = [{**qa, "id": f"{number + index}"} for index, qa in enumerate(paragraph["qas"])]
                qas = qas[: NUM_QUESTIONS - number]
                number += len(qas)
                paragraphs.append({**paragraph, "qas": qas})
    target.write_text(json.dumps({"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}))


def write_results(folder, questions, vocab_file):
    """Writes all_results.npy for all windows of the questions. Returns the number of windows."""
    command = [sys.executable, str(ROOT / "tools/create_squad_data.py"), "--is_training=False"]
    flags = [f"--input_file={questions}", f"--vocab_file={vocab_file}", f"--output_dir={folder}/parts"]
    subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
    lengths = [features["input_mask"].sum() for _, features in ofrecord.read(folder / "parts" / "part-0")]
    generator = np.random.default_rng(0)
    results = np.zeros(len(lengths), prediction_file.result_dtype(SEQ_LENGTH))
    results["unique_id"] = 1000000000 + np.arange(len(lengths))
    positions = np.arange(SEQ_LENGTH)
    peaks = generator.integers(20, lengths)[:, np.newaxis]
    for name, peak in [("start_logits", peaks), ("end_logits", peaks + 3)]:
        results[name] = generator.normal(-6, 1.5, (len(lengths), SEQ_LENGTH)) + 12 * np.exp(-abs(positions - peak) / 4)
    np.save(folder / "all_results.npy", results)
    return len(lengths)


def seconds_of_ours(folder, flags):
    command = [sys.executable, str(ROOT / "npy2json.py"), f"--all_results_file={folder}/all_results.npy"]
    begin = time.perf_counter()
    subprocess.run([*command, f"--output_dir={folder}/ours", *flags], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def seconds_of_google(folder, bert_repo, flags):
    (folder / "google").mkdir()
    command = [sys.executable, str(ROOT / "benchmarks/google_squad.py"), bert_repo, f"{folder}/all_results.npy"]
    command += ["--task=answer", f"--output_dir={folder}/google", *flags]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])["seconds"]


if __name__ == "__main__":
    main()
