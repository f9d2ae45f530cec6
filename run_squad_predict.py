"""Predicts, for every token of every SQuAD window, how well it would begin and end the answer."""

import import_errors  # noqa: F401

# isort: split

import config
import prediction_file
import records
import run_setup
from launch import expendable, rank, run_on_all_ranks
from util import run_script


def main():
    args = config.parse_squad_predict_args()
    return run_on_all_ranks(predict_answers, args)


def predict_answers(args):
    """What each rank does."""
    data_set = records.check_data_set(args, records.squad_predict_fields(args), shuffle=False, count_records=True)
    config.set_prediction_iter_num(args, data_set.record_count)
    run_setup.check_prediction_folders(args)
    config.print_args(args)
    with expendable():
        results = predict_logits(data_set, args)
    if rank() == 0:
        prediction_file.write(args.all_results_file, results)


def predict_logits(data_set, args):
    """The results, as prediction_file.write takes them; the first rank has them all."""
    placement = run_setup.start_engine(args)

    # These build on OneFlow, which is loaded only now that nothing is wrong with flags and data.
    import job_state
    from bert_util import Initializer
    from data_loader import OFRecordLoader
    from squad import BertForQuestionAnswering, ShortPrediction, SquadPredictJob, predict

    model = BertForQuestionAnswering(config.bert_config(args), Initializer(placement, args.seed))
    if args.skip_padding:
        prediction = ShortPrediction(model, placement)
        job_state.restore_for_prediction(prediction.model_job, args.model_load_dir, args.skip_checksums)
        return prediction.predict(data_set, args)
    loader = OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=False, seed=args.seed)
    job = SquadPredictJob(model, loader)
    job_state.restore_for_prediction(job, args.model_load_dir, args.skip_checksums)
    return predict(job, args.iter_num, args.seq_length)


if __name__ == "__main__":
    run_script(main)
