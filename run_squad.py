"""Fine-tunes BERT on SQuAD: predicts the first and the last token of the answer to a question."""

from system import import_errors  # noqa: F401

# isort: split

import config
from ranks.launcher import run_on_all_ranks
from records import checks
from system.lazy import LazyModule
from training import evaluation, model_flags, run_setup, squad_evaluation
from util import run_script

bert_util = LazyModule("bert_util")
loop = LazyModule("training.loop")
scoring = LazyModule("training.scoring")
squad = LazyModule("squad")


def main():
    args = config.parse_squad_args()
    return run_on_all_ranks(train, args)


def train(args):
    """The run of one rank."""
    model_flags.settle(args)
    train_set = training_data(args) if args.do_train else None
    questions = squad_evaluation.check(args) if args.do_eval else None
    evaluation_set = questions.data_set if questions else None
    model_flags.check_data_sets(args, data_dir=train_set, eval_data_dir=evaluation_set)
    evaluation.settle_metric(args, squad_evaluation.NAMES)
    run_setup.check_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)
    initializer = bert_util.Initializer(placement, args.seed)
    model = squad.BertForQuestionAnswering(bert_util.bert_config(args), initializer)
    of_task = evaluation_of(model, train_set, questions, placement, args) if args.do_eval else None
    loop.train_and_evaluate(squad.SquadFinetuneJob, model, train_set, of_task, placement, args)


def training_data(args):
    """Returns the DataSet of --data_dir; sets args.iter_num."""
    count_records = args.num_epochs is not None or args.do_eval
    data_set = checks.check_data_set(args, checks.squad_train_fields(args), shuffle=True, count_records=count_records)
    config.set_iter_num(args, data_set.record_count)
    return data_set


def evaluation_of(model, train_set, questions, placement, args):
    """Returns the evaluation: exact match and F1, after each epoch."""
    scorer = scoring.Scorer(model, placement, config.amp_dtype(args, placement.type))
    task = evaluation.Task(questions and questions.data_set, questions and questions.metrics, each_epoch=True)
    return evaluation.Evaluation(scorer, task, args, train_set)


if __name__ == "__main__":
    run_script(main)
