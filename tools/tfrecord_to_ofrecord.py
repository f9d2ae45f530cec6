"""Converts TFRecord files to OFRecord parts, without TensorFlow.

    python tools/tfrecord_to_ofrecord.py --input_file './tf_examples.tfrecord*' --output_dir ./dataset --part_num 8

For files written by google-research/bert: the instances of create_pretraining_data.py and the features of run_squad.py.
Keeps the names; int64 lists become int32, float lists stay float. All records must have the fields of the first one,
with the same number of values.

1. Scan. Reads and checks every file and counts its records.
2. Convert. Distributes the records among the parts in order; sizes differ by at most one record. Several processes
   convert pieces of a part, which are then joined in order.
3. Publish. Moves all parts to the output folder when the last one is done.

A gzip file can only be read from its beginning, so its records for one part are a single piece.
"""

import suite  # noqa: F401

# isort: split

import contextlib
import itertools
import os
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from records import ofrecord, tfrecord
from system.command_line import ArgumentParser, add_bool, add_number, positive_int
from system.errors import RunError, UserError, one_line
from system.input_files import find_files
from system.limits import usable_processors
from system.output_files import check_is_no_input, sync, temporary_folder
from system.progress import progress_bar
from system.workers import run_tasks
from util import run_script

# The maximum number of records in a piece.
PIECE_RECORDS = 8192
# Records are converted in chunks of at most this many records and about this many bytes.
CHUNK_RECORDS = 512
CHUNK_BYTES = 1 << 20

_DTYPES = {"int64_list": np.dtype(np.int32), "float_list": np.dtype(np.float32)}


class Field(NamedTuple):
    """The kind and length of a field's list, the same in every record."""

    kind: str
    length: int


class FileScan(NamedTuple):
    """The result of scanning an input file."""

    records: int
    # Byte offsets of the records 0, PIECE_RECORDS, 2 * PIECE_RECORDS, ...; in a gzip file, only of record 0.
    marks: list


class Piece(NamedTuple):
    """A run of records of one file that goes into one part."""

    part: int
    path: str
    offset: int  # bytes; where to start reading
    skip: int  # number of records from there to the first of the run
    records: int


def parse_arguments():
    parser = ArgumentParser(description="Convert TFRecord files to OFRecord parts.")
    parser.add_argument(
        "--input_file",
        required=True,
        nargs="+",
        metavar="FILES",
        help="TFRecord files, plain or gzip: names or patterns, separated by spaces or commas; a pattern's files are "
        "sorted by name",
    )
    parser.add_argument("--output_dir", required=True, type=Path, metavar="DIR", help="folder for part-0, part-1, ...")
    add_number(parser, "--part_num", positive_int, 1, "number of parts")
    text = "number of processes, which does not change the parts (default: the number of processors)"
    add_number(parser, "--workers", positive_int, usable_processors(), text)
    add_bool(parser, "--overwrite", help="replace the parts that are in --output_dir")
    return parser.parse_args()


def find_parts(folder):
    """Returns the part files in the output folder."""
    return sorted(path for path in folder.glob("part-*") if path.name.removeprefix("part-").isdecimal())


def scan_file(index, path, report):
    """Checks the input file `path`. Returns (index, FileScan). Raises UserError if it is damaged."""
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
    """Returns the FileScan of each path."""
    total = sum(os.path.getsize(path) for path in paths)
    with progress_bar(total=total, desc="scanning", unit="B", unit_scale=True, leave=False) as bar:
        return [scan for _, scan in sorted(run_tasks(scan_file, list(enumerate(paths)), workers, bar))]


def plan_pieces(paths, scans, part_sizes):
    """Returns the Pieces of the parts, in the order of the records."""
    pieces = []
    files = zip(paths, scans, strict=True)
    left = 0  # records of the current file that are not yet in a piece
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
    """Returns name -> Field of the first record of the file `path`.

    Raises UserError if it has no fields, or a field without numbers.
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
    """Returns the fields as text: `input_ids int32 [128], ...`."""
    return ", ".join(f"{name} {_DTYPES[field.kind]} [{field.length}]" for name, field in layout.items())


def convert_piece(index, piece, layout, folder, report):
    """Writes the records of a Piece to the OFRecord file `piece-<index>` in `folder` and returns the index.

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
    """Returns the next chunk of `records`, a list of (offset, data), or an empty list at the end."""
    chunk, size = [], 0
    for record in records:
        chunk.append(record)
        size += len(record[1])
        if len(chunk) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            break
    return chunk


def convert_chunk(path, records, layout):
    """Converts `records`, a list of (offset, data) from the file `path`, to serialized OFRecords.

    Raises UserError if fields differ from the layout or a number is not an int32.
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
    """Returns the int64 `values` [records, length] of field `name` as int32. Raises UserError if one does not fit."""
    narrow = values.astype(np.int32)
    if not np.array_equal(narrow, values):
        row, column = np.argwhere(narrow != values)[0]
        offset, _ = records[row]
        raise UserError(
            f"{path}: field {name} of the record at byte {offset} holds {values[row, column]}, which is not an int32"
        )
    return narrow


def join_pieces(finished, pieces, folder):
    """Appends the files `piece-<index>` in `folder` to their parts in order; `finished` yields completed indexes."""
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
    """Moves the finished parts to the output folder and removes all earlier parts."""
    finished = [staging / f"part-{part}" for part in range(part_num)]
    for path in finished:
        sync(path)
    # Remove old parts first: an interruption then leaves too few parts, never a mixture.
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
            f"--output_dir={output_dir}: already has parts; give another folder, or --overwrite to replace them"
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
    fields = one_line(f"fields: {describe_layout(layout)}")
    print(textwrap.fill(fields, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False), flush=True)

    sizes = [total * (part + 1) // part_num - total * part // part_num for part in range(part_num)]
    pieces = plan_pieces(paths, scans, sizes)
    with temporary_folder(output_dir / "parts") as staging:
        tasks = [(index, piece, layout, staging) for index, piece in enumerate(pieces)]
        with progress_bar(total=total, desc="converting", unit=" records", unit_scale=True) as bar:
            # Closing ends the workers before their folder is removed, also on an interruption.
            with contextlib.closing(run_tasks(convert_piece, tasks, arguments.workers, bar)) as finished:
                join_pieces(finished, pieces, staging)
        publish_parts(staging, part_num, output_dir)
    size_range = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
    print(f"output: {part_num} parts of {size_range} records in {output_dir}")


if __name__ == "__main__":
    run_script(main)
