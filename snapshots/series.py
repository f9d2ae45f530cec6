"""The snapshots of a run in --model_save_dir: which was saved last, and which go to make room.

Runs that save into one folder are numbered. The number and the iteration stand in the file `run_state` of the train
step's folder (snapshots/run_state.py). Older snapshots have none: they come first, in the order of their names.
"""

import os
import re
import shutil
from pathlib import Path

from snapshots import layout, run_state
from system.output_files import atomic_folder

_DOOMED = "removed.tmp"
_NAME = re.compile(r"snapshot_([1-9][0-9]*)")


def complete_snapshots(folder):
    """The paths of the complete snapshots `snapshot_<iteration>`, `last_snapshot` and `best_snapshot` in `folder`.

    Oldest first.
    """
    found = []
    if Path(folder).is_dir():
        for entry in os.scandir(folder):
            name = _NAME.fullmatch(entry.name)
            is_one = name or entry.name in ("last_snapshot", "best_snapshot")
            if is_one and (Path(entry) / layout.DONE_FILE).is_file():
                number, iteration = run_state.number_and_iteration(entry.path)
                # At the same iteration the numbered one is saved before the others.
                found.append((number, iteration or (int(name[1]) if name else 0), name is None, Path(entry)))
    return [path for *_, path in sorted(found)]


def next_run_number(folder):
    """The number of the next run that saves in `folder`."""
    return max((run_state.number_and_iteration(path)[0] for path in complete_snapshots(folder)), default=0) + 1


def remove_oldest(folder, keep):
    """Removes all complete `snapshot_<iteration>` in `folder` but the `keep` newest. The others stay."""
    numbered = [path for path in complete_snapshots(folder) if _NAME.fullmatch(path.name)]
    for path in numbered[:-keep]:
        # Renamed first, so that a snapshot that is half removed is never taken for a whole one.
        os.rename(path, path.with_name(f".{path.name}.{_DOOMED}"))
    for path in Path(folder).glob(f".snapshot_*.{_DOOMED}"):
        if path.is_symlink():
            path.unlink()  # What it names stays.
        else:
            shutil.rmtree(path)


def copy(folder, target):
    """Makes the snapshot `target` a copy of the snapshot `folder`, in one step."""
    with atomic_folder(target) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
