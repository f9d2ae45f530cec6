"""Lets a tool that is run as a script import the suite's modules, which lie one folder up; it imports this first."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from system import import_errors  # noqa: E402, F401
