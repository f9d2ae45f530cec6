"""Lets a tool that is run as a script import the suite's modules, which lie one folder up; it imports this first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import import_errors  # noqa: E402, F401
