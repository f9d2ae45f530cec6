"""Finds shared libraries and C++ headers that pip has installed."""

import sys
from pathlib import Path


def find(*relative_paths):
    """Returns the Path of the first of `relative_paths` that is installed, or None.

    Searches the folders of sys.path and the prefixes they belong to (virtual environment, `pip install --user`,
    system), where pip puts the data files of wheels.
    """
    folders = [Path(folder or ".") for folder in sys.path]
    # <prefix>/lib/python3.10/site-packages
    prefixes = [folder.parents[2] for folder in folders if folder.name in ("site-packages", "dist-packages")]
    for relative in relative_paths:
        for folder in (*folders, *prefixes, Path(sys.prefix)):
            if (folder / relative).exists():
                return folder / relative
    return None
