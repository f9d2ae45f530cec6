"""Predicts the start and end logits of every token of SQuAD windows."""

from system import import_errors  # noqa: F401

# isort: split

import config
from ranks.launcher import run_on_all_ranks
from ranks.ranks import default_signals, rank
from records import checks, prediction_file
from system.lazy import LazyModule
from training import model_flags, run_setup
from util import run_script

bert_util = LazyModule("bert_util")
job_state = LazyModule("training.job_state")
loader = LazyModule("records.loader")
operators = LazyModule("engine.operators")
scoring = LazyModule("training.scoring")
squad = LazyModule("squad")


def main():
    args = config.parse_squad_predict_args()
    return run_on_all_ranks(predict_answers, args)


def predict_answers(args):
    """The run of one rank."""
    model_flags.settle(args)
    data_set = checks.check_data_set(args, checks.squad_predict_fields(args), shuffle=False, count_records=True)
    config.set_prediction_iter_num(args, data_set.record_count)
    model_flags.check_records(args, data_set)
    run_setup.check_folders(args)
    config.print_args(args)
    with default_signals():
        results = predict_logits(data_set, args)
    if rank() == 0:
        prediction_file.write(args.all_results_file, results, data_set.description)


def predict_logits(data_set, args):
    """Returns the results for prediction_file.write; rank 0 has all of them."""
    placement = run_setup.start_engine(args)
    model = squad.BertForQuestionAnswering(bert_util.bert_config(args), bert_util.ZeroInitializer(placement))
    amp_dtype = config.amp_dtype(args, placement.type)
    if args.skip_padding and not operators.skips_padding():
        scorer = scoring.Scorer(model, placement, amp_dtype)
        job_state.restore_for_prediction(scorer.model_job, args.model_load_dir, args.skip_checksums)
        return squad.predict_with_little_padding(scorer, data_set, args)
    data = loader.OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=False, seed=args.seed)
    job = squad.SquadPredictJob(model, data, amp_dtype)
    job_state.restore_for_prediction(job, args.model_load_dir, args.skip_checksums)
    return squad.predict(job, args.iter_num, args.seq_length)


if __name__ == "__main__":
    run_script(main)
