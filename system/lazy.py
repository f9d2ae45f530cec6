"""Modules that are imported when they are first used."""

import importlib

_names: list[str] = []


class LazyModule:
    """Stands for the module `name`, and imports it when the first of its attributes is asked for.

    Scripts name the modules that load OneFlow this way. A script then reads from top to bottom, and `--help` and errors
    in flags and data do not wait for OneFlow.
    """

    def __init__(self, name):
        self._name = name
        _names.append(name)

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self._name), attribute)


def import_all():
    """Imports all of them now, so that no import comes between a run's steps."""
    for name in _names:
        importlib.import_module(name)
