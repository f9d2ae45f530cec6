"""Adds the folder above to the import path. Each tool imports this first."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from system import import_errors  # noqa: E402, F401
