"""Modules that are imported on first use."""

import importlib

_names: list[str] = []


class LazyModule:
    """A stand-in for the module `name` that imports it on the first access to an attribute.

    Scripts import the modules that load OneFlow this way, at the top of the file, and still answer `--help` and report
    errors in flags and data before OneFlow is loaded.
    """

    def __init__(self, name):
        self._name = name
        _names.append(name)

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self._name), attribute)


def import_all():
    """Imports all lazy modules now, so that no import delays the run later."""
    for name in _names:
        importlib.import_module(name)
