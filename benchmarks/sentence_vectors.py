"""Vectors of sentences by this project and by Hugging Face Transformers: how fast, and how alike.

    python benchmarks/sentence_vectors.py --hf_dir ./all-MiniLM-L6-v2 --input_file ./dataset/corpus.txt

Each side is a process of its own that stays loaded; they take turns. A pass tokenises all lines, sorts them by length,
and computes the mean of each line's vectors in batches padded to about the longest. The first pass of each is not
counted. Transformers runs in an environment of its own (torch_environment.py), which the first run creates.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch_environment  # noqa: E402
from system.command_line import ArgumentParser, add_number, positive_int  # noqa: E402
from system.errors import RunError  # noqa: E402
from util import run_script  # noqa: E402


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf_dir", required=True, metavar="DIR", help="folder of an uncased BERT from Hugging Face")
    parser.add_argument("--input_file", required=True, metavar="TXT", help="a sentence a line")
    add_number(parser, "--passes", positive_int, 5, "passes of each side")
    add_number(parser, "--threads", positive_int, 2, "threads of each side")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, folder)
    ours, theirs = (statistics.median(seconds) for seconds, _ in results)
    vectors = [vectors for _, vectors in results]
    similarities = [side @ side.T for side in vectors]
    difference = np.abs(similarities[0] - similarities[1]).max()
    lines = len(vectors[0])
    print(f"{lines} lines; this project: {lines / ours:.0f} lines a second, Transformers: {lines / theirs:.0f}")
    print(f"ratio: {theirs / ours:.2f}; largest difference of two cosine similarities: {difference:.1e}")


def measure(arguments, folder):
    """[(seconds of each pass, vectors [N, H] of length 1)] of this project and of Transformers."""
    snapshot = Path(folder, "snapshot")
    convert = [sys.executable, ROOT / "tools/convert_hf.py", "import", "--hf_dir", arguments.hf_dir]
    subprocess.run([*convert, "--of_dump_path", snapshot], check=True, stdout=subprocess.DEVNULL)
    python = os.environ.get("TRANSFORMERS_PYTHON") or torch_environment.find_or_make()
    sides = [(sys.executable, "ours", snapshot), (python, "transformers", arguments.hf_dir)]
    processes = []
    for program, side, model in sides:
        command = [program, ROOT / "benchmarks/sentence_vectors_side.py", side, model, arguments.input_file]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        output = Path(folder, f"{side}.npy")
        process = subprocess.Popen(
            [*command, output], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append((process, [], output))
    for number in range(arguments.passes + 1):
        for process, seconds, _ in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise RunError(f"{process.args[2]}: ended with status {process.wait()}")
            if number:
                seconds.append(json.loads(line))
    for process, _, _ in processes:
        process.communicate()
    return [(seconds, np.load(output, allow_pickle=False)) for _, seconds, output in processes]


if __name__ == "__main__":
    run_script(main)
