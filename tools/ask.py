"""Answers a question about a text with a model that run_squad.py has fine-tuned.

    python tools/ask.py --model_load_dir=model --question="Who wrote it?" --context_file=text.txt
    python tools/ask.py --model_load_dir=model --context_file=text.txt

The text comes from --context_file, --context or stdin. Without a question, it asks for questions on a terminal, and
else takes them from stdin, one a line; the model stays loaded.
"""

import suite  # noqa: F401

# isort: split

import functools
import json
import sys

from inference import answers, batches, loaded
from system.command_line import ArgumentParser, positive_int
from system.errors import UserError, one_line
from system.input_files import open_input, reading
from system.progress import print_warning
from util import run_script

PROMPT = "question: "
# Characters of the context that are shown on each side of an answer.
CHARACTERS_AROUND = 40
NO_ANSWER = "(no answer)"


def main():
    arguments = parse_arguments()
    model = answers.read_model(arguments)
    context = read_context(arguments, model)
    if arguments.question is not None:
        questions = [(arguments.question, "--question")]
    elif sys.stdin.isatty():
        questions = questions_typed()
    else:
        questions = batches.read_stdin_lines()
    if isinstance(questions, list):
        for question, place in questions:
            check(question, place, model)
    warn_of_unknown(context, model)
    return loaded.run_with_engine(functools.partial(answer_all, questions, context, model, arguments), model)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", metavar="TEXT", help="what to answer (default: asked for, or from stdin)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--context", metavar="TEXT", help="the text that has the answer")
    source.add_argument("--context_file", metavar="FILE", help="file with that text (default: the text is on stdin)")
    parser.add_argument(
        "--n_best", type=positive_int, default=1, metavar="N", help="tell the N best answers, at most --n_best_size"
    )
    parser.add_argument("--json", action="store_true", help="write a JSON object a question")
    answers.add_answer_flags(parser)
    loaded.add_model_flags(parser)
    arguments = parser.parse_args()
    if arguments.question is None and arguments.context is None and arguments.context_file is None:
        parser.error("give --question, or the text by --context or --context_file: stdin cannot have both")
    if arguments.null_score_diff_threshold != 0 and not arguments.version_2_with_negative:
        parser.error("--null_score_diff_threshold has no effect without --version_2_with_negative")
    if arguments.n_best > arguments.n_best_size:
        parser.error(f"--n_best={arguments.n_best} is more than --n_best_size={arguments.n_best_size}")
    return arguments


def read_context(arguments, model):
    """The text that has the answers. Raises UserError if it cannot be read, or has nothing to see."""
    if arguments.context_file is not None:
        name = f"--context_file={arguments.context_file}"
        with reading(name), open_input(arguments.context_file, newline="") as file:
            context = file.read()
    elif arguments.context is not None:
        name, context = "--context", arguments.context
    else:
        name, context = "stdin", batches.read_stdin()
    check(context, name, model)
    return context


def warn_of_unknown(context, model):
    """Warns if the model does not know the characters of the context."""
    ids = batches.ids_of(" ".join(context.split()), model.tokenizer)
    batches.warn_of_unknown_pieces([ids], [context], model)


def check(text, place, model):
    """Raises UserError, naming the `place`, if a text is not UTF-8 or has nothing to see."""
    batches.check_is_text(text, place)
    if not len(batches.ids_of(text, model.tokenizer)):
        raise UserError(f"{place}: has no visible character; give a text")


def questions_typed():
    """Yields (question, its place) as they are typed on the terminal, up to the end of file, Ctrl-D."""
    sys.stdin.reconfigure(errors="surrogateescape")
    import readline  # noqa: F401  for editing the line

    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            print()
            return
        if line.strip():
            yield line, "the question"


def answer_all(questions, context, model, arguments):
    """Prints the answers to (question, its place) pairs. Reports and skips an invalid question typed on the terminal.

    Raises UserError for another invalid question.
    """
    answerer = answers.Answerer(model, arguments)
    for question, place in questions:
        try:
            tell(question, place, answerer, context, model, arguments)
        except UserError as error:
            if isinstance(questions, list):
                raise UserError(f"{place}: {error}") from None
            print(one_line(error), file=sys.stderr)


def tell(question, place, answerer, context, model, arguments):
    """Prints the answer to one question. Raises UserError if the question has a fault."""
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("is not UTF-8") from None
    num_pieces = len(batches.ids_of(question, model.tokenizer))
    found = answerer.answer(question, context)
    if num_pieces > arguments.max_query_length:
        print_warning(
            f"{place}: has {num_pieces} pieces and is cut to the first {arguments.max_query_length}; see "
            "--max_query_length"
        )
    if arguments.json:
        print(json.dumps(as_json(question, found, arguments), ensure_ascii=False), flush=True)
        return
    shown = found.n_best[: arguments.n_best] if arguments.n_best > 1 else [found.answer]
    for answer in shown:
        print(in_words(answer, context), flush=True)


def as_json(question, found, arguments):
    """The answer to a question as an object for JSON; places are characters of the context, from 0."""
    content = {"question": question, "answer": found.answer.text}
    content |= {name: getattr(found.answer, name) for name in ("probability", "begin", "end")}
    if found.null_odds is not None:
        content["null_odds"] = found.null_odds
    if arguments.n_best > 1:
        content["n_best"] = [answer._asdict() for answer in found.n_best[: arguments.n_best]]
    return content


def in_words(answer, context):
    """Lines for a reader: the answer, its probability, and where it stands."""
    line = f"{answer.text or NO_ANSWER}\n  probability {answer.probability:.4f}"
    if answer.begin is None:
        return line
    before = context[max(0, answer.begin - CHARACTERS_AROUND) : answer.begin]
    after = context[answer.end : answer.end + CHARACTERS_AROUND]
    around = " ".join(f"{before}[{context[answer.begin : answer.end]}]{after}".split())
    return f"{line}, characters {answer.begin} to {answer.end}: {around}"


if __name__ == "__main__":
    run_script(main)
