"""Fine-tunes BERT to classify sentences or pairs of them, evaluates it, and predicts labels."""

from system import import_errors  # noqa: F401

# isort: split

import config
from ranks.launcher import run_on_all_ranks
from ranks.ranks import default_signals, rank
from system.lazy import LazyModule
from training import classifier_data, evaluation, model_flags, run_setup
from util import run_script

bert_util = LazyModule("bert_util")
classifier = LazyModule("classifier")
loop = LazyModule("training.loop")
results = LazyModule("training.classifier_results")
scoring = LazyModule("training.scoring")


def main():
    args = config.parse_classifier_args()
    return run_on_all_ranks(classify, args)


def classify(args):
    """The run of one rank."""
    model_flags.settle(args)
    data = classifier_data.check(args)
    run_setup.check_folders(args)
    config.print_args(args)
    placement = run_setup.start_engine(args)
    classifier_data.check_same_on_all_ranks(args)
    initializer = bert_util.Initializer(placement, args.seed)
    model = classifier.BertForSequenceClassification(bert_util.bert_config(args), args.num_labels, initializer)
    scorer = scoring.Scorer(model, placement, config.amp_dtype(args, placement.type))
    of_task = evaluation_of(scorer, data, args) if args.do_eval else None
    loop.train_and_evaluate(classifier.ClassifierJob, model, data.train, of_task, placement, args)
    if args.do_predict:
        if of_task is not None:
            of_task.tell_other_best()
        with default_signals():
            predict(scorer, data, args)


def evaluation_of(scorer, data, args):
    """Returns the evaluation: the metrics of the task, after each epoch."""

    def metrics(fields, outputs):
        (logits,) = outputs
        return results.evaluate(data.metrics, logits, fields["label_ids"][:, 0])

    task = evaluation.Task(data.evaluation, metrics, ("label_ids",), prefix="eval_", each_epoch=True)
    return evaluation.Evaluation(scorer, task, args, data.train)


def predict(scorer, data, args):
    """Writes the predictions of the test records."""
    _, outputs = scoring.score_records(scorer, data.test, config.evaluation_batch_size(args), args.seq_length)
    if rank() == 0:
        results.write_predictions(args.output_dir, *outputs, data.labels)


if __name__ == "__main__":
    run_script(main)
