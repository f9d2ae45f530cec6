"""The snapshots of a run in --model_save_dir: which was saved last, and which go to make room.

Each is saved with a number of its own, one more than the last, in the file `run_state` of its train step's folder
(run_state.py). Older snapshots have none: they come before those that do, in the order of their iterations.
"""

import os
import re
import shutil
from pathlib import Path

import run_state
import snapshot

_DOOMED = "removed.tmp"
_NAME = re.compile(r"snapshot_([1-9][0-9]*)")


def complete_snapshots(folder):
    """The paths of the complete snapshots `snapshot_<iteration>` and `last_snapshot` in `folder`, oldest first."""
    found = []
    if Path(folder).is_dir():
        for entry in os.scandir(folder):
            name = _NAME.fullmatch(entry.name)
            if (name or entry.name == "last_snapshot") and (Path(entry) / snapshot.DONE_FILE).is_file():
                found.append((run_state.save_number(entry.path), int(name[1]) if name else 0, Path(entry)))
    return [path for _, _, path in sorted(found)]


def next_save_number(folder):
    """The number of the next snapshot to be saved in `folder`."""
    return max(map(run_state.save_number, complete_snapshots(folder)), default=0) + 1


def remove_oldest(folder, keep):
    """Removes all complete `snapshot_<iteration>` in `folder` but the `keep` newest. `last_snapshot` stays."""
    numbered = [path for path in complete_snapshots(folder) if _NAME.fullmatch(path.name)]
    for path in numbered[:-keep]:
        # Renamed first, so that a snapshot that is half removed is never taken for a whole one.
        os.rename(path, path.with_name(f".{path.name}.{_DOOMED}"))
    for path in Path(folder).glob(f".snapshot_*.{_DOOMED}"):
        shutil.rmtree(path)
