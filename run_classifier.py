"""Fine-tunes BERT to classify sentences or pairs of them, evaluates it, and predicts labels."""

from system import import_errors  # noqa: F401

# isort: split

import config
from ranks.launcher import run_on_all_ranks
from ranks.ranks import default_signals, rank
from system.lazy import LazyModule
from training import classifier_data, model_flags, run_setup
from util import run_script

bert_util = LazyModule("bert_util")
classifier = LazyModule("classifier")
job_state = LazyModule("training.job_state")
loader = LazyModule("records.loader")
loop = LazyModule("training.loop")
results = LazyModule("training.classifier_results")
resume = LazyModule("training.resume")
scoring = LazyModule("training.scoring")


def main():
    args = config.parse_classifier_args()
    return run_on_all_ranks(classify, args)


def classify(args):
    """What each rank does."""
    model_flags.settle(args)
    data = classifier_data.check(args)
    if args.do_train:
        run_setup.check_training_folders(args)
    run_setup.check_results_folder(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)
    classifier_data.check_same_on_all_ranks(args)
    initializer = bert_util.Initializer(placement, args.seed)
    model = classifier.BertForSequenceClassification(bert_util.bert_config(args), args.num_labels, initializer)
    scorer = scoring.Scorer(model, placement, config.amp_dtype(args, placement.type))
    if args.do_train:
        train(model, scorer, data, placement, args)
    else:
        job_state.restore_for_prediction(scorer.model_job, args.model_load_dir, args.skip_checksums)
    with default_signals():
        if args.do_eval and not args.do_train:
            evaluate(scorer, data, args)
        if args.do_predict:
            predict(scorer, data, args)


def train(model, scorer, data, placement, args):
    """Trains, and evaluates with --do_eval after each epoch and at the end."""
    batch_size = config.global_batch_size(args)
    job = classifier.ClassifierJob(
        model, loader.OFRecordLoader(data.train, batch_size, placement, shuffle=True, seed=args.seed), args
    )
    start = resume.start(job, args, data.train)
    hook = None
    if args.do_eval:
        hook = loop.Hook(
            classifier_data.epoch_ends(args, data.train), lambda iteration: evaluate(scorer, data, args, iteration)
        )
    loop.train(job, args, start, hook)


def evaluate(scorer, data, args, iteration=None):
    """Tells the metrics, after so many iterations of training; returns them, on the first rank, as name -> float."""
    logits, label_ids = classifier.predict(scorer, data.evaluation, args)
    if rank() > 0:
        return {}
    values = results.evaluate(data.metrics, logits, label_ids)
    results.tell_evaluation(args.output_dir, values, len(logits), iteration)
    return {f"eval/{name}": value for name, value in values.items()}


def predict(scorer, data, args):
    """Writes what the model says of the test records."""
    logits, _ = classifier.predict(scorer, data.test, args)
    if rank() == 0:
        results.write_predictions(args.output_dir, logits, data.labels)


if __name__ == "__main__":
    run_script(main)
