"""Checks that the data sets of run_classifier.py match each other, the flags and the model."""

import dataclasses
import os
from pathlib import Path

import config
from ranks.ranks import from_first_rank, rank
from records import checks, description
from snapshots import layout, model_files, variables
from system.errors import UserError
from text.classification import describe_labels, metrics_of, read_labels
from training import evaluation, model_flags


@dataclasses.dataclass(frozen=True)
class Sets:
    """The data sets of a run. A set is None if the run does not read it, or if only rank 0 reads it."""

    train: checks.DataSet | None
    evaluation: checks.DataSet | None
    test: checks.DataSet | None
    labels: list | None  # the names of the labels, if known
    metrics: tuple  # the names of the metrics of `evaluation`


def check(args):
    """Returns the Sets; sets args.num_labels, args.data_part_num and args.iter_num.

    Raises UserError, naming the folder, if records are invalid, lack labels, or were made with another vocabulary or
    other labels than the other sets or the model.
    """
    flags = [flag for work, flag in config.WORK.items() if getattr(args, work)]
    for flag in flags:
        if rank() == 0:
            checks.part_paths(getattr(args, flag), flag=flag)
        _check_kind(args, flag)
    labels = _settle_labels(args, flags)
    train = evaluated = test = None
    if args.do_train:
        train = checks.check_data_set(args, checks.classifier_fields(args), shuffle=True, count_records=True)
        train = dataclasses.replace(train, labels=labels)
        config.set_iter_num(args, train.record_count)
    if args.do_eval:
        fields = checks.classifier_fields(args)
        evaluated = checks.check_whole_data_set("eval_data_dir", args.eval_data_dir, fields)
    if args.do_predict:
        fields = checks.classifier_test_fields(args)
        test = checks.check_whole_data_set("test_data_dir", args.test_data_dir, fields)
    model_flags.check_data_sets(args, data_dir=train, eval_data_dir=evaluated, test_data_dir=test)
    return Sets(train, evaluated, test, labels, _metrics(args, evaluated))


def _check_kind(args, flag):
    """Raises UserError for records of another kind, without the labels they need, or shuffled where order counts."""
    folder = getattr(args, flag)
    records = description.read(folder)
    if records is None:
        return
    if records["kind"] != description.CLASSIFICATION:
        raise UserError(
            f"--{flag}={folder}: its records are for {records['kind']}; make some with tools/create_classifier_data.py"
        )
    if flag != "test_data_dir" and not records.get("has_labels", True):
        raise UserError(f"--{flag}={folder}: its records were made without labels, for --do_predict only")
    if flag == "test_data_dir" and records.get("is_shuffled", False):
        raise UserError(
            f"--{flag}={folder}: its records were made with --shuffle, so the predictions would not be in the order of "
            "the lines; make the records again without it"
        )


def _settle_labels(args, flags):
    """Sets args.num_labels. Returns the names of the labels, None if unknown or for regression."""
    lists, counts = _stated_labels(args, flags)
    names = None
    if lists:
        (first, names), *others = lists.items()
        for source, labels in others:
            if labels != names:
                raise UserError(
                    f"{source}: its labels, {describe_labels(labels)}, are not those of {first}, "
                    f"{describe_labels(names)}; make the records anew with --labels_file={first}"
                )
    if not counts:
        raise UserError(
            f"--{flags[0]}={getattr(args, flags[0])}: has no labels.txt that tells the number of labels; give "
            "--num_labels"
        )
    (first, count), *others = counts.items()
    for source, other in others:
        if other != count:
            raise UserError(
                f"{source}: is of {_describe_count(other)}, but {first} of {_describe_count(count)}; to learn other "
                "labels start from a model that is no classifier yet"
            )
    args.num_labels = count
    return names


def _stated_labels(args, flags):
    """Returns ({source: label names}, {source: number of labels}) from the model, the records and --num_labels."""
    lists, counts = {}, {}
    folder = args.model_load_dir
    if folder is not None and os.path.isdir(folder):
        if path := model_files.find(folder).labels:
            lists[path] = read_labels(path)
        shapes = variables.shapes_by_meta(folder, {variables.CLASSIFIER_WEIGHTS} & set(layout.variable_names(folder)))
        if count := variables.label_count(shapes):
            counts[folder] = count
    for flag in flags:
        folder = Path(getattr(args, flag))
        if labels := description.read_labels_of(folder):
            lists[folder / description.LABELS_FILE] = labels
        elif (records := description.read(folder)) and records.get("is_regression"):
            counts[f"--{flag}={folder}"] = 1
    counts |= {source: len(labels) for source, labels in lists.items()}
    if args.num_labels is not None:
        counts["--num_labels"] = args.num_labels
    return lists, counts


def _describe_count(count):
    return f"{count} labels" if count > 1 else "a regression"


def _metrics(args, data_set):
    """Returns the names of the metrics, without the loss; sets --metric_for_best_model."""
    if data_set is None:
        return ()
    task_name = (data_set.description or {}).get("task_name")
    names = metrics_of(task_name, args.num_labels == 1, args.num_labels, f"--eval_data_dir={args.eval_data_dir}")
    evaluation.settle_metric(args, (*names, "loss"))
    return names


def check_same_on_all_ranks(args):
    """Raises UserError if this rank has another number of labels than rank 0, which read the data. Needs OneFlow."""
    count = from_first_rank(lambda: args.num_labels)
    if args.num_labels != count:
        raise UserError(
            f"rank {rank()}: --num_labels is {args.num_labels}, but {count} on the first rank; give it on all machines"
        )
