"""Fine-tunes BERT on SQuAD: which tokens of a passage begin and end the answer to a question."""

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
resume = LazyModule("training.resume")
squad = LazyModule("squad")


def main():
    args = config.parse_squad_args()
    return run_on_all_ranks(train, args)


def train(args):
    """What each rank does."""
    model_flags.settle(args)
    data_set = checks.check_data_set(
        args, checks.squad_train_fields(args), shuffle=True, count_records=args.num_epochs is not None
    )
    config.set_iter_num(args, data_set.record_count)
    model_flags.check_records(args, data_set)
    run_setup.check_training_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)
    initializer = bert_util.Initializer(placement, args.seed)
    model = squad.BertForQuestionAnswering(bert_util.bert_config(args), initializer)
    data = loader.OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=True, seed=args.seed)
    job = squad.SquadFinetuneJob(model, data, args)
    start = resume.start(job, args, data_set)
    loop.train(job, args, start)


if __name__ == "__main__":
    run_script(main)
