"""Fine-tunes BERT on SQuAD: which tokens of a passage begin and end the answer to a question."""

import import_errors  # noqa: F401

# isort: split

import config
import records
import run_setup
from launch import run_on_all_ranks
from util import run_script


def main():
    args = config.parse_squad_args()
    return run_on_all_ranks(fine_tune, args)


def fine_tune(args):
    """What each rank does."""
    data_set = records.check_data_set(
        args, records.squad_train_fields(args), shuffle=True, count_records=args.num_epochs is not None
    )
    config.set_iter_num(args, data_set.record_count)
    run_setup.check_training_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)

    # These build on OneFlow, which is loaded only now that nothing is wrong with flags and data.
    import resume
    import training
    from bert_util import Initializer
    from data_loader import OFRecordLoader
    from squad import BertForQuestionAnswering, SquadFinetuneJob

    model = BertForQuestionAnswering(config.bert_config(args), Initializer(placement, args.seed))
    loader = OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=True, seed=args.seed)
    job = SquadFinetuneJob(model, loader, args)
    start = resume.start(job, args, data_set)
    training.train(job, args, start)


if __name__ == "__main__":
    run_script(main)
