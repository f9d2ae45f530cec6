"""Times the answers of tools/ask.py, one question at a time, beside the matrix products that each of them needs.

    python benchmarks/answers.py --model_load_dir=SNAPSHOT --predict_file=dev-v1.1.json --num_questions=50

Both take turns in one process, with the threads of the native kernels. The first pass over the questions, in which
tools/ask.py makes graphs, is not counted.
"""

import statistics
import sys
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import ask  # noqa: E402
import products  # noqa: E402
from inference import answers  # noqa: E402
from system.command_line import ArgumentParser, add_number, positive_int  # noqa: E402
from text import squad_file  # noqa: E402
from util import run_script  # noqa: E402


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_load_dir", required=True, metavar="DIR", help="snapshot of a SQuAD model")
    parser.add_argument("--predict_file", required=True, metavar="JSON", help="questions in the format of SQuAD")
    add_number(parser, "--num_questions", positive_int, 50, "the first N questions")
    add_number(parser, "--passes", positive_int, 3, "timed passes")
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
    shape = model.run
    encoder = products.Encoder(
        shape.num_hidden_layers, shape.num_attention_heads, shape.hidden_size_per_head, shape.intermediate_size
    )
    answered, multiplied = [], []
    for number in range(arguments.passes + 1):
        seconds = [
            (timed(answerer.answer, *pair), sum(timed(encoder.multiply, [tokens]) for tokens in windows))
            for pair, windows in zip(questions, lengths, strict=True)
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


if __name__ == "__main__":
    run_script(main)
