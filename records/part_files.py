"""Writes the parts of a data set; the tools that make records of labelled text share its flags."""

import os
from pathlib import Path

from records import description, ofrecord
from system.command_line import add_bool, add_number, positive_int
from system.errors import UserError
from system.output_files import atomic_folder, check_replaceable
from system.progress import progress_bar

# Records are made and written in batches of this size.
_BATCH_SIZE = 256


def add_output_flags(group):
    """Adds --output_dir, --overwrite, --vocab_file and --part_num to a group of arguments."""
    group.add_argument(
        "--output_dir", required=True, metavar="DIR", help="folder for part-0, part-1, ..., new or empty"
    )
    add_bool(group, "--overwrite", help="replace records that this tool has made in output_dir")
    group.add_argument("--vocab_file", required=True, metavar="TXT", help="vocabulary of the model, one piece per line")
    add_number(group, "--part_num", positive_int, 1, "number of parts")


def check_output_dir(arguments):
    """Raises UserError unless --output_dir is new, empty, or holds records that --overwrite may replace."""
    if not (os.path.isdir(arguments.output_dir) and not os.listdir(arguments.output_dir)):
        check_replaceable(arguments.output_dir, arguments.overwrite, description.FILE)


def check_part_num(count, arguments):
    """Raises UserError if `count` records are too few for --part_num parts."""
    if count < arguments.part_num:
        raise UserError(
            f"--part_num={arguments.part_num}: {arguments.input_file} makes only {count} records, and every "
            "part needs one; give a smaller --part_num"
        )


def write_data_set(arguments, described, vocab_data, count, make_features, labels=None):
    """Writes `count` records to part-0, part-1, ... in --output_dir, contiguous blocks of nearly equal size.

    `described`, `vocab_data` and `labels` are as for description.write. `make_features(first, end)` returns the
    features of the records first to end - 1: name -> array [N, length].
    """
    part_num = arguments.part_num
    with atomic_folder(Path(arguments.output_dir).resolve()) as folder:
        description.write(folder, described, vocab_data, labels)
        with progress_bar(total=count, desc="writing", unit="record") as progress:
            for part in range(part_num):
                begin, end = (number * count // part_num for number in (part, part + 1))
                with ofrecord.open_writer(folder / f"part-{part}") as write:
                    for first in range(begin, end, _BATCH_SIZE):
                        batch_end = min(first + _BATCH_SIZE, end)
                        for record in ofrecord.serialize_batch(make_features(first, batch_end)):
                            write(record)
                        progress.update(batch_end - first)
