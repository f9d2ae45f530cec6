"""Defines the record fields of each task, and checks that the parts of a data set fit a run.

OneFlow's reader aborts the process on a missing part, a truncated record or a field of the wrong length, so parts are
checked here first, without the engine. The native reader also checks each record as it reads it; without it, every
record is checked before the run.
"""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

import config
from engine import native
from ranks.ranks import rank
from records import description, ofrecord
from system.errors import UserError
from system.input_files import reading
from system.progress import progress_bar

# Larger data sets are not checked for truncation before a run, because that reads the length of every record.
_SCAN_LIMIT = 2**30  # bytes

# This suite's parts, and those of OneFlow-Benchmark's classifiers: train.of_record-0, eval.of_record-0, ...
_FIRST_PART = re.compile(r"(part-|[\w.]+\.of_record-)0+")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a record: `length` numbers; integers are in [0, bound)."""

    length: int
    bound: int | None = None
    dtype: np.dtype = np.dtype(np.int32)


def pretraining_fields(args):
    """Returns the Fields of pre-training records by name."""
    return {
        **_sequence_fields(args),
        "masked_lm_positions": Field(args.max_predictions_per_seq, args.seq_length),
        "masked_lm_ids": Field(args.max_predictions_per_seq, args.vocab_size),
        "masked_lm_weights": Field(args.max_predictions_per_seq, dtype=np.dtype(np.float32)),
        "next_sentence_labels": Field(1, 2),
    }


def squad_train_fields(args):
    """Returns the Fields of SQuAD training records by name."""
    return {
        **_sequence_fields(args),
        "start_positions": Field(1, args.seq_length),
        "end_positions": Field(1, args.seq_length),
    }


def squad_predict_fields(args):
    """Returns the Fields of SQuAD prediction records by name."""
    return {**_sequence_fields(args), "unique_ids": Field(1)}


def classifier_fields(args):
    """Returns the Fields of a classifier's labelled records by name; with one label, the label is a float32 score."""
    label = Field(1, args.num_labels) if args.num_labels > 1 else Field(1, dtype=np.dtype(np.float32))
    return {**_sequence_fields(args), "label_ids": label}


def classifier_test_fields(args):
    """Returns the Fields of a classifier's records without labels by name."""
    return _sequence_fields(args)


def _sequence_fields(args):
    return {
        "input_ids": Field(args.seq_length, args.vocab_size),
        "input_mask": Field(args.seq_length, 2),
        "segment_ids": Field(args.seq_length, args.type_vocab_size),
    }


# The flag that sets a field's length, for messages.
_FLAG_OF_LENGTH = {
    "input_ids": "seq_length",
    "input_mask": "seq_length",
    "segment_ids": "seq_length",
    "masked_lm_positions": "max_predictions_per_seq",
    "masked_lm_ids": "max_predictions_per_seq",
    "masked_lm_weights": "max_predictions_per_seq",
}
_FLAG_OF_BOUND = {
    "input_ids": "vocab_size",
    "masked_lm_ids": "vocab_size",
    "segment_ids": "type_vocab_size",
    "masked_lm_positions": "seq_length",
    "start_positions": "seq_length",
    "end_positions": "seq_length",
    "label_ids": "num_labels",
}


def part_paths(data_dir, part_num=None, flag="data_dir"):
    """Returns the paths of the first `part_num` parts in `data_dir`, or of all: part-0, ... or padded: part-00000, ...

    Otherwise OneFlow-Benchmark's names count: train.of_record-0, ... Raises UserError, naming the flag, if the folder
    or a part is missing, or if parts have several names.
    """
    folder = Path(data_dir)
    with reading(f"--{flag}={data_dir}", "folder"):
        names = os.listdir(folder)
    if any(0xDC80 <= ord(character) <= 0xDCFF for character in str(data_dir)):
        raise UserError(f"--{flag}={data_dir}: cannot be read: OneFlow needs UTF-8 names; rename the folder")
    first = sorted((name for name in names if _FIRST_PART.fullmatch(name)), key=len)
    if not first:
        raise UserError(f"--{flag}={data_dir}: holds no part-0; give a folder of OFRecord parts part-0, part-1, ...")
    prefixes = sorted({part_name_prefix(name) for name in first})
    if len(prefixes) > 1 and "part-" not in prefixes:
        raise UserError(
            f"--{flag}={data_dir}: holds parts of several data sets, {prefixes[0]}0 and {prefixes[1]}0; give each its "
            "own folder"
        )
    prefix = "part-" if "part-" in prefixes else prefixes[0]
    digits = min(len(name) for name in first if part_name_prefix(name) == prefix) - len(prefix)
    count = sum(re.fullmatch(rf"{re.escape(prefix)}[0-9]{{{digits},}}", name) is not None for name in names)
    if part_num is None:
        part_num = count
    elif part_num < count:
        print(f"Notice: --data_part_num={part_num} reads {part_num} of the {count} parts in {data_dir}.", flush=True)
    # Bounded by the number of files, as part_num may be huge.
    paths = [folder / f"{prefix}{index:0{digits}d}" for index in range(min(part_num, len(names) + 1))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"--data_part_num={part_num}, but {data_dir} has only {len(paths) - len(missing)} of these parts: "
            f"{missing[0]} is missing"
        )
    return paths


def part_name_prefix(name):
    """What stands before the number in the name of a part: `part-`."""
    return name.rstrip("0123456789")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The parts of a data set, checked for a run."""

    paths: list
    fields: dict  # name -> Field
    record_count: int  # None if the parts are too large to count, or not read by this rank
    readers: int = 1  # the number of ranks that read parts: the first ones
    description: dict | None = None  # how the records were made (records/description.py), if known
    labels: list | None = None  # the labels by id, if known
    is_checked: bool = False  # whether every record has been checked before the run


def check_data_set(args, fields, shuffle, count_records=False):
    """Returns the checked DataSet of --data_dir and --data_part_num; sets args.data_part_num if it was not given.

    Checks the first record of each part against `fields`, or every record with --check_data or without the native
    reader, and raises UserError with file and place if one is wrong. Counts the records of small data sets, or if
    `count_records`. Ranks that do not read check nothing, as they may not have the data.
    """
    if args.data_part_num is None:
        args.data_part_num = len(part_paths(args.data_dir))
    readers = _count_readers(args, shuffle)
    if rank() >= readers:
        # Only a guess at the names: OneFlow uses those of the first rank.
        paths = [Path(args.data_dir) / f"part-{i}" for i in range(args.data_part_num)]
        return DataSet(paths, fields, None, readers)
    paths = part_paths(args.data_dir, args.data_part_num)
    check_all = args.check_data or native.preload() is None
    count = _check_parts(paths, fields, check_all, count_records)
    return DataSet(paths, fields, count, readers, *_made_with(args.data_dir), is_checked=check_all)


def check_whole_data_set(flag, folder, fields):
    """Returns the DataSet of all parts in the folder of `--flag`, with every record checked and counted.

    Raises UserError, with file and place, if a record does not have `fields`. Only the first rank reads the folder; the
    others get None.
    """
    if rank() > 0:
        return None
    paths = part_paths(folder, flag=flag)
    count = _check_parts(paths, fields, check_all=True, count_all=True)
    return DataSet(paths, fields, count, 1, *_made_with(folder), is_checked=True)


def _made_with(folder):
    return description.read(folder), description.read_labels_of(folder)


def _count_readers(args, shuffle):
    """Returns the number of ranks that read: all if they shuffle and can have equally many parts, else 1.

    With fewer parts than the others, a rank would start its next epoch too early.
    """
    ranks = config.rank_count(args)
    return ranks if shuffle and args.data_part_num % ranks == 0 else 1


def _check_parts(paths, fields, check_all, count_all):
    sizes = [path.stat().st_size for path in paths]
    scan = check_all or count_all or sum(sizes) <= _SCAN_LIMIT
    count = 0
    bytes_before = 0  # of the parts before this one
    with progress_bar(total=sum(sizes), desc="checking", unit="B", unit_scale=True, leave=False, delay=1) as bar:
        for path, size in zip(paths, sizes, strict=True):
            found = 0
            for offset, serialized in ofrecord.read_serialized(path):
                bar.update(bytes_before + offset - bar.n)
                _check_not_empty(serialized, path, offset)
                if found == 0 or check_all:
                    _check_record(ofrecord.parse(serialized, path, offset), fields, f"{path}: record {found}")
                found += 1
                if not scan:
                    break
            if found == 0:
                raise UserError(f"{path}: the part is empty")
            count += found
            bytes_before += size
    return count if scan else None


def read_records(data_set):
    """Yields the features (name -> array) of all records. Raises UserError, with the place, at an invalid one."""
    for path in data_set.paths:
        yield from read_part(path, data_set.fields)


def read_part(path, fields, begin=0):
    """Yields the features of the records of the part `path` from byte `begin` on, as read_records does."""
    for offset, serialized in ofrecord.read_serialized(path, begin):
        _check_not_empty(serialized, path, offset)
        features = ofrecord.parse(serialized, path, offset)
        _check_record(features, fields, f"{path}: the record at byte {offset}")
        yield features


def _check_not_empty(serialized, path, offset):
    if not serialized:
        raise UserError(f"{path}: the record at byte {offset} is empty; make or copy the part again")


def _check_record(features, fields, place):
    for name, field in fields.items():
        if name not in features:
            raise UserError(f"{place}: has no field {name}; it has {', '.join(sorted(features)) or 'no field at all'}")
        values = features[name]
        if not isinstance(values, np.ndarray):
            raise UserError(f"{place}: field {name} holds bytes, not numbers")
        if field.dtype.kind == "i" and values.dtype.kind != "i":
            raise UserError(f"{place}: field {name} holds {values.dtype} numbers, not integers")
        if len(values) != field.length:
            flag = _FLAG_OF_LENGTH.get(name)
            expected = f"--{flag} is {field.length}" if flag else f"{field.length} expected"
            raise UserError(f"{place}: field {name} holds {len(values)} numbers, but {expected}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{place}: field {name} holds NaN or infinity; make the part again")
        if field.bound is None:
            continue
        wrong = values[(values < 0) | (values >= field.bound)]
        if len(wrong):
            flag = _FLAG_OF_BOUND.get(name)
            limit = f"--{flag}={field.bound}" if flag else field.bound
            raise UserError(f"{place}: field {name} holds {wrong[0]}, which is not from 0 to below {limit}")
