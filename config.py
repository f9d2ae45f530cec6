"""The flags of the training and prediction scripts, and the header that shows them."""

from datetime import datetime

from command_line import ArgumentParser, add_bool, non_negative_float, non_negative_int, positive_int, probability
from util import UserError


def parse_pretraining_args(arguments=None):
    """The flags of run_pretraining.py; `arguments` is a list of strings (default: the command line)."""
    parser = ArgumentParser(
        prog="run_pretraining.py",
        usage="%(prog)s --data_dir DIR [flags]",
        description="Pre-trains BERT on OFRecord parts, in one OneFlow graph.",
    )
    _add_device_flags(parser)
    _add_training_flags(parser)
    _add_data_flags(parser)
    _add_run_flags(parser)
    _add_saving_flags(parser)
    _add_model_flags(parser)
    _add_later_flags(parser)
    return _complete(parser.parse_args(arguments))


def _add_device_flags(parser):
    group = parser.add_argument_group("devices")
    group.add_argument("--gpu_num_per_node", type=positive_int, default=1, metavar="N", help="devices on each node")
    group.add_argument("--node_num", type=positive_int, default=1, metavar="N", help="number of nodes (hosts)")
    group.add_argument(
        "--node_list", metavar="A,B,...", help="addresses of the nodes, comma-separated; the first is the master"
    )


def _add_training_flags(parser):
    group = parser.add_argument_group("training")
    group.add_argument("--learning_rate", type=non_negative_float, default=1e-4, metavar="X", help="peak learning rate")
    group.add_argument(
        "--weight_decay_rate",
        type=non_negative_float,
        default=0.01,
        metavar="X",
        help="decoupled weight decay, of all but biases and LayerNorm",
    )
    group.add_argument(
        "--batch_size_per_device", type=positive_int, default=64, metavar="N", help="sequences in a device's batch"
    )
    group.add_argument("--iter_num", type=positive_int, default=1144000, metavar="N", help="iterations to run")
    group.add_argument(
        "--warmup_batches",
        type=non_negative_int,
        default=10000,
        metavar="N",
        help="train steps in which the learning rate rises to its peak",
    )
    group.add_argument(
        "--log_every_n_iter",
        type=positive_int,
        default=1,
        metavar="N",
        help="write every n-th iteration's numbers to log_dir, one JSON line each",
    )


def _add_data_flags(parser):
    group = parser.add_argument_group("data")
    group.add_argument("--data_dir", required=True, metavar="DIR", help="folder of the OFRecord parts part-0, part-1, ...")
    group.add_argument(
        "--data_part_num", type=positive_int, default=32, metavar="N", help="how many parts of data_dir to read"
    )


def _add_run_flags(parser):
    group = parser.add_argument_group("speed and output")
    add_bool(
        group,
        "--use_fp16",
        default=None,
        help="mixed precision with dynamic loss scaling, on GPUs; the CPU computes in float32 all the same",
    )
    add_bool(
        group,
        "--use_boxing_v2",
        default=None,
        help="fuse the gradients' NCCL all-reduces up to 8 MB, without a copy into a buffer; GPUs only",
    )
    group.add_argument(
        "--loss_print_every_n_iter", type=positive_int, default=10, metavar="N", help="print the losses every n iterations"
    )


def _add_saving_flags(parser):
    group = parser.add_argument_group("snapshots and logs")
    group.add_argument(
        "--model_save_every_n_iter",
        type=positive_int,
        default=10000,
        metavar="N",
        help="save model_save_dir/snapshot_<iteration> every n iterations",
    )
    group.add_argument(
        "--model_save_dir",
        default=f"./output/model_save-{datetime.now():%Y-%m-%d-%H:%M:%S}",
        metavar="DIR",
        help="folder for snapshots",
    )
    add_bool(group, "--save_last_snapshot", help="save model_save_dir/last_snapshot at the end")
    group.add_argument("--model_load_dir", metavar="DIR", help="start from this snapshot")
    group.add_argument("--log_dir", default="./output", metavar="DIR", help="folder for logs")


def _add_model_flags(parser):
    group = parser.add_argument_group("model")
    group.add_argument("--seq_length", type=positive_int, default=512, metavar="N", help="tokens in a sequence")
    group.add_argument(
        "--max_predictions_per_seq", type=positive_int, default=80, metavar="N", help="masked tokens in a sequence, at most"
    )
    group.add_argument("--num_hidden_layers", type=positive_int, default=24, metavar="N", help="layers")
    group.add_argument("--num_attention_heads", type=positive_int, default=16, metavar="N", help="attention heads a layer")
    group.add_argument(
        "--max_position_embeddings", type=positive_int, default=512, metavar="N", help="positions, at least seq_length"
    )
    group.add_argument("--type_vocab_size", type=positive_int, default=2, metavar="N", help="segment types")
    group.add_argument("--vocab_size", type=positive_int, default=30522, metavar="N", help="size of the vocabulary")
    group.add_argument(
        "--attention_probs_dropout_prob", type=probability, default=0.1, metavar="P", help="dropout of attention"
    )
    group.add_argument(
        "--hidden_dropout_prob", type=probability, default=0.1, metavar="P", help="dropout of hidden units"
    )
    group.add_argument(
        "--hidden_size_per_head",
        type=positive_int,
        default=64,
        metavar="N",
        help="hidden units a head; the hidden size is heads x this",
    )


def _add_later_flags(parser):
    """What the tutorial does not have. Added last, so that the parameter list begins as the tutorial's."""
    group = parser.add_argument_group("beyond the tutorial")
    group.add_argument(
        "--intermediate_size", type=positive_int, metavar="N", help="width of the feed-forward layers (default: 4 x hidden size)"
    )
    group.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU where OneFlow can use it, else the CPU"
    )
    group.add_argument(
        "--seed", type=non_negative_int, default=12345, metavar="N", help="seed of initial weights, dropout and shuffling"
    )
    add_bool(group, "--check_data", help="check every record before the run, not only the first of each part")


def _complete(args):
    """Fills in what follows from other flags; raises UserError where flags contradict each other."""
    if args.seq_length > args.max_position_embeddings:
        raise UserError(
            f"--seq_length={args.seq_length} is more than --max_position_embeddings={args.max_position_embeddings}; "
            "the model has no embedding for the last positions"
        )
    if args.node_num > 1 or args.gpu_num_per_node > 1:
        raise UserError(
            f"--node_num={args.node_num} --gpu_num_per_node={args.gpu_num_per_node}: runs on several devices are not "
            "there yet; use 1 of each"
        )
    if args.seed >= 2**31:
        raise UserError(f"--seed={args.seed} is too large; use a number below {2**31}")
    if args.intermediate_size is None:
        args.intermediate_size = 4 * args.num_attention_heads * args.hidden_size_per_head
    return args


def bert_config(args):
    """The BertConfig that the flags describe."""
    # Imported here because it loads the engine, which --help and usage errors do without.
    from bert_util import BertConfig

    return BertConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.num_attention_heads * args.hidden_size_per_head,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=args.max_position_embeddings,
        type_vocab_size=args.type_vocab_size,
        hidden_dropout_prob=args.hidden_dropout_prob,
        attention_probs_dropout_prob=args.attention_probs_dropout_prob,
    )


def print_args(args):
    """The tutorial's header: devices, every parameter, the time."""
    print("=" * 66)
    print(f"Running bert: num_gpu_per_node = {args.gpu_num_per_node}, num_nodes = {args.node_num}.")
    print("=" * 66)
    for name, value in vars(args).items():
        print(f"{name} = {value}")
    print("-" * 66)
    print(f"Time stamp: {datetime.now():%Y-%m-%d-%H:%M:%S}", flush=True)
