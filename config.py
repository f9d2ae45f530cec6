"""The flags of the training and prediction scripts, and the header that shows them."""

from datetime import datetime

from system.command_line import (
    SMALLEST_FLOAT32,
    ArgumentParser,
    add_bool,
    add_number,
    batch_count,
    non_negative_float,
    non_negative_int,
    port_number,
    positive_float,
    positive_int,
    probability,
)
from system.errors import UserError

_DEFAULT_ITER_NUM = 1144000
_ITER_NUM_OF_FINE_TUNING = f"{_DEFAULT_ITER_NUM}, or as --num_epochs says"
# The tutorial's defaults of the model's shape, for a run that starts without a model.
SHAPE_DEFAULTS = {
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "hidden_size_per_head": 64,
    "intermediate_size": None,  # 4 x the hidden size
}
MOST_CPU_THREADS = 4096  # OneFlow aborts with tens of thousands
_MOST_ACCUMULATION_STEPS = 2**20  # the losses of each batch are kept up to the update, 32 bytes

# A flag must have the same value on all nodes and when a run is resumed, unless it is in one of these lists.

# Paths and settings of a node. They may differ between nodes and when a run is resumed.
_FLAGS_OF_A_NODE = (
    "node_list",
    "node_rank",
    "master_port",
    "rendezvous_timeout",
    "device",
    "cpu_threads",
    "data_dir",
    "bert_config_file",
    "model_load_dir",
    "model_save_dir",
    "log_dir",
    "all_results_file",
    "eval_data_dir",
    "eval_predict_file",
    "test_data_dir",
    "output_dir",
)
# These may differ when a run is resumed. They do not change its results, or their effect (the global batch, the data,
# --iter_num) is compared itself.
_FLAGS_OF_A_START = (
    "gpu_num_per_node",
    "node_num",
    "batch_size_per_device",
    "use_boxing_v2",
    "zero_stage",
    "data_part_num",
    "check_data",
    "num_epochs",
    "reset_train_step",
    "skip_checksums",
    "log_every_n_iter",
    "loss_print_every_n_iter",
    "model_save_every_n_iter",
    "model_save_keep",
    "save_last_snapshot",
    "resume",
    "do_train",
    "do_eval",
    "do_predict",
    "eval_every_n_iter",
    "eval_iter_num",
    "eval_batch_size_per_device",
    "metric_for_best_model",
    "early_stopping",
    "save_optimizer",
    "skip_padding",
)
# Users change these during a run on purpose. A notice lists the changes.
_FLAGS_THAT_MAY_CHANGE = (
    "iter_num",
    "learning_rate",
    "end_learning_rate",
    "lr_schedule",
    "lr_power",
    "weight_decay_rate",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "warmup_batches",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "use_fp16",
    "amp_dtype",
    "tf32",
)


def parse_pretraining_args(arguments=None):
    """The flags of run_pretraining.py; `arguments` is a list of strings (default: the command line)."""
    parser = ArgumentParser(
        prog="run_pretraining.py",
        usage="%(prog)s --data_dir DIR [--eval_data_dir DIR] [flags]",
        description="Pre-trains BERT on OFRecord parts, in one OneFlow graph.",
    )
    groups = {"work": parser.add_argument_group("what to do"), **_groups(parser)}
    _add_tutorial_flags(groups)
    _add_later_flags(groups)
    _add_evaluation_flags(groups, "--model_save_every_n_iter's")
    _add_skip_padding(groups)
    return _complete(_check_work(parser, parser.parse_args(arguments)))


def parse_squad_args(arguments=None):
    """The flags of run_squad.py; `iter_num` may be None until set_iter_num."""
    parser = ArgumentParser(
        prog="run_squad.py",
        usage="%(prog)s --data_dir DIR [flags]",
        description="Fine-tunes BERT on SQuAD, read from OFRecord parts, in one OneFlow graph.",
    )
    groups = {"work": parser.add_argument_group("what to do"), **_groups(parser)}
    groups["unused"] = parser.add_argument_group("accepted from a pre-training command line, without effect here")
    _add_tutorial_flags(groups, _ITER_NUM_OF_FINE_TUNING, predicts_masks=False)
    _add_later_flags(groups)
    _add_num_epochs(groups)
    _add_evaluation_flags(groups, "each epoch")
    groups["data"].add_argument(
        "--eval_predict_file", metavar="JSON", help="the SQuAD file, v1.1 or v2.0, from which eval_data_dir was made"
    )
    _add_skip_padding(groups, False, "the loss then leaves padding out of its softmax, unlike the published one")
    args = _check_work(parser, parser.parse_args(arguments))
    if args.do_eval and args.eval_predict_file is None:
        parser.error("--do_eval needs --eval_predict_file")
    if not args.do_eval and args.eval_predict_file is not None:
        print("Notice: --eval_predict_file is not read without --do_eval.", flush=True)
    return _complete(args)


def parse_squad_predict_args(arguments=None):
    """The flags of run_squad_predict.py; `iter_num` may be None until set_prediction_iter_num."""
    parser = ArgumentParser(
        prog="run_squad_predict.py",
        usage="%(prog)s --data_dir DIR --model_load_dir DIR [flags]",
        description="Predicts the answers to SQuAD questions, read from OFRecord parts, in one OneFlow graph.",
    )
    groups = _groups(parser)
    groups["unused"] = parser.add_argument_group("accepted from a training command line, without effect here")
    _add_tutorial_flags(groups, iter_num_default="as many as the data set has", predicts_masks=False, trains=False)
    _add_later_flags(groups, trains=False)
    groups["data"].add_argument(
        "--all_results_file", default="all_results.npy", metavar="NPY", help="where the results go"
    )
    add_bool(
        groups["data"],
        "--skip_padding",
        help="compute nothing for padding (little on a GPU or without the native kernels); logits of padding are "
        "-10000, and those of tokens differ in rounding",
    )
    add_use_int8(groups["devices"])
    args = parser.parse_args(arguments)
    if args.model_load_dir is None:
        parser.error("--model_load_dir is missing: give the snapshot of a fine-tuned model")
    if args.use_int8 and args.use_fp16:
        parser.error("--use_int8 and --use_fp16 exclude each other")
    return _complete(args)


def add_use_int8(group):
    """Adds --use_int8 to a group of flags of a program that predicts."""
    add_bool(
        group, "--use_int8", help="CPU with the native kernels: multiply in int8 in the encoder, faster and less exact"
    )


def parse_classifier_args(arguments=None):
    """The flags of run_classifier.py; `iter_num` may be None until set_iter_num, and `num_labels` for long."""
    parser = ArgumentParser(
        prog="run_classifier.py",
        usage="%(prog)s --do_train --data_dir DIR [--do_eval --eval_data_dir DIR] [flags]",
        description="Fine-tunes BERT to classify sentences or pairs of them, evaluates it, predicts labels.",
    )
    groups = {"work": parser.add_argument_group("what to do"), **_groups(parser)}
    groups["unused"] = parser.add_argument_group("accepted from a pre-training command line, without effect here")
    _add_tutorial_flags(groups, _ITER_NUM_OF_FINE_TUNING, predicts_masks=False)
    _add_later_flags(groups)
    _add_evaluation_flags(groups, "each epoch", do_train=False)
    add_bool(groups["work"], "--do_predict", help="predict the labels of test_data_dir, at the end")
    groups["data"].add_argument("--test_data_dir", metavar="DIR", help="folder of parts, for --do_predict")
    _add_num_epochs(groups)
    text = "labels, 1 for a regression (default: as labels.txt beside the parts or the model has them)"
    add_number(groups["model"], "--num_labels", positive_int, None, text)
    _add_skip_padding(groups)
    return _complete(_check_work(parser, parser.parse_args(arguments)))


def _add_skip_padding(groups, default=None, effect="default: True where possible; a resumed run keeps its setting"):
    """Adds --skip_padding, None for "where possible"; `effect` says what it changes, or the default."""
    text = f"CPU with the native kernels: compute nothing for padding; {effect}"
    add_bool(groups["data"], "--skip_padding", default, text)


def _add_num_epochs(groups):
    add_number(
        groups["training"], "--num_epochs", positive_int, None, "instead of --iter_num: passes over the data set"
    )


def _add_evaluation_flags(groups, every, do_train=True):
    """Adds the flags of training and evaluation; `every` describes when a run evaluates by default."""
    work, data, training = groups["work"], groups["data"], groups["training"]
    add_bool(work, "--do_train", default=do_train, help="train on data_dir")
    add_bool(
        work,
        "--do_eval",
        default=None,
        help="evaluate on eval_data_dir, while training and at the end (default: if eval_data_dir is given)",
    )
    data.add_argument("--eval_data_dir", metavar="DIR", help="folder of parts to evaluate on, with answers")
    add_number(data, "--eval_iter_num", positive_int, None, "batches of an evaluation, at most (default: all)")
    text = "sequences in a device's batch of an evaluation (default: batch_size_per_device)"
    add_number(data, "--eval_batch_size_per_device", positive_int, None, text)
    add_number(training, "--eval_every_n_iter", positive_int, None, f"evaluate every n iterations (default: {every})")
    training.add_argument(
        "--metric_for_best_model",
        metavar="NAME",
        help="the metric of evaluations by which model_save_dir/best_snapshot is chosen (default: the task's)",
    )
    text = "stop after n evaluations without a better metric_for_best_model"
    add_number(training, "--early_stopping", positive_int, None, text)
    groups["output"].add_argument(
        "--output_dir", metavar="DIR", help="folder of eval_results.txt and predictions (default: model_save_dir)"
    )


# What a script may do -> the flag of the folder that it reads, in the order of the work.
WORK = {"do_train": "data_dir", "do_eval": "eval_data_dir", "do_predict": "test_data_dir"}


def _check_work(parser, args):
    """Returns `args`; ends with a usage error if there is nothing to do, no folder for it, or two lengths of a run."""
    if "num_epochs" in args and args.num_epochs is not None and args.iter_num is not None:
        parser.error("--num_epochs and --iter_num exclude each other")
    if args.do_eval is None:
        args.do_eval = args.eval_data_dir is not None
    work = {name: flag for name, flag in WORK.items() if hasattr(args, name)}
    if not any(getattr(args, name) for name in work):
        parser.error(f"nothing to do: give --{' or --'.join(work)}")
    for name, flag in work.items():
        if getattr(args, name) and getattr(args, flag) is None:
            parser.error(f"--{name} needs --{flag}")
        if not getattr(args, name) and getattr(args, flag) is not None:
            print(f"Notice: --{flag} is not read without --{name}.", flush=True)
    if not (args.do_eval or getattr(args, "do_predict", False)):
        _refuse_flags_of_results(parser, args, work)
    needs = dict.fromkeys(("eval_iter_num", "eval_every_n_iter", "metric_for_best_model", "early_stopping"), "do_eval")
    for name, needed in {**needs, "resume": "do_train"}.items():
        if getattr(args, name) not in (None, False) and not getattr(args, needed):
            parser.error(f"--{name} needs --{needed}")
    if not args.do_train:
        if args.model_load_dir is None:
            parser.error("--model_load_dir is missing: give the snapshot of a model, or --do_train")
        for name in ("eval_every_n_iter", "metric_for_best_model", "early_stopping"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} needs --do_train")
        # The model is compared with the vocabulary and case of these records.
        args.data_dir = args.eval_data_dir if args.do_eval else args.test_data_dir
    return args


def _refuse_flags_of_results(parser, args, work):
    """Ends with a usage error for flags that have no effect if a run only trains."""
    needed = " or --".join(name for name in work if name != "do_train")
    if args.output_dir is not None:
        parser.error(
            f"--output_dir={args.output_dir} needs --{needed}, whose results it gets; snapshots go to --model_save_dir"
        )
    if args.eval_batch_size_per_device is not None:
        parser.error(f"--eval_batch_size_per_device needs --{needed}")


def _groups(parser):
    titles = {
        "devices": "devices",
        "training": "training",
        "data": "data",
        "output": "snapshots and logs",
        "model": "model",
    }
    return {key: parser.add_argument_group(title) for key, title in titles.items()}


def _add_tutorial_flags(groups, iter_num_default=None, predicts_masks=True, trains=True):
    """Adds the tutorial's flags, in the order of its parameter list.

    `iter_num_default` describes a default that depends on the data set. A script also accepts the flags that it does
    not use, because the tutorial's command lines contain them.
    """
    devices, data, model = groups["devices"], groups["data"], groups["model"]
    training, output, dropout = (groups[name if trains else "unused"] for name in ("training", "output", "model"))
    masks = groups["model" if predicts_masks else "unused"]
    what = "updates of the model" if trains else "batches"

    add_number(devices, "--gpu_num_per_node", positive_int, 1, "devices on each node")
    add_number(devices, "--node_num", positive_int, 1, "nodes (hosts)")
    devices.add_argument(
        "--node_list", metavar="A,B,...", help="addresses of the nodes, comma-separated; the first is the master"
    )
    add_number(training, "--learning_rate", non_negative_float, 1e-4, "peak learning rate")
    text = "decoupled weight decay, of all but biases and LayerNorm"
    add_number(training, "--weight_decay_rate", non_negative_float, 0.01, text)
    add_number(data, "--batch_size_per_device", positive_int, 64, "sequences in a device's batch")
    text = f"{what} to run (default: {iter_num_default or _DEFAULT_ITER_NUM})"
    add_number(data, "--iter_num", positive_int, None if iter_num_default else _DEFAULT_ITER_NUM, text)
    add_number(
        training, "--warmup_batches", batch_count, 10000, "train steps in which the learning rate rises to its peak"
    )
    add_number(output, "--log_every_n_iter", positive_int, 1, "write a JSON line to log_dir every n iterations")
    data.add_argument(
        "--data_dir", required=not trains, metavar="DIR", help="folder of the OFRecord parts part-0, part-1, ..."
    )
    add_number(data, "--data_part_num", positive_int, None, "parts of data_dir to read (default: all)")
    add_bool(
        devices,
        "--use_fp16",
        default=None,
        help="GPU: mixed precision, in training with dynamic loss scaling; CPU: large matrix products in bfloat16",
    )
    add_bool(
        devices,
        "--use_boxing_v2",
        default=None,
        help="GPU: fuse the all-reduces of gradients up to 8 MB, without a copy to a buffer",
    )
    add_number(output, "--loss_print_every_n_iter", positive_int, 10, "print the losses every n iterations")
    text = "save model_save_dir/snapshot_<iteration> every n iterations"
    add_number(output, "--model_save_every_n_iter", positive_int, 10000, text)
    output.add_argument(
        "--model_save_dir", metavar="DIR", help="folder for snapshots (default: ./output/model_save-<time>)"
    )
    add_bool(output, "--save_last_snapshot", help="save model_save_dir/last_snapshot at the end")
    groups["output"].add_argument("--model_load_dir", metavar="DIR", help="start from this snapshot")
    groups["output"].add_argument("--log_dir", default="./output", metavar="DIR", help="folder for logs and curves")
    add_number(model, "--seq_length", positive_int, 512, "tokens in a sequence")
    add_number(masks, "--max_predictions_per_seq", positive_int, 80, "masked tokens in a sequence, at most")
    _add_shape(model, "num_hidden_layers", "layers")
    _add_shape(model, "num_attention_heads", "attention heads a layer")
    _add_shape(model, "max_position_embeddings", "positions, at least seq_length")
    _add_shape(model, "type_vocab_size", "segment types")
    _add_shape(model, "vocab_size", "pieces in the vocabulary")
    add_number(dropout, "--attention_probs_dropout_prob", probability, 0.1, "dropout of attention")
    add_number(dropout, "--hidden_dropout_prob", probability, 0.1, "dropout of hidden units")
    _add_shape(model, "hidden_size_per_head", "hidden units a head; the hidden size is heads x this")


def _add_shape(group, name, text):
    """Adds a flag of the model's shape. Its default is None; training/model_flags.py sets the value."""
    default = SHAPE_DEFAULTS[name] or "4 x the hidden size"
    add_number(group, f"--{name}", positive_int, None, f"{text} (default: that of the model, else {default})")


def _add_later_flags(groups, trains=True):
    """Adds the flags that the tutorial lacks. They come last, so that the parameter list begins as the tutorial's."""
    devices, model = groups["devices"], groups["model"]
    training, output = (groups[name if trains else "unused"] for name in ("training", "output"))
    add_number(
        devices, "--node_rank", non_negative_int, None, "index of this node in node_list (default: found by address)"
    )
    devices.add_argument(
        "--master_port",
        type=port_number,
        metavar="PORT",
        help="port of the master; the next one is used as well (default: 29500)",
    )
    text = "maximum time that the nodes wait for each other at the start"
    add_number(devices, "--rendezvous_timeout", positive_int, 300, text, metavar="SECONDS")
    groups["devices" if trains else "unused"].add_argument(
        "--zero_stage",
        type=int,
        choices=(0, 1, 2, 3),
        default=0,
        help="ZeRO: 1 splits parameters and moments among the ranks; 2 on GPUs also lets gradients and gathered "
        "parameters share memory, without overlap of collectives and computing; 3 saves hardly more",
    )
    _add_shape(model, "intermediate_size", "feed-forward units")
    model.add_argument(
        "--bert_config_file", metavar="JSON", help="bert_config.json with the model's shape, for a model without one"
    )
    devices.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="auto: a GPU if OneFlow can use it, else the CPU",
    )
    add_number(training, "--seed", non_negative_int, 12345, "seed of initial weights, dropout and shuffling")
    add_bool(
        output,
        "--resume",
        help="continue from the newest complete snapshot in model_save_dir, if there is one; --iter_num is the total",
    )
    text = "keep only the N newest snapshot_<iteration> in model_save_dir; 0: keep all"
    add_number(output, "--model_save_keep", batch_count, 0, text)
    add_bool(
        output,
        "--reset_train_step",
        help="restart the learning rate schedule, whatever the train step of model_load_dir",
    )
    add_bool(
        output,
        "--save_optimizer",
        default=True,
        help="save the optimiser's moments in snapshots; without them, a third of the size and no --resume",
    )
    add_bool(groups["output"], "--skip_checksums", help="load model_load_dir without comparing checksums")
    text = "threads of a node that compute on the CPU, divided among its ranks (default: all processors)"
    add_number(devices, "--cpu_threads", positive_int, None, text)
    add_bool(
        groups["data"],
        "--check_data",
        help="check every record before the run (always done without the native kernels)",
    )
    devices.add_argument(
        "--amp_dtype",
        choices=("float16", "bfloat16"),
        help="GPU: data type of --use_fp16 (default: float16); bfloat16 needs no loss scaling",
    )
    add_bool(
        devices,
        "--tf32",
        default=True,
        help="GPU: compute float32 products in TF32 where the GPU supports it, which is faster and less precise",
    )
    add_number(
        training, "--num_accumulation_steps", positive_int, 1, "batches per update, whose gradients are accumulated"
    )
    add_bool(
        training,
        "--activation_checkpointing",
        help="keep only the input of each layer and recompute the rest in the backward pass: less memory, more time",
    )
    _add_optimizer_flags(training)


def _add_optimizer_flags(group):
    """What the optimiser and its schedule can be told; the defaults are google-research/bert's constants."""
    group.add_argument(
        "--optimizer_type",
        choices=("adam", "lamb"),
        default="adam",
        help="adam: google-research/bert's; lamb: NVIDIA's, for large batches",
    )
    add_number(group, "--adam_beta1", probability, 0.9, "decay of the mean of gradients", metavar="X")
    add_number(group, "--adam_beta2", probability, 0.999, "decay of the mean of squared gradients", metavar="X")
    add_number(group, "--adam_epsilon", positive_float, 1e-6, "added to the root of that mean")
    add_number(
        group, "--max_grad_norm", non_negative_float, 1.0, "scale gradients down to this global norm; 0: do not clip"
    )
    group.add_argument(
        "--lr_schedule",
        choices=("linear", "cosine", "constant"),
        default="linear",
        help="how the learning rate goes on after the warm-up",
    )
    text = "learning rate at the last iteration, with the linear and cosine schedules"
    add_number(group, "--end_learning_rate", non_negative_float, 0.0, text)
    add_number(group, "--lr_power", positive_float, 1.0, "power of the linear schedule: (1 - step / iter_num) ^ X")


def _complete(args):
    """Sets what follows from other flags; raises UserError if flags contradict each other."""
    if args.seed >= 2**31:
        raise UserError(f"--seed={args.seed} is too large; use a number below {2**31}")
    check_cpu_threads(args)
    if args.amp_dtype is not None and not args.use_fp16:
        raise UserError(f"--amp_dtype={args.amp_dtype} is for mixed precision: add --use_fp16")
    if args.num_accumulation_steps > _MOST_ACCUMULATION_STEPS:
        raise UserError(
            f"--num_accumulation_steps={args.num_accumulation_steps}: too many batches for an update; "
            f"{_MOST_ACCUMULATION_STEPS} are the most"
        )
    _check_schedule(args)
    _check_lamb(args)
    if args.model_save_dir is None:
        if args.resume:
            raise UserError("--resume needs --model_save_dir, the folder of the snapshots to go on from")
        args.model_save_dir = f"./output/model_save-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    if "output_dir" in args:
        args.output_dir = args.output_dir or args.model_save_dir
    return args


def check_cpu_threads(args):
    """Raises UserError if --cpu_threads is out of proportion."""
    if args.cpu_threads is not None and args.cpu_threads > MOST_CPU_THREADS:
        raise UserError(f"--cpu_threads={args.cpu_threads}: too many threads; {MOST_CPU_THREADS} are the most")
    if args.cpu_threads is not None and args.cpu_threads < args.gpu_num_per_node:
        raise UserError(
            f"--cpu_threads={args.cpu_threads} is too few for --gpu_num_per_node={args.gpu_num_per_node}: each rank "
            "needs a thread"
        )


def _check_schedule(args):
    """Raises UserError for flags of the learning rate that another one leaves without effect, or that make it rise."""
    if args.end_learning_rate > args.learning_rate:
        raise UserError(
            f"--end_learning_rate={args.end_learning_rate:g} is above --learning_rate={args.learning_rate:g}; give one "
            "that is not"
        )
    if args.lr_schedule == "constant" and args.end_learning_rate != 0:
        raise UserError(
            f"--end_learning_rate={args.end_learning_rate:g} has no effect with --lr_schedule=constant: leave it out"
        )
    if args.lr_schedule != "linear" and args.lr_power != 1:
        raise UserError(
            f"--lr_power={args.lr_power:g} has no effect with --lr_schedule={args.lr_schedule}: leave it out"
        )


def _check_lamb(args):
    """Raises UserError for flags that LAMB cannot be had with, or would be another optimiser with."""
    if args.optimizer_type != "lamb":
        return
    if args.zero_stage > 0:
        raise UserError(
            f"--zero_stage={args.zero_stage} cannot be had with --optimizer_type=lamb, whose trust ratio is of whole "
            "variables: ZeRO divides them among the ranks; leave one of them out"
        )
    if args.weight_decay_rate < SMALLEST_FLOAT32:
        raise UserError(
            f"--weight_decay_rate={args.weight_decay_rate:g} would make Adam of --optimizer_type=lamb: only variables "
            f"that decay have a trust ratio; give a rate of at least {SMALLEST_FLOAT32:.2g}"
        )


def set_iter_num(args, record_count):
    """Sets args.iter_num from --num_epochs and the number of records, as google-research/bert does (rounded down).

    Where this rank does not know their number, run_setup.start_engine brings what the first rank has found.
    """
    if args.num_epochs is None:
        args.iter_num = args.iter_num or _DEFAULT_ITER_NUM
        return
    if record_count is None:
        return
    print(f"The data set has {record_count} records.")
    sequences = record_count * args.num_epochs
    args.iter_num = max(1, sequences // sequences_per_iteration(args))
    if sequences < sequences_per_iteration(args):
        print(
            f"Notice: one update reads {sequences_per_iteration(args)} sequences, more than the {sequences} of "
            f"--num_epochs={args.num_epochs}: records are read again for it."
        )


def set_prediction_iter_num(args, record_count):
    """Sets args.iter_num, unless it was given, to as many batches as hold every record once.

    Where this rank does not know the number of records, run_setup.start_engine brings what the first rank has found.
    """
    if record_count is None:
        return
    print(f"The data set has {record_count} records.")
    if args.iter_num is None:
        args.iter_num = -(-record_count // global_batch_size(args))
    predicted = args.iter_num * global_batch_size(args)
    if predicted < record_count:
        print(
            f"Notice: --iter_num={args.iter_num} predicts {predicted} of the {record_count} records; leave it out to "
            "predict all."
        )


def flags_of_all_nodes(args):
    """`--flag` -> value of the flags that must be the same on all nodes."""
    return {f"--{name}": value for name, value in vars(args).items() if name not in _FLAGS_OF_A_NODE}


def flags_of_run(args):
    """Two dicts, `--flag` -> value: flags that a resumed run must have as they were, and those that may change."""
    same, similar = {}, {}
    for name, value in vars(args).items():
        if name not in (*_FLAGS_OF_A_NODE, *_FLAGS_OF_A_START):
            (similar if name in _FLAGS_THAT_MAY_CHANGE else same)[f"--{name}"] = value
    return same, similar


def rank_count(args):
    """The devices of all nodes."""
    return args.node_num * args.gpu_num_per_node


def global_batch_size(args):
    """Sequences in a batch over all devices."""
    return rank_count(args) * args.batch_size_per_device


def sequences_per_iteration(args):
    """Sequences over all devices that an iteration reads for its update."""
    return global_batch_size(args) * args.num_accumulation_steps


def amp_dtype(args, device_type):
    """The name of the data type that graphs on `device_type` compute in beside float32, or None."""
    if not args.use_fp16 or device_type == "cpu":
        return None
    return args.amp_dtype or "float16"


def evaluation_batch_size(args):
    """Sequences in a batch of an evaluation or prediction over all devices."""
    return rank_count(args) * (args.eval_batch_size_per_device or args.batch_size_per_device)


def print_args(args):
    """The tutorial's header: devices, every parameter, the time."""
    print("=" * 66)
    print(f"Running bert: num_gpu_per_node = {args.gpu_num_per_node}, num_nodes = {args.node_num}.")
    print("=" * 66)
    for name, value in vars(args).items():
        print(f"{name} = {value}")
    print("-" * 66)
    print(f"Time stamp: {datetime.now():%Y-%m-%d-%H:%M:%S}", flush=True)
