"""Pre-trains BERT: masked language model and next sentence prediction."""

from system import import_errors  # noqa: F401

# isort: split

import config
from ranks.launcher import run_on_all_ranks
from records import checks
from system.lazy import LazyModule
from training import model_flags, run_setup
from util import run_script

bert_util = LazyModule("bert_util")
loader = LazyModule("records.loader")
loop = LazyModule("training.loop")
pretrain = LazyModule("pretrain")
resume = LazyModule("training.resume")


def main():
    args = config.parse_pretraining_args()
    return run_on_all_ranks(train, args)


def train(args):
    """What each rank does."""
    model_flags.settle(args)
    data_set = checks.check_data_set(args, checks.pretraining_fields(args), shuffle=True)
    model_flags.check_records(args, data_set)
    run_setup.check_training_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)
    initializer = bert_util.Initializer(placement, args.seed)
    model = pretrain.BertForPretraining(bert_util.bert_config(args), initializer)
    data = loader.OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=True, seed=args.seed)
    job = pretrain.PretrainJob(model, data, args)
    start = resume.start(job, args, data_set)
    loop.train(job, args, start)


if __name__ == "__main__":
    run_script(main)
