"""Loads a snapshot for inference: model shape, vocabulary, and graphs that share the variables."""

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from typing import NamedTuple

import config
from ranks.launcher import run_on_all_ranks
from snapshots import layout, model_files, variables
from snapshots.model_files import read_vocab_bytes
from system.command_line import add_bool, add_number, positive_int
from system.errors import RunError, UserError
from system.lazy import LazyModule
from system.progress import print_warning
from text.tokenization import CLASSIFIER, SEPARATOR, UNKNOWN, Tokenizer, check_case, read_vocab, vocab_checksum
from training import model_flags, run_setup

bert_util = LazyModule("bert_util")
job_state = LazyModule("training.job_state")
scoring = LazyModule("training.scoring")

# A run's flags of the same names.
_FLAGS_OF_A_RUN = ("device", "cpu_threads", "use_int8", "model_load_dir", "bert_config_file", "skip_checksums")


class Model(NamedTuple):
    """The model of a snapshot, without its weights. `run`: the flags of a run with it."""

    size: variables.ModelSize
    tokenizer: Tokenizer
    do_lower_case: bool
    vocab_file: object
    has_vocab: bool  # whether that file is the snapshot's
    run: argparse.Namespace

    @property
    def vocab(self):
        """The vocabulary: piece -> id."""
        return self.tokenizer.vocab


def add_model_flags(parser):
    """Adds the flags of the model and the device to the parser of a tool."""
    group = parser.add_argument_group("model and device")
    group.add_argument("--model_load_dir", required=True, metavar="DIR", help="snapshot of the model")
    group.add_argument(
        "--vocab_file", metavar="TXT", help="vocabulary, for a snapshot without one (default: the snapshot's)"
    )
    add_bool(
        group,
        "--do_lower_case",
        None,
        "lower-case the text and strip accents, for a snapshot that does not tell (default: as the snapshot tells)",
    )
    group.add_argument(
        "--bert_config_file", metavar="JSON", help="configuration, for a snapshot without one (default: the snapshot's)"
    )
    group.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="auto: the GPU where OneFlow can use it, else the CPU",
    )
    add_number(group, "--cpu_threads", positive_int, None, "threads on the CPU (default: all processors)")
    config.add_use_int8(group)
    add_bool(group, "--skip_checksums", help="load model_load_dir without comparing checksums")


def read(arguments, heads, required=()):
    """Returns the Model in --model_load_dir, without its weights.

    `heads`: names of variables.head_shapes that the snapshot must have; `required`: pieces that the vocabulary must
    have beside the usual ones. Raises UserError if the snapshot lacks something that no flag gives, or contradicts a
    flag.
    """
    folder = arguments.model_load_dir
    layout.check_is_snapshot(folder)
    files = model_files.find(folder)
    if files.config is None and arguments.bert_config_file is None:
        raise UserError(
            f"--model_load_dir={folder}: does not tell the shape of its model; give the model's bert_config.json by "
            "--bert_config_file"
        )
    run = _flags_of_run(arguments)
    model_flags.settle(run)
    size = variables.size_of(run)
    _check_heads(folder, size, heads)
    vocab_file = _vocab_file(arguments, files)
    do_lower_case = _case(arguments, files)
    vocab = read_vocab(vocab_file, (UNKNOWN, CLASSIFIER, SEPARATOR, *required))
    num_pieces = max(vocab.values()) + 1
    if num_pieces > size.vocab_size:
        raise UserError(
            f"{vocab_file}: has {num_pieces} pieces, but the model in {folder} has embeddings for {size.vocab_size}; "
            "give the vocabulary of this model"
        )
    return Model(size, Tokenizer(vocab, do_lower_case), do_lower_case, vocab_file, files.vocab is not None, run)


def settle_max_seq_length(arguments, size, default, shortest):
    """Sets --max_seq_length, if it is not given, to `default` or the positions that the model has.

    Raises UserError unless it is at most these positions and at least `shortest` pieces.
    """
    positions = size.max_position_embeddings
    if arguments.max_seq_length is None:
        arguments.max_seq_length = min(default, positions)
    length = arguments.max_seq_length
    if length > positions:
        raise UserError(
            f"--max_seq_length={length} is more than the {positions} positions of the model in "
            f"{arguments.model_load_dir}; give at most that"
        )
    if length < shortest:
        raise UserError(f"--max_seq_length={length} is too small; give at least {shortest}")


def _flags_of_run(arguments):
    """Returns the flags of run_squad_predict.py: those of the tool, and defaults."""
    run = config.parse_squad_predict_args(["--data_dir=.", f"--model_load_dir={arguments.model_load_dir}"])
    # Where it can be, unless the tool has a flag for it.
    run.skip_padding = getattr(arguments, "skip_padding", None)
    run.seq_length = 1
    for name in _FLAGS_OF_A_RUN:
        setattr(run, name, getattr(arguments, name))
    config.check_cpu_threads(run)
    return run


def _check_heads(folder, size, heads):
    names = set(layout.variable_names(folder))
    for head in heads:
        missing = [name for name in variables.head_shapes(size)[head] if name not in names]
        if missing:
            raise UserError(
                f"--model_load_dir={folder}: lacks {', '.join(missing)}; give the snapshot of a model with "
                f"{_SOURCES[head]}"
            )


_SOURCES = {
    "pooler": "the pooler, as pre-training makes it",
    "masked_lm": "the masked language model's head, as pre-training makes it",
    "next_sentence": "the next sentence head, as pre-training makes it",
    "squad": "the head that run_squad.py trains",
}


def _vocab_file(arguments, files):
    """The path of the vocabulary. Raises UserError if there is none, or if the model has another than the flag's."""
    given, folder = arguments.vocab_file, arguments.model_load_dir
    if files.vocab is None and given is None:
        raise UserError(f"--model_load_dir={folder}: holds no vocabulary; give the model's by --vocab_file")
    if files.vocab is not None and given is not None:
        checksums = [vocab_checksum(read_vocab_bytes(path)) for path in (files.vocab, given)]
        if checksums[0] != checksums[1]:
            raise UserError(f"--vocab_file={given}: is not the vocabulary in {folder}; leave the flag out")
    return given or files.vocab


def _case(arguments, files):
    """Whether the model is uncased. Raises UserError if nothing tells, or if the flag contradicts the model."""
    given, found, folder = arguments.do_lower_case, files.do_lower_case, arguments.model_load_dir
    if found is None and given is None:
        raise UserError(
            f"--model_load_dir={folder}: does not tell whether its model is uncased; give --do_lower_case=True for an "
            "uncased model or --do_lower_case=False"
        )
    if None not in (found, given) and found != given:
        raise UserError(f"--do_lower_case={given}, but the model in {folder} has {found}; leave the flag out")
    return found if given is None else given


def _warn(model):
    """Warns of a vocabulary that may not be the model's."""
    check_case(model.vocab_file, model.vocab, model.do_lower_case)
    num_pieces = max(model.vocab.values()) + 1
    if not model.has_vocab and num_pieces < model.size.vocab_size:
        print_warning(
            f"{model.vocab_file} has {num_pieces} pieces, but the model in {model.run.model_load_dir} has embeddings "
            f"for {model.size.vocab_size}; if it is not the model's vocabulary, the results are wrong"
        )


def run_with_engine(function, model):
    """Calls `function()`, which loads OneFlow, as a run on one device is called; returns an exit status.

    Raises RunError if the engine crashes. Its messages are then in a file that the error names.
    """
    # Now that there is no error in what was given, as an error is a line on its own.
    _warn(model)
    folder = model.run.log_dir = tempfile.mkdtemp(prefix="bert-")
    is_named = False
    try:
        return run_on_all_ranks(lambda _: function(), model.run)
    except RunError as error:
        is_named = folder in str(error)
        raise
    finally:
        if not is_named:
            shutil.rmtree(folder, ignore_errors=True)


def load(model, make_network, inputs=None, method="logits"):
    """Loads OneFlow and the weights; returns a training.scoring.Scorer: graphs by length that share the variables.

    `make_network(config, initializer)` makes the module; for `inputs` and `method` see Scorer. What the engine says of
    itself goes to stderr, because stdout has the results. Raises UserError if the weights are damaged.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        placement = run_setup.start_engine(model.run)
        network = make_network(bert_util.bert_config(model.run), bert_util.ZeroInitializer(placement))
        scorer = scoring.Scorer(network, placement, inputs=inputs or scoring.SEQUENCE, method=method)
        job_state.restore_for_prediction(scorer.model_job, model.run.model_load_dir, model.run.skip_checksums)
    print(said.getvalue(), end="", file=sys.stderr)
    return scorer
