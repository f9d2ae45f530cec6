"""Converts TFRecord files to OFRecord parts, without TensorFlow.

    python tools/tfrecord_to_ofrecord.py --input_file './tf_examples.tfrecord*' --output_dir ./dataset --part_num 8

For the files that google-research/bert writes: the instances of its create_pretraining_data.py and the features of its
run_squad.py. Names are kept; lists of int64 become int32, lists of float stay float. All records must have the fields
of the first one, with as many values.

1. Scan. Every file is read and checked, and its records are counted.
2. Convert. The parts get the records in their order, the first part the first ones, so that the sizes of two parts
   differ by one record at most. Pieces of a part are converted in several processes, and then joined in order.
3. Publish. The parts appear together when the last one is done.

A gzip file can only be read from its beginning: each part that it reaches into is one piece of work.
"""

import suite  # noqa: F401

# isort: split

import contextlib
import itertools
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from records import ofrecord, tfrecord
from system.command_line import ArgumentParser, add_bool, positive_int
from system.errors import RunError, UserError, one_line, wrapped
from system.input_files import find_files
from system.output_files import check_is_no_input, sync, temporary_folder
from system.processors import usable_processors
from system.progress import progress_bar
from system.workers import run_tasks
from util import run_script

# So many records of a file are a piece of work at most.
PIECE_RECORDS = 8192
# So many are converted at once.
CHUNK_RECORDS = 512
CHUNK_BYTES = 1 << 20

_DTYPES = {"int64_list": np.dtype(np.int32), "float_list": np.dtype(np.float32)}


class Field(NamedTuple):
    """What the values of a field are in every record: the kind of list, and its length."""

    kind: str
    length: int


class FileScan(NamedTuple):
    """What scanning an input file found."""

    records: int
    # Offsets, in bytes, of the records 0, PIECE_RECORDS, 2 * PIECE_RECORDS, ...; of a gzip file, of the first one only.
    marks: list


class Piece(NamedTuple):
    """A run of records of one file that belong into one part."""

    part: int
    path: str
    offset: int  # bytes; of a record at or before the first
    skip: int  # records from there to the first
    records: int


def parse_arguments():
    parser = ArgumentParser(description="Convert TFRecord files to OFRecord parts.")
    parser.add_argument(
        "--input_file",
        required=True,
        nargs="+",
        metavar="FILES",
        help="TFRecord files, plain or gzip: names or patterns, separated by spaces or commas; the files of a pattern "
        "in the order of their names",
    )
    parser.add_argument("--output_dir", required=True, type=Path, metavar="DIR", help="gets part-0, part-1, ...")
    parser.add_argument("--part_num", type=positive_int, default=1, metavar="N", help="number of parts")
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=usable_processors(),
        metavar="N",
        help="processes that convert; the parts are the same whatever their number (default: one for each processor)",
    )
    add_bool(parser, "--overwrite", help="replace the parts that are in --output_dir")
    return parser.parse_args()


def find_parts(folder):
    """The part files in the output folder."""
    return sorted(path for path in folder.glob("part-*") if path.name.removeprefix("part-").isdecimal())


def scan_file(index, path, report):
    """Checks the input file `path`; returns (index, FileScan). Raises UserError if it is damaged."""
    is_compressed = tfrecord.is_compressed(path)
    records, marks = 0, [0]
    for offset, _ in tfrecord.read(path):
        if records and records % PIECE_RECORDS == 0 and not is_compressed:
            report(offset - marks[-1])
            marks.append(offset)
        records += 1
    report(os.path.getsize(path) - marks[-1])
    return index, FileScan(records, marks)


def scan_input(paths, workers):
    """The FileScan of every path."""
    total = sum(os.path.getsize(path) for path in paths)
    with progress_bar(total=total, desc="scanning", unit="B", unit_scale=True, leave=False) as bar:
        return [scan for _, scan in sorted(run_tasks(scan_file, list(enumerate(paths)), workers, bar))]


def plan_pieces(paths, scans, part_sizes):
    """The Pieces that make up the parts, in the order of the records."""
    pieces = []
    files = zip(paths, scans, strict=True)
    left = 0  # records of the current file that are not in a piece yet
    for part, size in enumerate(part_sizes):
        while size:
            while not left:
                path, scan = next(files)
                left = scan.records
            first = scan.records - left
            mark = min(first // PIECE_RECORDS, len(scan.marks) - 1)
            end = scan.records if mark + 1 == len(scan.marks) else (mark + 1) * PIECE_RECORDS
            records = min(end - first, size)
            pieces.append(Piece(part, path, scan.marks[mark], first - mark * PIECE_RECORDS, records))
            left -= records
            size -= records
    return pieces


def read_layout(path):
    """name -> Field of the first record of the file `path`.

    Raises UserError if it has no fields, or one without numbers.
    """
    offset, data = next(tfrecord.read(path))
    layout = {}
    for name, feature in sorted(tfrecord.parse_example(data, path, offset).items()):
        kind = feature.WhichOneof("kind")
        if kind not in _DTYPES:
            found = "bytes" if kind else "nothing"
            raise UserError(f"{path}: field {name} of the record at byte {offset} holds {found}; expected numbers")
        layout[name] = Field(kind, len(getattr(feature, kind).value))
    if not layout:
        raise UserError(f"{path}: the record at byte {offset} has no fields")
    return layout


def describe_layout(layout):
    """`input_ids int32 [128], ...`: the fields as they are written."""
    return ", ".join(f"{name} {_DTYPES[field.kind]} [{field.length}]" for name, field in layout.items())


def convert_piece(index, piece, layout, folder, report):
    """Writes the records of a Piece to the OFRecord file `piece-<index>` in `folder`; returns the index.

    Raises RunError if the file has changed since it was scanned.
    """
    records = itertools.islice(tfrecord.read(piece.path, piece.offset), piece.skip, piece.skip + piece.records)
    written = 0
    with open(folder / f"piece-{index}", "wb") as file:
        while chunk := read_chunk(records):
            for serialized in convert_chunk(piece.path, chunk, layout):
                ofrecord.write_record(file, serialized)
            written += len(chunk)
            report(len(chunk))
    if written < piece.records:
        raise RunError(f"{piece.path}: has changed since it was scanned; run the command again")
    return index


def read_chunk(records):
    """The next of the `records`, (offset, data) each, that are to be converted at once; an empty list at the end."""
    chunk, size = [], 0
    for record in records:
        chunk.append(record)
        size += len(record[1])
        if len(chunk) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            break
    return chunk


def convert_chunk(path, records, layout):
    """The serialized OFRecords of `records`, (offset, data) each, from the file `path`.

    Raises UserError for a number that is no int32.
    """
    names = list(layout)
    columns = {name: [] for name in names}
    for offset, data in records:
        features = tfrecord.parse_example(data, path, offset)
        if sorted(features) != names:
            raise UserError(
                f"{path}: the record at byte {offset} has the fields {', '.join(sorted(features)) or '(none)'}, "
                f"but the first record has {', '.join(names)}"
            )
        for name, field in layout.items():
            kind = features[name].WhichOneof("kind")
            values = getattr(features[name], kind).value if kind else ()
            if (kind, len(values)) != field:
                raise UserError(
                    f"{path}: field {name} of the record at byte {offset} is {kind} [{len(values)}], "
                    f"but the first record has {field.kind} [{field.length}]"
                )
            columns[name].extend(values)
    arrays = {}
    for name, field in layout.items():
        values = np.array(columns[name], dtype=np.int64 if field.kind == "int64_list" else np.float32)
        arrays[name] = values.reshape(len(records), field.length)
        if field.kind == "int64_list":
            arrays[name] = as_int32(arrays[name], name, path, records)
    return ofrecord.serialize_batch(arrays)


def as_int32(values, name, path, records):
    """The int64 `values` [records, length] of field `name` as int32; raises UserError if one does not fit."""
    narrow = values.astype(np.int32)
    if not np.array_equal(narrow, values):
        row, column = np.argwhere(narrow != values)[0]
        offset, _ = records[row]
        raise UserError(
            f"{path}: field {name} of the record at byte {offset} holds {values[row, column]}, which is not an int32"
        )
    return narrow


def join_pieces(finished, pieces, folder):
    """Appends the files `piece-<index>` in `folder` to their parts, in order, as their indices come from `finished`."""
    ready = set()
    joined = 0
    for index in finished:
        ready.add(index)
        while joined in ready:
            path = folder / f"piece-{joined}"
            with open(path, "rb") as piece, open(folder / f"part-{pieces[joined].part}", "ab") as part:
                shutil.copyfileobj(piece, part, 1 << 20)
            path.unlink()
            joined += 1


def publish_parts(staging, part_num, output_dir):
    """Moves the finished parts to the output folder, in place of all that were there."""
    finished = [staging / f"part-{part}" for part in range(part_num)]
    for path in finished:
        sync(path)
    # The old ones go first: an interruption then leaves too few parts, never old and new ones together.
    for path in find_parts(output_dir):
        path.unlink()
    for path in finished:
        os.rename(path, output_dir / path.name)
    sync(output_dir)


def main():
    arguments = parse_arguments()
    paths = find_files("--input_file", arguments.input_file)
    part_num, output_dir = arguments.part_num, arguments.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    if find_parts(output_dir) and not arguments.overwrite:
        raise UserError(
            f"--output_dir={output_dir}: has parts already; give another folder, or --overwrite to replace them"
        )
    for part in find_parts(output_dir):
        check_is_no_input(part, paths)

    scans = scan_input(paths, arguments.workers)
    total = sum(scan.records for scan in scans)
    print(f"input: {len(paths)} files, {total:,} records", flush=True)
    if total < part_num:
        raise UserError(
            f"--part_num={part_num}: the input has only {total} records, and every part needs one; "
            "give a smaller --part_num"
        )
    layout = read_layout(next(path for path, scan in zip(paths, scans, strict=True) if scan.records))
    print(wrapped(one_line(f"fields: {describe_layout(layout)}")), flush=True)

    sizes = [total * (part + 1) // part_num - total * part // part_num for part in range(part_num)]
    pieces = plan_pieces(paths, scans, sizes)
    with temporary_folder(output_dir / "parts") as staging:
        tasks = [(index, piece, layout, staging) for index, piece in enumerate(pieces)]
        with progress_bar(total=total, desc="converting", unit=" records", unit_scale=True) as bar:
            # Closed, so that an interruption ends the workers before the folder they write to is removed.
            with contextlib.closing(run_tasks(convert_piece, tasks, arguments.workers, bar)) as finished:
                join_pieces(finished, pieces, staging)
        publish_parts(staging, part_num, output_dir)
    at_most = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
    print(f"output: {part_num} parts of {at_most} records in {output_dir}")


if __name__ == "__main__":
    run_script(main)
