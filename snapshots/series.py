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
    """Returns the paths of complete snapshots (`snapshot_<iteration>`, `last_snapshot`) in `folder`, oldest first."""
    found = []
    if Path(folder).is_dir():
        for entry in os.scandir(folder):
            name = _NAME.fullmatch(entry.name)
            if (name or entry.name == "last_snapshot") and (Path(entry) / layout.DONE_FILE).is_file():
                number, iteration = run_state.number_and_iteration(entry.path)
                # At the same iteration, last_snapshot is saved second.
                found.append((number, iteration or (int(name[1]) if name else 0), name is None, Path(entry)))
    return [path for *_, path in sorted(found)]


def next_run_number(folder):
    """Returns the number of the next run that saves in `folder`."""
    return max((run_state.number_and_iteration(path)[0] for path in complete_snapshots(folder)), default=0) + 1


def remove_oldest(folder, keep):
    """Removes all complete `snapshot_<iteration>` in `folder` except the `keep` newest; keeps `last_snapshot`."""
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
