"""Times the answers of tools/ask.py, one question at a time, beside the matrix products that each of them needs.

    python benchmarks/answers.py --model_load_dir=SNAPSHOT --predict_file=dev-v1.1.json --num_questions=50

Both take turns in one process, with the threads of the native kernels. The first pass over the questions, in which
tools/ask.py makes graphs, is not counted.
"""

import ctypes
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import ask  # noqa: E402
from engine import kernel_files, native  # noqa: E402
from inference import answers  # noqa: E402
from system.command_line import ArgumentParser, positive_int  # noqa: E402
from text import squad_file  # noqa: E402
from util import run_script  # noqa: E402


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_load_dir", required=True, metavar="DIR", help="snapshot of a SQuAD model")
    parser.add_argument("--predict_file", required=True, metavar="JSON", help="questions in the format of SQuAD")
    parser.add_argument("--num_questions", type=positive_int, default=50, metavar="N", help="the first N questions")
    parser.add_argument("--passes", type=positive_int, default=3, metavar="N", help="timed passes")
    arguments = parser.parse_args()
    flags = ["ask.py", f"--model_load_dir={arguments.model_load_dir}", "--question=none"]
    with mock.patch.object(sys, "argv", flags):
        of_ask = ask.parse_arguments()
    model = answers.read_model(of_ask)
    model.run.log_dir = str(Path(arguments.model_load_dir))
    answerer = answers.Answerer(model, of_ask)
    _, paragraphs = squad_file.read_paragraphs(arguments.predict_file)
    questions = [(one.text, paragraph.context) for paragraph in paragraphs for one in paragraph.questions]
    questions = questions[: arguments.num_questions]
    lengths = [window_lengths(model, of_ask, *pair) for pair in questions]
    products = Products(model.run)
    answered, multiplied = [], []
    for number in range(arguments.passes + 1):
        seconds = [
            (timed(answerer.answer, *pair), timed(products.multiply, tokens))
            for pair, tokens in zip(questions, lengths, strict=True)
        ]
        if number:
            answered.append(sum(first for first, _ in seconds))
            multiplied.append(sum(second for _, second in seconds))
    tokens = [sum(each) for each in lengths]
    print(
        f"{len(questions)} questions, {min(tokens)} to {max(tokens)} tokens, {statistics.mean(tokens):.0f} on average"
    )
    answer, product = statistics.median(answered), statistics.median(multiplied)
    print(f"an answer: {1000 * answer / len(questions):.0f} ms; its products: {1000 * product / len(questions):.0f} ms")
    print(f"ratio: {answer / product:.2f}")


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def window_lengths(model, settings, question, context):
    """Returns the numbers of tokens of the windows of a question."""
    query = len(model.tokenizer.tokenize(question)[: settings.max_query_length])
    room = settings.max_seq_length - query - 3
    left = len(model.tokenizer.tokenize(context))
    lengths = []
    while not lengths or left > room:
        if lengths:
            left -= settings.doc_stride
        lengths.append(min(left, room) + query + 3)
    return lengths


class Products:
    """The matrix products of the encoder, by the native kernels. Each weight has its own memory, as in a model."""

    def __init__(self, shape):
        """`shape`: a namespace with the flags of the model's shape."""
        self._library = native.open_library(kernel_files.built_sets()[0])
        self._shape = shape
        self._hidden = shape.num_attention_heads * shape.hidden_size_per_head
        self._numbers = np.random.default_rng(0).standard_normal(4 * 1024 * 4096, dtype=np.float32)
        self._out = np.empty_like(self._numbers)
        sizes = [self._hidden**2] * 4 + [self._hidden * shape.intermediate_size] * 2
        self._weights = [[self._numbers[:size].copy() for size in sizes] for _ in range(shape.num_hidden_layers)]

    def multiply(self, lengths):
        """Computes the products of sequences of these lengths, one after the other."""
        shape, hidden = self._shape, self._hidden
        for tokens in lengths:
            for *square, wide, narrow in self._weights:
                for weight in square:
                    self._multiply(weight, 1, tokens, hidden, hidden)
                self._multiply(wide, 1, tokens, shape.intermediate_size, hidden)
                self._multiply(narrow, 1, tokens, hidden, shape.intermediate_size)
                heads, size = shape.num_attention_heads, shape.hidden_size_per_head
                self._multiply(self._numbers, heads, tokens, tokens, size)
                self._multiply(self._numbers, heads, tokens, size, tokens)

    def _multiply(self, weight, batch, m, n, k):
        sizes = (ctypes.c_int64(value) for value in (batch, m, n, k))
        a = (ctypes.c_void_p(self._numbers.ctypes.data), ctypes.c_int64(k), ctypes.c_int64(m * k))
        b = (ctypes.c_void_p(weight.ctypes.data), ctypes.c_int64(n), ctypes.c_int64(k * n))
        c = (ctypes.c_void_p(self._out.ctypes.data), ctypes.c_int64(n), ctypes.c_int64(m * n))
        no = ctypes.c_bool(False)
        self._library.bert_matmul(no, no, *sizes, ctypes.c_float(1), *a, *b, ctypes.c_float(0), *c)


if __name__ == "__main__":
    run_script(main)
