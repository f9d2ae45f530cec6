"""Compares the variables of a snapshot with their checksums, and says which are damaged.

    python tools/verify_snapshot.py ./output/last_snapshot

Needs neither OneFlow nor the flags of the model.
"""

import suite  # noqa: F401

# isort: split

import sys

import snapshot
from command_line import ArgumentParser
from progress import print_line, progress_bar
from util import STATUS_BAD_INPUT, UserError, run_script


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshot_dir", help="folder of the snapshot")
    folder = parser.parse_args().snapshot_dir

    names = snapshot.variable_names(folder)
    digests = snapshot.read_checksums(folder, names)
    damaged = 0
    for name in progress_bar(names, unit=" variables"):
        try:
            snapshot.verify_variable(folder, name, digests)
        except UserError as error:
            damaged += 1
            print_line(error, sys.stderr)
    print(f"{folder}: {len(names)} variables, {len(digests)} of them with a checksum, {damaged} damaged")
    return STATUS_BAD_INPUT if damaged else 0


if __name__ == "__main__":
    run_script(main)
