"""The snapshots in a --model_save_dir: finds the newest and removes old ones.

Runs that save into one folder are numbered. A snapshot's run_state file (snapshots/run_state.py) has the run number and
the iteration. Snapshots from older versions have none and count as the oldest, in the order of their names.
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
    """Returns the paths of complete snapshots in `folder`, oldest first.

    They are `snapshot_<iteration>`, `last_snapshot` and `best_snapshot`.
    """
    found = []
    if Path(folder).is_dir():
        for entry in os.scandir(folder):
            name = _NAME.fullmatch(entry.name)
            is_one = name or entry.name in ("last_snapshot", "best_snapshot")
            if is_one and (Path(entry) / layout.DONE_FILE).is_file():
                number, iteration = run_state.number_and_iteration(entry.path)
                # At the same iteration, the numbered snapshot is saved first.
                found.append((number, iteration or (int(name[1]) if name else 0), name is None, Path(entry)))
    return [path for *_, path in sorted(found)]


def next_run_number(folder):
    """Returns the number of the next run that saves in `folder`."""
    return max((run_state.number_and_iteration(path)[0] for path in complete_snapshots(folder)), default=0) + 1


def remove_oldest(folder, keep):
    """Removes all complete `snapshot_<iteration>` in `folder` except the `keep` newest; keeps the others."""
    numbered = [path for path in complete_snapshots(folder) if _NAME.fullmatch(path.name)]
    for path in numbered[:-keep]:
        # Rename first, so that a partly removed snapshot never looks complete.
        os.rename(path, path.with_name(f".{path.name}.{_DOOMED}"))
    for path in Path(folder).glob(f".snapshot_*.{_DOOMED}"):
        if path.is_symlink():
            path.unlink()  # Keep the link's target.
        else:
            shutil.rmtree(path)


def copy(folder, target):
    """Copies the snapshot `folder` to `target`, which appears in one step."""
    with atomic_folder(target) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
