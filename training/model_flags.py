"""The flags of the model's shape: from the command line, --model_load_dir or --bert_config_file."""

import dataclasses
import os

import config
from ranks.ranks import from_first_rank, rank
from records import description
from snapshots import layout, model_files, variables
from system.errors import UserError
from text.classification import encode_labels
from text.tokenization import vocab_checksum

# The fields of variables.ModelSize that are flags of the same name.
_SAME_NAME = ("num_hidden_layers", "max_position_embeddings", "type_vocab_size", "vocab_size", "intermediate_size")


def settle(args):
    """Sets the missing flags of the model's shape from --model_load_dir or --bert_config_file, else to defaults.

    Raises UserError if a given flag differs from the model, or if the number of attention heads is unknown.
    """
    sizes, source = _sizes_of_model(args)
    for name in _SAME_NAME:
        _settle_flag(args, name, sizes.get(name), source)
    if args.vocab_size is None:
        records = description.read(args.data_dir)
        args.vocab_size = records["vocab_size"] if records else config.SHAPE_DEFAULTS["vocab_size"]
    _settle_heads(args, sizes, source)
    if args.intermediate_size is None:
        args.intermediate_size = 4 * args.num_attention_heads * args.hidden_size_per_head
    if args.seq_length > args.max_position_embeddings:
        raise UserError(
            f"--seq_length={args.seq_length} is more than --max_position_embeddings={args.max_position_embeddings}; "
            "the model has no embedding for the last positions"
        )


def _sizes_of_model(args):
    """Returns (field of variables.ModelSize -> value, as far as known; the file or folder that says so)."""
    folder = args.model_load_dir
    # On several machines only the first rank needs the model.
    has_folder = folder is not None and (rank() == 0 or os.path.isdir(folder))
    size = files = None
    if has_folder:
        layout.check_is_snapshot(folder)
        files = model_files.find(folder)
        size = _size_by_weights(folder)
    stated = [path for path in (args.bert_config_file, files and files.config) if path]
    configs = [(variables.read_config(path)[0], path) for path in stated]
    for found, path in configs:
        if size is not None:
            variables.check_config_fits(found, size, path)
        if found != configs[0][0]:
            raise UserError(f"--bert_config_file={stated[0]}: is of another model than {path}; leave it out")
    if configs:
        return vars(configs[0][0]), configs[0][1]
    return (vars(size), folder) if size is not None else ({}, folder)


def _size_by_weights(folder):
    """Returns the variables.ModelSize, without heads, from the weights of a snapshot, or None without recorded shapes.

    Raises UserError if layers are missing.
    """
    names = layout.variable_names(folder)
    shapes = variables.shapes_by_meta(folder, [name for name in names if not name.endswith(layout.MOMENT_SUFFIXES)])
    if variables.WORD_EMBEDDINGS not in shapes:
        return None
    return variables.infer_size(shapes, folder)


def _settle_flag(args, name, value, source):
    given = getattr(args, name)
    if given is None:
        # A new model gets the vocabulary of its records.
        default = config.SHAPE_DEFAULTS[name] if name != "vocab_size" else None
        setattr(args, name, default if value is None else value)
    elif value is not None and given != value:
        raise UserError(f"--{name}={given}, but the model has {value} ({source}); leave the flag out")


def _settle_heads(args, sizes, source):
    hidden, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    per_head = hidden // heads if heads else None
    if hidden is not None and heads is None:
        # The shapes of weights do not depend on the number of heads.
        if args.num_attention_heads is None and args.hidden_size_per_head is None:
            raise UserError(
                f"{source}: does not tell the number of attention heads; give --num_attention_heads, or the model's "
                "bert_config.json by --bert_config_file"
            )
        heads = args.num_attention_heads or hidden // args.hidden_size_per_head
        per_head = args.hidden_size_per_head or hidden // heads
        if heads * per_head != hidden:
            raise UserError(
                f"--num_attention_heads={heads} x --hidden_size_per_head={per_head} is not the model's hidden size, "
                f"{hidden} ({source})"
            )
    _settle_flag(args, "num_attention_heads", heads, source)
    _settle_flag(args, "hidden_size_per_head", per_head, source)


def check_same_on_all_ranks(args):
    """Raises UserError if this rank has another model size than the first rank. Requires OneFlow to be loaded."""
    size = dataclasses.asdict(variables.size_of(args))
    of_first_rank = from_first_rank(lambda: size)
    if size != of_first_rank:
        flags = variables.size_flags(variables.ModelSize(**of_first_rank))
        raise UserError(
            f"--model_load_dir={args.model_load_dir}: is not on this machine, or another model; give the flags of the "
            f"first rank's model on all machines: {flags}"
        )


def check_data_sets(args, **data_sets):
    """Raises UserError if records were made with another vocabulary or case than the model's or the other records'.

    `data_sets` maps the flag of a folder to its DataSet, or to None if it is not read.
    """
    first = None
    for flag, data_set in data_sets.items():
        if data_set is None or data_set.description is None:
            continue
        check_records(args, data_set, flag)
        folder = getattr(args, flag)
        first = first or (data_set.description, folder)
        records, vocab_file = first[0], os.path.join(first[1], description.VOCAB_FILE)
        description.check_same_text(
            data_set.description, records["vocab_sha256"], records["do_lower_case"], f"--{flag}={folder}", vocab_file
        )


def check_records(args, data_set, flag="data_dir"):
    """Raises UserError if the records have a larger or another vocabulary, or another case, than the model.

    Checks what records and model describe. Prints a notice if the model has more pieces than the records' vocabulary.
    `flag` is the flag of the records' folder.
    """
    records = data_set.description
    if records is None:
        return
    name = f"--{flag}={getattr(args, flag)}"
    if records["vocab_size"] > args.vocab_size:
        raise UserError(
            f"{name}: its records were made with a vocabulary of {records['vocab_size']} pieces, "
            f"--vocab_size={args.vocab_size} is too small for them"
        )
    if records["vocab_size"] < args.vocab_size and rank() == 0:
        print(
            f"Notice: the vocabulary of the records has {records['vocab_size']} pieces, the model {args.vocab_size}.",
            flush=True,
        )
    wanted = round(records.get("masked_lm_prob", 0.0) * records["max_seq_length"])
    if rank() == 0 and records.get("max_predictions_per_seq", wanted) < wanted:
        print(
            f"Notice: the records mask at most {records['max_predictions_per_seq']} pieces of a sequence, where "
            f"{records['masked_lm_prob']:.0%} of {records['max_seq_length']} are {wanted}.",
            flush=True,
        )
    if args.model_load_dir is None or rank() > 0:
        return
    model = model_files.find(args.model_load_dir)
    checksum = vocab_checksum(_read_vocab(model.vocab)) if model.vocab else None
    description.check_same_text(records, checksum, model.do_lower_case, name, args.model_load_dir)


def files_of_model(args, data_set):
    """Returns name -> bytes of the files that describe this run's model in snapshots.

    Vocabulary and case come from the model in --model_load_dir or the records, which check_records has compared; labels
    come from `data_set`.
    """
    model = model_files.ModelFiles()
    if args.model_load_dir is not None and rank() == 0:
        model = model_files.find(args.model_load_dir)
    vocab = _read_vocab(model.vocab) or _read_vocab(os.path.join(args.data_dir, description.VOCAB_FILE))
    do_lower_case = data_set.description["do_lower_case"] if data_set.description else model.do_lower_case
    dropout = (args.hidden_dropout_prob, args.attention_probs_dropout_prob)
    labels = None if data_set.labels is None else encode_labels(data_set.labels)
    return model_files.encode(model_files.config_of(variables.size_of(args), *dropout), vocab, do_lower_case, labels)


def _read_vocab(path):
    return model_files.read_vocab_bytes(path) if path is not None and os.path.isfile(path) else None
