"""Compares the speed of tools/create_pretraining_data.py and google-research/bert's script on the same text.

    python benchmarks/create_pretraining_data.py --bert_repo ../bert

`--bert_repo` is a checkout of google-research/bert. Runs take turns; the tables have medians of two comparisons:

1. Both scripts, one process each, on the same single core. This favours Google's script, which is timed without loading
   TensorFlow; this project's is timed from the start of its process to the end.
2. This project's script with 1, 2, ... processes, on more text and with 4 parts per process.

On a busy machine, compare the CPU seconds: more processes save time only if cores are idle.

Without --input_file the text is random. This project caches words, so the number of distinct words matters: they follow
a Zipf-Mandelbrot distribution with about as many as in English, 17,000 in the first 200,000 words, 50,000 in a million,
126,000 in 5 million. The vocabulary is trained on the text.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DISTINCT_WORDS = 300_000
EXPONENT = 1.3
OFFSET = 2.7
HEADER = """| | seconds | CPU seconds | instances | sentences a second | instances a second |
| --- | --- | --- | --- | --- | --- |"""


class Run(NamedTuple):
    """The cost and output of a run."""

    seconds: float
    cpu_seconds: float
    instances: int


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        small, large, vocab_file = (os.path.join(folder, name) for name in ("small.txt", "large.txt", "vocab.txt"))
        write_text(small, arguments.documents, seed=1)
        write_text(large, arguments.documents * arguments.scale, seed=2)
        if arguments.input_file:
            small = large = os.path.abspath(arguments.input_file)
        run_script("train_vocab.py", f"--input_file={small}", f"--vocab_file={vocab_file}")
        if arguments.bert_repo:
            compare_with_google(arguments, small, vocab_file, folder)
        compare_workers(arguments, large, vocab_file, folder)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bert_repo", help="checkout of google-research/bert (default: skip the comparison)")
    parser.add_argument("--input_file", help="text to use (default: random text)")
    parser.add_argument("--documents", type=int, default=1000, help="documents of the random text, 450 words each")
    parser.add_argument("--scale", type=int, default=6, help="factor of more documents for the comparison of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes to compare")
    parser.add_argument("--dupe_factor", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="folder for the text and the parts (default: the system's temporary folder)")
    return parser.parse_args()


def write_text(path, documents, seed):
    """Writes random documents of 1 to 40 sentences of 5 to 40 words; frequent words are short, as in English."""
    rng = np.random.default_rng(seed)
    words = make_words()
    weights = 1 / (np.arange(DISTINCT_WORDS) + OFFSET) ** EXPONENT
    cumulative = np.cumsum(weights / weights.sum())
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            for _ in range(rng.integers(1, 41)):
                length = rng.integers(5, 41)
                ranks = np.searchsorted(cumulative, rng.random(length)).clip(max=DISTINCT_WORDS - 1)
                sentence = [words[rank] for rank in ranks]
                sentence[0] = sentence[0].capitalize()
                for place in rng.integers(length, size=length // 12):
                    sentence[place] += ","
                file.write(" ".join(sentence) + ".\n")
            file.write("\n")


def make_words():
    """Returns distinct words of 1 to 4 syllables, the most frequent first; some have accents."""
    rng = np.random.default_rng(0)
    onsets = ["", *"b c d f g h j k l m n p r s t v w z ch br st th sh".split()]
    nuclei = "a e i o u a e i o u ea é".split()
    codas = ["", "", "", *"l m n r s t d nd".split()]
    syllables = [onset + nucleus + coda for onset in onsets for nucleus in nuclei for coda in codas]
    words = {}
    while len(words) < DISTINCT_WORDS:
        length = min(4, 1 + int(np.log10(len(words) + 1) / 2 + rng.random()))
        words["".join(syllables[index] for index in rng.integers(len(syllables), size=length))] = None
    return list(words)


def compare_with_google(arguments, text, vocab_file, folder):
    # Child processes inherit the single core.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    sentences = count_sentences(text)
    google, ours = [], []
    for _ in range(arguments.runs):
        google.append(run_google(arguments, text, vocab_file, folder))
        ours.append(run_ours(arguments, text, vocab_file, folder, workers=1, part_num=1))
    os.sched_setaffinity(0, cores)

    print(f"{sentences:,} sentences used {arguments.dupe_factor} times, one core, median of {arguments.runs} runs")
    print(HEADER)
    for name, runs in [
        ("create_pretraining_data.py, google-research/bert, without imports", google),
        ("tools/create_pretraining_data.py, whole process", ours),
    ]:
        print(f"| {name} {describe(runs, sentences * arguments.dupe_factor)}")
    by_clock, by_cpu = (
        statistics.median(getattr(run, kind) for run in google) / statistics.median(getattr(run, kind) for run in ours)
        for kind in ("seconds", "cpu_seconds")
    )
    print(f"{by_clock:.1f} times as fast by the clock, {by_cpu:.1f} times by CPU time\n", flush=True)


def compare_workers(arguments, text, vocab_file, folder):
    sentences = count_sentences(text)
    part_num = 4 * max(arguments.workers)
    runs = {workers: [] for workers in arguments.workers}
    for _ in range(arguments.runs):
        for workers in arguments.workers:
            runs[workers].append(run_ours(arguments, text, vocab_file, folder, workers, part_num))

    print(f"{sentences:,} sentences used {arguments.dupe_factor} times, {part_num} parts")
    print(HEADER)
    medians = []
    for workers in arguments.workers:
        print(f"| {workers} processes {describe(runs[workers], sentences * arguments.dupe_factor)}")
        medians.append(statistics.median(run.seconds for run in runs[workers]))
    print(f"{' : '.join(f'{medians[0] / seconds:.2f}' for seconds in medians)} in speed by the clock")


def describe(runs, sentences):
    """Returns the medians of some runs as the rest of a row below HEADER."""
    seconds = statistics.median(run.seconds for run in runs)
    cpu_seconds = statistics.median(run.cpu_seconds for run in runs)
    instances = runs[0].instances
    rates = f"{sentences / seconds:,.0f} | {instances / seconds:,.0f}"
    return f"| {seconds:.2f} | {cpu_seconds:.2f} | {instances:,} | {rates} |"


def count_sentences(path):
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def run_google(arguments, text, vocab_file, folder):
    """Runs Google's script and returns a Run."""
    command = [sys.executable, str(ROOT / "benchmarks/google_pretraining_data.py"), arguments.bert_repo]
    command += [f"--input_file={text}", f"--vocab_file={vocab_file}", f"--output_file={folder}/google.tfrecord"]
    result = subprocess.run(
        [*command, f"--dupe_factor={arguments.dupe_factor}"], check=True, capture_output=True, text=True
    )
    # INFO:tensorflow:Wrote 61262 total instances
    instances = next(int(line.split()[-3]) for line in result.stderr.splitlines() if line.endswith("total instances"))
    times = json.loads(result.stdout.splitlines()[-1])
    return Run(times["seconds"], times["cpu_seconds"], instances)


def run_ours(arguments, text, vocab_file, folder, workers, part_num):
    """Runs this project's script and returns a Run."""
    output_dir = os.path.join(folder, "parts")
    shutil.rmtree(output_dir, ignore_errors=True)
    begin = time.perf_counter(), cpu_seconds_of_children()
    output = run_script(
        "create_pretraining_data.py",
        f"--input_file={text}",
        f"--vocab_file={vocab_file}",
        f"--output_dir={output_dir}",
        f"--dupe_factor={arguments.dupe_factor}",
        f"--workers={workers}",
        f"--part_num={part_num}",
    )
    end = time.perf_counter(), cpu_seconds_of_children()
    # instances: 61,403, parts: 1, in ...
    instances = int(output.splitlines()[-1].split()[1].replace(",", ""))
    return Run(end[0] - begin[0], end[1] - begin[1], instances)


def cpu_seconds_of_children():
    """Returns the CPU time of all finished descendants of this process."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_script(name, *flags):
    """Runs a script of tools/ and returns its output."""
    command = [sys.executable, str(ROOT / "tools" / name), *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
