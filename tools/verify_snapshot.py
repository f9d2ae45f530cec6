"""Verifies the checksums of a snapshot's variables and lists those that are damaged.

    python tools/verify_snapshot.py ./output/last_snapshot

Needs neither OneFlow nor the flags of the model.
"""

import suite  # noqa: F401

# isort: split

from snapshots import layout
from system.command_line import ArgumentParser
from system.errors import UserError, one_line, some_of
from system.progress import print_line, progress_bar
from util import run_script


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshot_dir", help="folder of the snapshot")
    folder = parser.parse_args().snapshot_dir

    names = layout.variable_names(folder)
    digests = layout.read_checksums(folder, names)
    damaged = []
    for name in progress_bar(names, unit=" variables"):
        try:
            layout.verify_variable(folder, name, digests)
        except UserError as error:
            damaged.append(name)
            print_line(one_line(error))
    if damaged:
        raise UserError(f"{folder}: damaged: {len(damaged)} of {len(names)} variables: {some_of(damaged)}")
    layout.check_owners(folder, names)
    print(f"{folder}: {len(names)} variables, of which {len(digests)} have a checksum: no damage found")


if __name__ == "__main__":
    run_script(main)
