"""Labelled sentences: reads GLUE files or the user's own, checks them and makes model inputs."""

import collections
import csv
import math
from typing import NamedTuple

import numpy as np

from system.command_line import add_bool
from system.errors import UserError, some_of
from system.input_files import open_input, reading
from text.tokenization import CLASSIFIER, SEPARATOR

# The most labels or columns that a message lists.
_MAX_LISTED = 10


class Task(NamedTuple):
    """A GLUE task: the column names of its files and its metrics. Test files have no label column."""

    text_a: str
    text_b: str | None
    label: str | None
    is_regression: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    # The published file has lines with a wrong number of columns.
    skips_bad_lines: bool = False
    # The label of sentences on which the annotators did not agree.
    no_label: str | None = None
    # Column names for the files that have no header.
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
    # The diagnostic set, with the labels of MNLI.
    "ax": Task("sentence1", "sentence2", None),
}


class Example(NamedTuple):
    """One or two sentences and their label. The label is None in a file without labels."""

    line: int
    text_a: str
    text_b: str | None
    label: str | None


class Columns(NamedTuple):
    """The columns of a user's file: names, or numbers from 1. None for a column that the file does not have."""

    text_a: str
    text_b: str | None = None
    label: str | None = None


def add_form_flags(parser):
    """Adds the flags that say which columns of --input_file hold what."""
    form = parser.add_argument_group("form of the file")
    form.add_argument(
        "--task_name",
        type=str.lower,
        choices=TASKS,
        metavar="TASK",
        help="task whose metrics run_classifier.py reports; without --text_column, input_file is this task's GLUE "
        f"file: {', '.join(TASKS)}",
    )
    form.add_argument(
        "--text_column", metavar="COLUMN", help="sentence in your own file: name, or number from 1 (default: 1)"
    )
    form.add_argument("--text_b_column", metavar="COLUMN", help="second sentence, for pairs")
    form.add_argument(
        "--label_column",
        metavar="COLUMN",
        help="label (default: none with --text_column, else column 2 if there are two)",
    )
    add_bool(form, "--header", None, "the first line names the columns (default: True if a column is given by name)")
    add_bool(form, "--quoted", None, 'fields may be quoted as "..." (default: True for files named .csv)')


def check_form_flags(parser, arguments):
    """Ends with a usage error where the flags of add_form_flags contradict each other."""
    if arguments.text_column is None:
        for name in ("text_b_column", "label_column"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name} needs --text_column")
        if arguments.task_name and (arguments.header, arguments.quoted) != (None, None):
            parser.error("--header and --quoted are for your own files: give --text_column")


def read_examples(arguments):
    """Reads --input_file: returns (list of Example, list of warnings). Raises UserError if it contradicts the flags."""
    if arguments.task_name and arguments.text_column is None:
        return read_task(arguments.input_file, arguments.task_name)
    columns = None
    if arguments.text_column is not None:
        columns = Columns(arguments.text_column, arguments.text_b_column, arguments.label_column)
    return read_own(arguments.input_file, columns, arguments.header, arguments.quoted)


def read_task(path, task_name):
    """Reads a GLUE file as published: tab-separated, without quotes. Returns (list of Example, list of warnings).

    Raises UserError, naming the line, if the file does not have the format of that task.
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
            warnings.append(f"{path}: skipped {len(rows) - len(whole)} lines without {len(header)} columns")
        rows = whole
    examples = _examples(path, rows, len(header), places)
    if task.no_label is not None:
        labelled = [example for example in examples if example.label != task.no_label]
        if len(labelled) < len(examples):
            warnings.append(f"{path}: skipped {len(examples) - len(labelled)} lines with the label {task.no_label!r}")
        examples = labelled
    empty = [example for example in examples if "" in (example.text_a, example.text_b)]
    if empty and task.skips_bad_lines:
        warnings.append(f"{path}: {len(empty)} lines have an empty sentence, first line {empty[0].line}")
    else:
        _check_not_empty(path, empty)
    return examples, warnings


def read_own(path, columns, has_header=None, is_quoted=None):
    """Reads a user's own file. Returns (list of Example, list of warnings).

    Files named .csv are comma-separated, all others tab-separated. `columns`: Columns, or None for a sentence in column
    1 and an optional label in column 2. `has_header` None: the file has a header if a column is given by name.
    `is_quoted` None: only a .csv has quoted fields. Raises UserError, naming the line, if the file has another format.
    """
    is_csv = str(path).lower().endswith(".csv")
    is_quoted = is_csv if is_quoted is None else is_quoted
    delimiter, separator = (",", "commas") if is_csv else ("\t", "tabs")
    rows = _rows(path, delimiter, is_quoted)
    width = len(rows[0][1])
    if columns is None:
        if width > 2:
            raise UserError(
                f"{path}: has {width} columns, {_describe(rows[0][1])} in its first line; give --text_column, "
                "--text_b_column and --label_column"
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
            f"{path}: {len(in_marks)} sentences are in quotation marks, first line {in_marks[0].line}; the marks are "
            "kept as text; give --quoted to remove them"
        )
    return examples, warnings


def _rows(path, delimiter, is_quoted):
    """Returns a list of (line number, fields), without empty lines at the end. Raises UserError if it is empty."""
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
    return some_of([repr(field[:40]) for field in fields], _MAX_LISTED) or "nothing"


def _place_of(column, names, width, path, separator):
    """Returns the index of a column given by name or by number from 1; None for None."""
    if column is None:
        return None
    if names is not None and column in names:
        if names.count(column) > 1:
            raise UserError(f"{path}: has several columns named {column}; give the column's number, from 1")
        return names.index(column)
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    if names is not None and not column.isdecimal():
        raise UserError(f"{path}: has no column {column}; its first line, split at {separator}, has {_describe(names)}")
    raise UserError(f"{path}: has no column {column}, but {width} in its first line, split at {separator}")


def _examples(path, rows, width, places):
    """Returns an Example for each row. `places`: column indexes of both sentences and the label; None if missing."""
    examples = []
    for line, fields in rows:
        if len(fields) != width:
            raise UserError(
                f"{path}: line {line}: has {len(fields)} columns, the first line {width}; fix the line, or set "
                "--quoted to match the file"
            )
        text_a, text_b, label = (None if place is None else fields[place].strip() for place in places)
        examples.append(Example(line, text_a, text_b, label))
    if not examples:
        raise UserError(f"{path}: has a header, but no line with a sentence")
    return examples


def _check_not_empty(path, empty):
    """Raises UserError unless the list `empty`, the examples with an empty sentence, is empty."""
    if empty:
        raise UserError(f"{path}: line {empty[0].line}: an empty sentence; remove the line")


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
            f"{path}: line 1: no other line has its label, {first!r:.40}: it looks like a header; name the "
            "columns by --text_column and --label_column, or give --header=False if it is data"
        )


def _number_of(label):
    """Returns the label as a finite float, or None if it is not a number."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in label else None


def scores_of(path, examples):
    """Returns the labels as numbers, float32 [N]. Raises UserError, naming the line, if one is not a number."""
    for example in examples:
        if _number_of(example.label) is None:
            raise UserError(f"{path}: line {example.line}: {example.label!r:.40} is not a score; give a finite number")
    return np.array([_number_of(example.label) for example in examples], np.float32)


def find_labels(path, examples):
    """Returns the distinct labels, sorted; by value if all are whole numbers.

    Raises UserError, naming a line, if they cannot be classes: a missing or NaN label, numbers mixed with words,
    fractions, a single class, or as many classes as sentences.
    """
    first = {}
    for example in examples:
        if example.label == "" or example.label.lower() == "nan":
            what = "has no label" if example.label == "" else f"{example.label} is not a label"
            raise UserError(f"{path}: line {example.line}: {what}; label the line or remove it")
        if not {"\n", "\r", "\t"}.isdisjoint(example.label):
            raise UserError(f"{path}: line {example.line}: the label has a tab or line end: {example.label!r:.40}")
        first.setdefault(example.label, example.line)
    numbers = {label: _number_of(label) for label in first}
    words = [label for label in first if numbers[label] is None]
    if words and len(words) < len(first):
        other = next(label for label in first if numbers[label] is not None)
        raise UserError(
            f"{path}: labels of two types: {words[0]!r:.40} in line {first[words[0]]}, the number {other} in line "
            f"{first[other]}; check the label column"
        )
    if not words:
        _check_whole_numbers(path, first, numbers)
    if len(first) == 1:
        raise UserError(f"{path}: all lines have the label {next(iter(first))!r:.40}; training needs at least two")
    if len(first) == len(examples) > 2:
        raise UserError(f"{path}: all {len(first)} lines have different labels; check the label column")
    return sorted(first, key=numbers.get if not words else None)


def _check_whole_numbers(path, first, numbers):
    """Raises UserError if a numeric label is a fraction, or if two labels are the same number (1 and 1.0)."""
    written = {}
    for label, number in numbers.items():
        if number != int(number):
            raise UserError(
                f"{path}: line {first[label]}: the label {label} is not a class; give --regression to predict scores"
            )
        if written.setdefault(number, label) != label:
            raise UserError(
                f"{path}: line {first[label]}: the label {label} is written {written[number]} in line "
                f"{first[written[number]]}; write it the same way everywhere"
            )


def label_ids_of(path, examples, labels, labels_file):
    """Returns the index of each example's label in `labels`, int32 [N]. Raises UserError for a label not in it."""
    ids = {label: index for index, label in enumerate(labels)}
    for example in examples:
        if example.label not in ids:
            header = "; is it a header? Then name the columns" if example is examples[0] else ""
            raise UserError(
                f"{path}: line {example.line}: the label {example.label!r:.40} is not in {labels_file}: "
                f"{describe_labels(labels)}{header}"
            )
    return np.array([ids[example.label] for example in examples], np.int32)


def read_labels(path):
    """Reads a labels.txt: one label per line, in the order of their ids. Returns a list of strings.

    Raises UserError if the file cannot be read or is empty, or if it has an empty line or a repeated label.
    """
    with reading(path), open_input(path, newline="\n") as file:
        labels = [line.rstrip("\r\n") for line in file]
    if not labels:
        raise UserError(f"{path}: has no label; give a file with one label per line")
    for line, label in enumerate(labels, 1):
        if not label.strip():
            raise UserError(f"{path}: line {line}: is empty; give a file with one label per line")
        if labels.index(label) < line - 1:
            raise UserError(f"{path}: line {line}: repeats the label {label!r:.40} of line {labels.index(label) + 1}")
    return labels


def metrics_of(task_name, is_regression, num_labels, source):
    """Returns the names of a data set's metrics: those of its task, else accuracy, or correlations for scores.

    Raises UserError, naming the `source` of the data set, if its labels cannot be those of the task.
    """
    if task_name is None:
        return TASKS["sts-b"].metrics if is_regression else ("accuracy",)
    task = TASKS.get(task_name)
    if task is None:
        raise UserError(f"{source}: {task_name!r:.40} is not a task; give one of {', '.join(TASKS)}")
    if task.is_regression != is_regression or ("f1" in task.metrics and num_labels != 2):
        needed = "scores" if task.is_regression else "2 labels" if "f1" in task.metrics else "labels"
        found = "scores" if is_regression else f"{num_labels} labels"
        raise UserError(f"{source}: --task_name={task_name} has {needed}, but the data has {found}; leave it out")
    return task.metrics


def encode_labels(labels):
    """Returns the bytes of a labels.txt."""
    return "".join(f"{label}\n" for label in labels).encode()


def describe_labels(labels):
    """Returns the labels for a message, shortened if there are many."""
    listed = some_of(labels, _MAX_LISTED)
    return f"{listed} ({len(labels)} labels)" if len(labels) > _MAX_LISTED else listed


def truncate_pair(length_a, length_b, max_length):
    """Returns the lengths of both sentences, truncated to at most `max_length` pieces together.

    Drops the last piece of the longer sentence (the second if equal) until they fit, as google-research/bert's
    run_classifier.py does.
    """
    while length_a + length_b > max_length:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


def input_arrays(pieces, vocab, max_seq_length):
    """Makes the inputs [CLS] a [SEP], or [CLS] a [SEP] b [SEP], from N pairs of piece ids.

    `pieces`: N pairs of sequences of int; the second sequence is empty for a single sentence. Returns a dict with
    input_ids, input_mask and segment_ids, each int32 [N, S], and the number of inputs that were truncated.
    """
    arrays = {
        name: np.zeros((len(pieces), max_seq_length), np.int32) for name in ("input_ids", "input_mask", "segment_ids")
    }
    first, separator = vocab[CLASSIFIER], vocab[SEPARATOR]
    num_truncated = 0
    for row, (ids_a, ids_b) in enumerate(pieces):
        if len(ids_b):
            kept_a, kept_b = truncate_pair(len(ids_a), len(ids_b), max_seq_length - 3)
            end = [*ids_b[:kept_b], separator]
        else:
            kept_a, kept_b, end = min(len(ids_a), max_seq_length - 2), 0, []
        num_truncated += kept_a + kept_b < len(ids_a) + len(ids_b)
        begin = [first, *ids_a[:kept_a], separator]
        length = len(begin) + len(end)
        arrays["input_ids"][row, :length] = begin + end
        arrays["input_mask"][row, :length] = 1
        arrays["segment_ids"][row, len(begin) : length] = 1
    return arrays, num_truncated
