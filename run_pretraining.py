"""Pre-trains BERT: masked language model and next sentence prediction."""

from system import import_errors  # noqa: F401

# isort: split

import config
from ranks.launcher import run_on_all_ranks
from records import checks
from system.lazy import LazyModule
from training import evaluation, model_flags, pretraining_metrics, run_setup
from util import run_script

bert_util = LazyModule("bert_util")
loop = LazyModule("training.loop")
pretrain = LazyModule("pretrain")
scoring = LazyModule("training.scoring")


def main():
    args = config.parse_pretraining_args()
    return run_on_all_ranks(train, args)


def train(args):
    """The run of one rank."""
    model_flags.settle(args)
    fields = checks.pretraining_fields(args)
    train_set = checks.check_data_set(args, fields, shuffle=True) if args.do_train else None
    evaluation_set = checks.check_whole_data_set("eval_data_dir", args.eval_data_dir, fields) if args.do_eval else None
    model_flags.check_data_sets(args, data_dir=train_set, eval_data_dir=evaluation_set)
    evaluation.settle_metric(args, pretraining_metrics.NAMES)
    run_setup.check_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)
    initializer = bert_util.Initializer(placement, args.seed)
    model = pretrain.BertForPretraining(bert_util.bert_config(args), initializer)
    of_task = evaluation_of(model, train_set, evaluation_set, placement, args) if args.do_eval else None
    loop.train_and_evaluate(pretrain.PretrainJob, model, train_set, of_task, placement, args)


def evaluation_of(model, train_set, evaluation_set, placement, args):
    """Returns the evaluation: the losses and accuracies of the two heads."""
    amp_dtype = config.amp_dtype(args, placement.type)
    scorer = scoring.Scorer(model, placement, amp_dtype, pretraining_metrics.INPUTS, "scores")
    task = evaluation.Task(evaluation_set, pretraining_metrics.metrics, pretraining_metrics.FIELDS)
    return evaluation.Evaluation(scorer, task, args, train_set)


if __name__ == "__main__":
    run_script(main)
