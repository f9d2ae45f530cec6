"""Pre-trains BERT: masked language model and next sentence prediction."""

import import_errors  # noqa: F401

# isort: split

import config
import records
import run_setup
from launch import run_on_all_ranks
from util import run_script


def main():
    args = config.parse_pretraining_args()
    return run_on_all_ranks(pretrain, args)


def pretrain(args):
    """What each rank does."""
    data_set = records.check_data_set(args, records.pretraining_fields(args), shuffle=True)
    run_setup.check_training_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)

    # These build on OneFlow, which is loaded only now that nothing is wrong with flags and data.
    import resume
    import training
    from bert_util import Initializer
    from data_loader import OFRecordLoader
    from pretrain import BertForPretraining, PretrainJob

    model = BertForPretraining(config.bert_config(args), Initializer(placement, args.seed))
    loader = OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=True, seed=args.seed)
    job = PretrainJob(model, loader, args)
    start = resume.start(job, args, data_set)
    training.train(job, args, start)


if __name__ == "__main__":
    run_script(main)
