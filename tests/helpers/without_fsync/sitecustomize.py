"""Python imports this at its start where running.WITHOUT_FSYNC is in its environment."""

import os

os.fsync = lambda fd: None
