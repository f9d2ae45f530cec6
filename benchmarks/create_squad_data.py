"""Compares the speed of tools/create_squad_data.py and google-research/bert's run_squad.py on one SQuAD file.

    python benchmarks/create_squad_data.py --bert_repo /tmp/bert --input_file train-v1.1.json --vocab_file vocab.txt

`--bert_repo` is a checkout of google-research/bert. Both make training records on the same single core, in turn; the
table has medians. Google's script is timed with and without loading TensorFlow, this project's from the start of its
process to the end. tests/text/test_against_google.py tests that the records are equal.

This project caches the pieces of words, so repeating a small file would favour it. Therefore a quarter of the distinct
words are new in each copy: the same share as in 600 further questions of the full SQuAD.
"""

import argparse
import json
import os
import re
import statistics
import string
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LETTERS = string.ascii_lowercase
LIMITS = ["--max_seq_length=384", "--doc_stride=128", "--max_query_length=64"]


def main():
    arguments = parse_arguments()
    # Child processes inherit the single core.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    google_work, google_process, ours = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        input_file = Path(folder) / "train.json"
        num_questions = write_input(arguments.input_file, input_file, arguments.copies)
        flags = [f"--vocab_file={os.path.abspath(arguments.vocab_file)}", *LIMITS]
        for _ in range(arguments.runs):
            work, process = seconds_of_google(arguments.bert_repo, [f"--train_file={input_file}", *flags])
            google_work.append(work)
            google_process.append(process)
            ours.append(seconds_of_ours(folder, [f"--input_file={input_file}", *flags]))
    print(f"{num_questions} questions, one core, median of {arguments.runs} runs")
    print("| | seconds | questions a second | times ours |")
    print("| --- | --- | --- | --- |")
    for name, runs in [
        ("google-research/bert, run_squad.py, whole process", google_process),
        ("the same, without loading TensorFlow", google_work),
        ("tools/create_squad_data.py, whole process", ours),
    ]:
        seconds = statistics.median(runs)
        print(f"| {name} | {seconds:.2f} | {num_questions / seconds:.0f} | {seconds / statistics.median(ours):.1f} |")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bert_repo", required=True, help="checkout of google-research/bert")
    parser.add_argument("--input_file", required=True, help="SQuAD v1.1 questions")
    parser.add_argument("--vocab_file", required=True)
    parser.add_argument("--copies", type=int, default=10, help="number of copies of a small file")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def write_input(source, target, copies):
    """Writes `copies` copies of the articles of `source` to `target`. Returns the number of questions."""
    original = json.loads(Path(source).read_text(encoding="utf-8"))
    articles = []
    num_questions = 0
    for copy in range(copies):
        for article in original["data"]:
            paragraphs = []
            for paragraph in article["paragraphs"]:
                qas = [
                    {
                        "id": f"{qa['id']}-{copy}",
                        "question": renew_words(qa["question"], copy),
                        # run_squad.py needs exactly one answer.
                        "answers": [{**qa["answers"][0], "text": renew_words(qa["answers"][0]["text"], copy)}],
                    }
                    for qa in paragraph["qas"]
                ]
                num_questions += len(qas)
                paragraphs.append({"context": renew_words(paragraph["context"], copy), "qas": qas})
            articles.append({"title": article.get("title", ""), "paragraphs": paragraphs})
    target.write_text(json.dumps({"version": "1.1", "data": articles}))
    return num_questions


def renew_words(text, copy):
    """Replaces every fourth distinct word by one of the same length that is unique to the copy; keeps copy 0."""
    shift = copy % len(LETTERS)
    table = str.maketrans(LETTERS, LETTERS[shift:] + LETTERS[:shift])

    def renew(match):
        word = match.group()
        return word.translate(table) if zlib.crc32(f"{copy} {word}".encode()) % 4 == 0 else word

    return re.sub("[A-Za-z]+", renew, text)


def seconds_of_google(bert_repo, flags):
    """Returns (seconds without imports, seconds of the whole process)."""
    command = [sys.executable, str(ROOT / "benchmarks/google_squad.py"), bert_repo, "", "--task=train"]
    begin = time.perf_counter()
    result = subprocess.run([*command, "--output_dir=none", *flags], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])["seconds"], time.perf_counter() - begin


def seconds_of_ours(folder, flags):
    command = [sys.executable, str(ROOT / "tools/create_squad_data.py"), "--is_training=True"]
    begin = time.perf_counter()
    # Replaced words can make an answer differ from its context, which only prints a warning.
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, f"--output_dir={folder}/parts", *flags], check=True, **output)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
