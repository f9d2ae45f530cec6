"""Modules that are imported when they are first used."""

import importlib


class LazyModule:
    """Stands for the module `name`, and imports it when the first of its attributes is asked for.

    Scripts name the modules that load OneFlow this way. A script then reads from top to bottom, and `--help` and errors
    in flags and data do not wait for OneFlow.
    """

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self._name), attribute)
