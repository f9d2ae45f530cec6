"""The flags of the model's shape: given, or as the model of --model_load_dir or --bert_config_file has them."""

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
    """Sets the flags of the model's shape that were not given: as the model has them, else by default.

    The model is that of --model_load_dir or --bert_config_file. Raises UserError where a flag that was given differs
    from it, and where the number of attention heads cannot be told.
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
    """(field of variables.ModelSize -> what the model has, as far as it tells; the file or folder that tells)."""
    folder = args.model_load_dir
    # Where ranks run on several machines, only the first needs the model.
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
    """The variables.ModelSize, heads unknown, of the BERT in a snapshot, or None where the shapes are not recorded.

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
        # A new model's vocabulary is that of its records.
        default = config.SHAPE_DEFAULTS[name] if name != "vocab_size" else None
        setattr(args, name, default if value is None else value)
    elif value is not None and given != value:
        raise UserError(f"--{name}={given}, but the model has {value} ({source}); leave the flag out")


def _settle_heads(args, sizes, source):
    hidden, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    per_head = hidden // heads if heads else None
    if hidden is not None and heads is None:
        # The weights are the same, however many heads share them.
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


def size_of(args):
    """The variables.ModelSize that the settled flags describe."""
    values = {name: getattr(args, name) for name in (*_SAME_NAME, "num_attention_heads")}
    return variables.ModelSize(hidden_size=args.num_attention_heads * args.hidden_size_per_head, **values)


def check_same_on_all_ranks(args):
    """Raises UserError where this rank, which has not seen the first rank's model, has other sizes. Needs OneFlow."""
    size = dataclasses.asdict(size_of(args))
    of_first_rank = from_first_rank(lambda: size)
    if size != of_first_rank:
        flags = variables.size_flags(variables.ModelSize(**of_first_rank))
        raise UserError(
            f"--model_load_dir={args.model_load_dir}: is not on this machine, or another model; give the flags of the "
            f"first rank's model on all machines: {flags}"
        )


def check_data_sets(args, **data_sets):
    """Raises UserError where records were made with another vocabulary or case than the model's or the first ones.

    `data_sets`: the DataSet of each flag that names a folder, None for one that is not read.
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
    """Raises UserError if the records were not made for the model: with more pieces, or another vocabulary or case.

    As far as records and model tell. Where the model has pieces that the records cannot have, a notice says so. `flag`
    has named the folder of the records.
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
    """The files that describe this run's model in its snapshots, name -> bytes.

    Vocabulary and case are those of the records, or else of the model in --model_load_dir; check_records has compared
    them. The labels are those of `data_set`.
    """
    model = model_files.ModelFiles()
    if args.model_load_dir is not None and rank() == 0:
        model = model_files.find(args.model_load_dir)
    vocab = _read_vocab(model.vocab) or _read_vocab(os.path.join(args.data_dir, description.VOCAB_FILE))
    do_lower_case = data_set.description["do_lower_case"] if data_set.description else model.do_lower_case
    dropout = (args.hidden_dropout_prob, args.attention_probs_dropout_prob)
    labels = None if data_set.labels is None else encode_labels(data_set.labels)
    return model_files.encode(model_files.config_of(size_of(args), *dropout), vocab, do_lower_case, labels)


def _read_vocab(path):
    return model_files.read_vocab_bytes(path) if path is not None and os.path.isfile(path) else None
