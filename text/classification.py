"""Sentences with labels: read from GLUE's files or one's own, checked, and made into a model's inputs."""

import collections
import csv
import math
from typing import NamedTuple

import numpy as np

from system.errors import UserError
from system.input_files import open_input, reading
from text.tokenization import CLASSIFIER, SEPARATOR

# So many labels are named in a message.
_NAMED_LABELS = 10


class Task(NamedTuple):
    """A task of GLUE: what the columns of its files are called. Test files lack the column of the label."""

    text_a: str
    text_b: str | None
    label: str | None
    is_regression: bool = False
    # What tells how good a classifier is, besides the loss; scores have correlations.
    metrics: tuple[str, ...] = ("accuracy",)
    # Lines with too few or too many columns, of which the published file has some, and labels that say "none".
    skips_bad_lines: bool = False
    no_label: str | None = None
    # The columns of the files that have no header, as the other fields name them.
    columns_without_header: tuple[str, ...] | None = None


TASKS = {
    "cola": Task(
        "sentence",
        None,
        "label",
        metrics=("accuracy", "matthews_correlation"),
        columns_without_header=("source", "label", "mark", "sentence"),
    ),
    "sst-2": Task("sentence", None, "label"),
    "mrpc": Task("#1 String", "#2 String", "Quality", metrics=("accuracy", "f1")),
    "sts-b": Task("sentence1", "sentence2", "score", is_regression=True, metrics=("pearson", "spearman")),
    "qqp": Task("question1", "question2", "is_duplicate", metrics=("accuracy", "f1"), skips_bad_lines=True),
    "mnli": Task("sentence1", "sentence2", "gold_label", no_label="-"),
    "qnli": Task("question", "sentence", "label"),
    "rte": Task("sentence1", "sentence2", "label"),
    "wnli": Task("sentence1", "sentence2", "label"),
    # The diagnostic set; its labels are those of MNLI.
    "ax": Task("sentence1", "sentence2", None),
}


class Example(NamedTuple):
    """One or two sentences with their label, None in a file without labels."""

    line: int
    text_a: str
    text_b: str | None
    label: str | None


class Columns(NamedTuple):
    """Where one's own file has what: the names of columns or their numbers from 1, None for what it does not have."""

    text_a: str
    text_b: str | None = None
    label: str | None = None


def read_task(path, task_name):
    """(list of Example, list of what to warn of) of a file of GLUE as it is downloaded.

    Fields are separated by tabs and never quoted. Raises UserError, naming the line, unless it is a file of that task.
    """
    task = TASKS[task_name]
    rows = _rows(path, "\t", is_quoted=False)
    header = rows[0][1]
    wanted = {task.text_a, task.text_b} - {None}
    if wanted <= set(header):
        rows = rows[1:]
    elif task.columns_without_header is not None and len(header) == len(task.columns_without_header):
        header = list(task.columns_without_header)
    else:
        raise UserError(
            f"{path}: not a file of --task_name={task_name}: its first line has {_describe(header)}, where GLUE has "
            f"{' and '.join(sorted(wanted))}; for a file of your own give --text_column"
        )
    places = [header.index(name) if name in header else None for name in task[:3]]
    warnings = []
    if task.skips_bad_lines:
        whole = [row for row in rows if len(row[1]) == len(header)]
        if len(whole) < len(rows):
            warnings.append(f"{path}: {len(rows) - len(whole)} lines left out, which have not {len(header)} columns")
        rows = whole
    examples = _examples(path, rows, len(header), places)
    if task.no_label is not None:
        labelled = [example for example in examples if example.label != task.no_label]
        if len(labelled) < len(examples):
            warnings.append(f"{path}: {len(examples) - len(labelled)} lines left out, whose label is {task.no_label!r}")
        examples = labelled
    empty = [example for example in examples if "" in (example.text_a, example.text_b)]
    if empty and task.skips_bad_lines:
        warnings.append(f"{path}: {len(empty)} lines with an empty sentence, line {empty[0].line} first")
    else:
        _check_not_empty(path, empty)
    return examples, warnings


def read_own(path, columns, has_header=None, is_quoted=None):
    """(list of Example, list of what to warn of) of a file of one's own; `columns` are Columns, None for the first.

    Commas separate the columns of a file named .csv, tabs those of others. `has_header` None: the file has one if a
    column is named. `is_quoted` None: a .csv may have fields in quotation marks, others have none.
    Raises UserError, naming the line, if it cannot be read so.
    """
    is_csv = str(path).lower().endswith(".csv")
    is_quoted = is_csv if is_quoted is None else is_quoted
    delimiter, separator = (",", "commas") if is_csv else ("\t", "tabs")
    rows = _rows(path, delimiter, is_quoted)
    width = len(rows[0][1])
    if columns is None:
        if width > 2:
            raise UserError(
                f"{path}: has {width} columns, {_describe(rows[0][1])} in its first line; say by --text_column, "
                "--text_b_column and --label_column which to use"
            )
        columns = Columns("1", None, "2" if width == 2 else None)
    given = [column for column in columns if column is not None]
    names = rows[0][1] if has_header or (has_header is None and not all(map(str.isdecimal, given))) else None
    places = [_place_of(column, names, width, path, separator) for column in columns]
    examples = _examples(path, rows if names is None else rows[1:], width, places)
    if names is None and has_header is None:
        _check_first_line(path, examples)
    _check_not_empty(path, [example for example in examples if "" in (example.text_a, example.text_b)])
    warnings = []
    in_marks = [] if is_quoted else [e for e in examples if len(e.text_a) > 1 and e.text_a[0] == e.text_a[-1] == '"']
    if in_marks:
        warnings.append(
            f"{path}: {len(in_marks)} sentences stand in quotation marks, line {in_marks[0].line} first, which are "
            "taken for text; give --quoted if they are not"
        )
    return examples, warnings


def _rows(path, delimiter, is_quoted):
    """(number of the line, its fields) of each line; empty lines at the end are none. Raises UserError without any."""
    rows = []
    with reading(path), open_input(path, newline="" if is_quoted else "\n") as file:
        if is_quoted:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            line = 1
            try:
                for fields in reader:
                    rows.append((line, fields))
                    line = reader.line_num + 1
            except csv.Error as error:
                raise UserError(f"{path}: line {line}: {error}; give --quoted=False if nothing is quoted") from None
        else:
            rows = [(line, text.rstrip("\r\n").split(delimiter)) for line, text in enumerate(file, 1)]
    while rows and rows[-1][1] in ([], [""]):
        rows.pop()
    if not rows:
        raise UserError(f"{path}: is empty; give a file with a sentence a line")
    return rows


def _describe(fields):
    named = ", ".join(repr(field[:40]) for field in fields[:_NAMED_LABELS])
    return f"{named}, ..." if len(fields) > _NAMED_LABELS else named or "nothing"


def _place_of(column, names, width, path, separator):
    """The index of a column given by its name or its number from 1; None for None."""
    if column is None:
        return None
    if names is not None and column in names:
        if names.count(column) > 1:
            raise UserError(f"{path}: has several columns {column}; give the number of the one that is meant, from 1")
        return names.index(column)
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    if names is not None and not column.isdecimal():
        raise UserError(f"{path}: has no column {column}; its first line, split at {separator}, has {_describe(names)}")
    raise UserError(f"{path}: has no column {column}, but {width} in its first line, split at {separator}")


def _examples(path, rows, width, places):
    """The Example of each row; `places` are the columns of the sentences and the label, or None."""
    examples = []
    for line, fields in rows:
        if len(fields) != width:
            raise UserError(
                f"{path}: line {line}: has {len(fields)} columns, the first line {width}; mend the line, or give "
                "--quoted as the file needs it"
            )
        text_a, text_b, label = (None if place is None else fields[place].strip() for place in places)
        examples.append(Example(line, text_a, text_b, label))
    if not examples:
        raise UserError(f"{path}: has a header, but no line with a sentence")
    return examples


def _check_not_empty(path, empty):
    """Raises UserError if there is one among the examples `empty`."""
    if empty:
        raise UserError(f"{path}: line {empty[0].line}: an empty sentence; take the line out")


def _check_first_line(path, examples):
    """Raises UserError if the first line of a file without header looks like one."""
    counts = collections.Counter(example.label for example in examples[1:])
    first = examples[0].label
    if first is None or _number_of(first) is not None:
        return
    others_are_numbers = counts and all(_number_of(label) is not None for label in counts)
    stands_out = first not in counts and len(examples) > 2 and all(count > 1 for count in counts.values())
    if stands_out or others_are_numbers:
        raise UserError(
            f"{path}: line 1: its label, {first!r:.40}, stands in no other line: it looks like a header; name the "
            "columns by --text_column and --label_column, or give --header=False if it is data"
        )


def _number_of(label):
    """The finite number that a label is, or None."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in label else None


def scores_of(path, examples):
    """The labels as numbers, float32 [N]. Raises UserError, naming the line, where one is none."""
    for example in examples:
        if _number_of(example.label) is None:
            raise UserError(f"{path}: line {example.line}: {example.label!r:.40} is no score; give a finite number")
    return np.array([_number_of(example.label) for example in examples], np.float32)


def find_labels(path, examples):
    """The labels in sorted order, by value if all are whole numbers. Raises UserError, naming a line, where they cannot
    be classes: labels that are missing or NaN, of two types, with fractions, only one, as many as sentences."""
    first = {}
    for example in examples:
        if example.label == "" or example.label.lower() == "nan":
            what = "has no label" if example.label == "" else f"{example.label} is no label"
            raise UserError(f"{path}: line {example.line}: {what}; label the line, or take it out")
        if "\n" in example.label or "\r" in example.label:
            raise UserError(f"{path}: line {example.line}: the label goes on in another line: {example.label!r:.40}")
        first.setdefault(example.label, example.line)
    numbers = {label: _number_of(label) for label in first}
    words = [label for label in first if numbers[label] is None]
    if words and len(words) < len(first):
        other = next(label for label in first if numbers[label] is not None)
        raise UserError(
            f"{path}: labels of two types: {words[0]!r:.40} in line {first[words[0]]}, the number {other} in line "
            f"{first[other]}; is it the column of the label?"
        )
    if not words:
        _check_whole_numbers(path, first, numbers)
    if len(first) == 1:
        raise UserError(f"{path}: all lines have the label {next(iter(first))!r:.40}; to learn takes two at least")
    if len(first) == len(examples) > 2:
        raise UserError(f"{path}: each of the {len(first)} lines has another label; is it the column of the label?")
    return sorted(first, key=numbers.get if not words else None)


def _check_whole_numbers(path, first, numbers):
    """Raises UserError where labels, all of them numbers, are fractions or write one number in two ways."""
    written = {}
    for label, number in numbers.items():
        if number != int(number):
            raise UserError(
                f"{path}: line {first[label]}: the label {label} is no class; give --regression to learn scores"
            )
        if written.setdefault(number, label) != label:
            raise UserError(
                f"{path}: line {first[label]}: the label {label} is {written[number]} in line "
                f"{first[written[number]]}; write it in one way"
            )


def label_ids_of(path, examples, labels, labels_file):
    """The numbers of the labels in the list `labels`, int32 [N]. Raises UserError, naming the line, for others."""
    ids = {label: index for index, label in enumerate(labels)}
    for example in examples:
        if example.label not in ids:
            header = "; is it a header? Then name the columns" if example is examples[0] else ""
            raise UserError(
                f"{path}: line {example.line}: the label {example.label!r:.40} is none of {labels_file}: "
                f"{describe_labels(labels)}{header}"
            )
    return np.array([ids[example.label] for example in examples], np.int32)


def read_labels(path):
    """The labels in a labels.txt, one a line in the order of their numbers, as a list of strings.

    Raises UserError if it cannot be read, is empty, or has one twice or an empty line.
    """
    with reading(path), open_input(path, newline="\n") as file:
        labels = [line.rstrip("\r\n") for line in file]
    if not labels:
        raise UserError(f"{path}: has no label; give a file with one a line")
    for line, label in enumerate(labels, 1):
        if not label.strip():
            raise UserError(f"{path}: line {line}: is empty; give a file with a label a line")
        if labels.index(label) < line - 1:
            raise UserError(f"{path}: line {line}: {label!r:.40} is line {labels.index(label) + 1} already")
    return labels


def metrics_of(task_name, is_regression, num_labels, source):
    """The names of the metrics of a data set: those of its task, if any, else accuracy, or for scores correlations.

    Raises UserError, naming the `source` of the data set, where its labels are not those of such a task.
    """
    if task_name is None:
        return TASKS["sts-b"].metrics if is_regression else ("accuracy",)
    task = TASKS.get(task_name)
    if task is None:
        raise UserError(f"{source}: {task_name!r:.40} is no task; it is one of {', '.join(TASKS)}")
    if task.is_regression != is_regression or ("f1" in task.metrics and num_labels != 2):
        needed = "scores" if task.is_regression else "2 labels" if "f1" in task.metrics else "labels"
        found = "scores" if is_regression else f"{num_labels} labels"
        raise UserError(f"{source}: --task_name={task_name} has {needed}, but here are {found}; leave it out")
    return task.metrics


def encode_labels(labels):
    """The bytes of a labels.txt."""
    return "".join(f"{label}\n" for label in labels).encode()


def describe_labels(labels):
    """The labels, if not too many of them, for a message."""
    named = ", ".join(labels[:_NAMED_LABELS])
    return f"{named}, ... ({len(labels)} labels)" if len(labels) > _NAMED_LABELS else named


def truncate_pair(length_a, length_b, max_length):
    """How many pieces of both sentences are kept, so that they are `max_length` together at most.

    The longer one loses its last piece, of equals the second, until they fit (google-research/bert, run_classifier.py).
    """
    while length_a + length_b > max_length:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


def input_arrays(pieces, vocab, max_seq_length):
    """(input_ids, input_mask and segment_ids by name, int32 [N, S] each; how many of the N were cut to fit).

    `pieces` are N pairs of ids of pieces, sequences of int; the second is empty where there is one sentence only:
    [CLS] a [SEP], or [CLS] a [SEP] b [SEP].
    """
    arrays = {
        name: np.zeros((len(pieces), max_seq_length), np.int32) for name in ("input_ids", "input_mask", "segment_ids")
    }
    first, separator = vocab[CLASSIFIER], vocab[SEPARATOR]
    cut = 0
    for row, (ids_a, ids_b) in enumerate(pieces):
        if len(ids_b):
            kept_a, kept_b = truncate_pair(len(ids_a), len(ids_b), max_seq_length - 3)
            end = [*ids_b[:kept_b], separator]
        else:
            kept_a, kept_b, end = min(len(ids_a), max_seq_length - 2), 0, []
        cut += kept_a + kept_b < len(ids_a) + len(ids_b)
        begin = [first, *ids_a[:kept_a], separator]
        length = len(begin) + len(end)
        arrays["input_ids"][row, :length] = begin + end
        arrays["input_mask"][row, :length] = 1
        arrays["segment_ids"][row, len(begin) : length] = 1
    return arrays, cut
