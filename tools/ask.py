"""Answers a question about a text with a model that run_squad.py has fine-tuned.

    python tools/ask.py --model_load_dir=model --question="Who wrote it?" --context_file=text.txt
    python tools/ask.py --model_load_dir=model --context_file=text.txt
    python tools/ask.py --model_load_dir=model --serve=8000

The text comes from --context_file, --context or stdin. Without a question, it asks for questions on a terminal, and
else takes them from stdin, one a line; the model stays loaded. With --serve it answers on a page on localhost.
"""

import suite  # noqa: F401

# isort: split

import functools
import json
import sys

from inference import answers, batches, loaded
from system.command_line import ArgumentParser, add_number, positive_int
from system.errors import RunError, UserError, one_line
from system.input_files import open_input, reading
from system.lazy import LazyModule
from system.progress import print_warning
from text import squad_answers
from util import run_script

answer_server = LazyModule("answer_server")

PROMPT = "question: "
# Characters of the context that are shown on each side of an answer.
CHARACTERS_AROUND = 40
NO_ANSWER = "(no answer)"
# Windows that a server computes together.
BATCH_SIZE = 8
MAX_QUEUE = 256
MAX_REQUEST_BYTES = 100_000


def main():
    arguments = parse_arguments()
    model = answers.read_model(arguments)
    # Without a context, each request to the server has its own.
    context = read_context(arguments, model) if arguments.serve is None or has_context(arguments) else None
    if arguments.serve is not None:
        run = functools.partial(serve, context, model, arguments)
    else:
        run = functools.partial(answer_all, questions_of(arguments, model), context, model, arguments)
    if context is not None:
        warn_of_unknown(context, model)
    return loaded.run_with_engine(run, model)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", metavar="TEXT", help="what to answer (default: asked for, or from stdin)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--context", metavar="TEXT", help="the text that has the answer")
    source.add_argument("--context_file", metavar="FILE", help="file with that text (default: the text is on stdin)")
    add_number(parser, "--n_best", positive_int, 1, "tell the N best answers, at most --n_best_size")
    parser.add_argument("--json", action="store_true", help="write a JSON object a question")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--serve",
        type=port,
        metavar="PORT",
        help="answer at this port of localhost, on a page and as JSON; 0: a free one",
    )
    add_number(server, "--max_queue", positive_int, None, f"questions that may wait (default: {MAX_QUEUE})")
    text = f"bytes of a question with its context, as JSON (default: {MAX_REQUEST_BYTES})"
    add_number(server, "--max_request_bytes", positive_int, None, text)
    answers.add_answer_flags(parser)
    loaded.add_model_flags(parser)
    arguments = parser.parse_args()
    check_serve(arguments, parser)
    if arguments.serve is None and arguments.question is None and not has_context(arguments):
        parser.error("give --question, or the text by --context or --context_file: stdin cannot have both")
    squad_answers.check_answer_flags(parser, arguments)
    if arguments.n_best > arguments.n_best_size:
        parser.error(f"--n_best={arguments.n_best} is more than --n_best_size={arguments.n_best_size}")
    return arguments


def port(text):
    """Parses a port, or 0. Raises ValueError."""
    number = int(text)
    if not 0 <= number < 2**16:
        raise ValueError
    return number


def check_serve(arguments, parser):
    """Reports flags that have no effect with --serve, or without it; sets the defaults of those of the server."""
    if arguments.serve is None:
        for name in ("max_queue", "max_request_bytes"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name} has no effect without --serve")
    elif arguments.question is not None or arguments.json:
        parser.error("--question and --json have no effect with --serve")
    arguments.max_queue = arguments.max_queue or MAX_QUEUE
    arguments.max_request_bytes = arguments.max_request_bytes or MAX_REQUEST_BYTES


def has_context(arguments):
    """Whether a flag gives the context."""
    return arguments.context is not None or arguments.context_file is not None


def questions_of(arguments, model):
    """Returns (question, its place) pairs, a list unless they are typed. Raises UserError for an invalid question."""
    if arguments.question is None and sys.stdin.isatty():
        return questions_typed()
    given = arguments.question is not None
    questions = [(arguments.question, "--question")] if given else batches.read_stdin_lines()
    for question, place in questions:
        check(question, place, model)
    return questions


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


def serve(context, model, arguments):
    """Answers questions at a port of localhost until a signal. `context`: that of all, or None."""
    bound = answer_server.bind(arguments.serve)
    answerer = answers.Answerer(model, arguments, BATCH_SIZE)
    limits = answer_server.Limits(arguments.max_queue, arguments.max_request_bytes)
    answer_server.serve(bound, functools.partial(objects_for, answerer, model, arguments), context, limits)


def objects_for(answerer, model, arguments, pairs):
    """Returns for each (question, context) the object of as_json, or the UserError or RunError to report."""
    faults = [too_long(question, model, arguments) for question, _ in pairs]
    found = iter(answerer.answer_all([pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]))
    results = [fault or next(found) for fault in faults]
    return [
        result if isinstance(result, UserError | RunError) else as_json(question, result, arguments)
        for (question, _), result in zip(pairs, results, strict=True)
    ]


def too_long(question, model, arguments):
    """Returns the UserError that a question of too many pieces is; None for others."""
    num_pieces = len(batches.ids_of(question, model.tokenizer))
    if num_pieces <= arguments.max_query_length:
        return None
    return UserError(
        f"question: has {num_pieces} pieces; the server takes at most {arguments.max_query_length}; see "
        "--max_query_length"
    )


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
