"""Finds what pip has installed besides Python modules: shared libraries and C++ headers."""

import sys
from pathlib import Path


def find(*relative_paths):
    """The Path of the first of `relative_paths` that is installed, or None.

    Each is looked for in the folders of sys.path and, since the data of a wheel go there, in the prefix to which such a
    folder belongs: that of a virtual environment, of `pip install --user`, of the system.
    """
    folders = [Path(folder or ".") for folder in sys.path]
    # <prefix>/lib/python3.10/site-packages
    prefixes = [folder.parents[2] for folder in folders if folder.name in ("site-packages", "dist-packages")]
    for relative in relative_paths:
        for folder in (*folders, *prefixes, Path(sys.prefix)):
            if (folder / relative).exists():
                return folder / relative
    return None
