"""Finds and loads the native library of CPU kernels that `make kernels` builds (docs/kernels.md).

Without it everything works with OneFlow's own kernels, several times slower.
"""

import ctypes
import os
import sysconfig
from pathlib import Path

_BUILD = Path(__file__).resolve().parent / "kernels" / "build"

# Fastest first: what a processor needs for a build (kernels.mk), in the names of /proc/cpuinfo.
_INSTRUCTION_SETS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi1", "bmi2", "f16c", "abm"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm"},
    "baseline": set(),
}

# Where OneFlow keeps its Singleton<ResourceDesc, ForSession>.
_SESSION_RESOURCES = "_ZZN7oneflow9SingletonINS_12ResourceDescENS_10ForSessionEE7GetPPtrEvE3ptr"

_kernels = None
_reason = "not loaded yet"


def preload():
    """Loads the kernels, before OneFlow is imported. Returns a description, or None if there are none to load.

    BERT_KERNELS in the environment chooses: `none`, or one of `baseline`, `avx2`, `avx512`.
    """
    global _kernels, _reason
    if _kernels is None:
        try:
            _kernels = _Kernels(_chosen_set())
        except _NotAvailableError as error:
            _reason = str(error)
            return None
    return _kernels.description()


def load(flow):
    """Gives the kernels to OneFlow, before it has run any operator. Returns a description, or None without kernels."""
    global _kernels, _reason
    if _kernels is None:
        return None
    try:
        flow.utils.load_library(str(_BUILD / "plugin.so"))
        flow.framework.session_context.GetDefaultSession().TryInit()
        session = ctypes.c_void_p.in_dll(ctypes.CDLL(flow._oneflow_internal.__file__), _SESSION_RESOURCES)
        ctypes.CDLL(str(_BUILD / "plugin.so")).bert_use_one_stream(session)
    except Exception as error:  # OneFlow raises RuntimeError or its own exceptions, by version of the failure.
        _kernels, _reason = None, f"the library does not load ({_first_line(error)}), run make clean-kernels kernels"
        return None
    return _kernels.description()


def describe():
    """One line on which kernels are in use."""
    if _kernels is None:
        return f"slow kernels are used: {_reason}"
    return _kernels.description()


def kernels():
    """The loaded library as a ctypes.CDLL with the functions of kernels/kernels.h, or None."""
    return None if _kernels is None else _kernels.library


def set_thread_count(count):
    """Makes the kernels use `count` threads (0: as many as the process may run on). No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_thread_count(count)


def set_seed(seed):
    """Seeds the dropout masks of graphs made from now on. No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_seed(ctypes.c_uint64(seed))


class _NotAvailableError(Exception):
    """There are no kernels to load; the text says why."""


class _Kernels:
    """The loaded library."""

    def __init__(self, instruction_set):
        path = _BUILD / instruction_set / "libbert_kernels.so"
        if not path.is_file() or not (_BUILD / "plugin.so").is_file():
            raise _NotAvailableError("no library, run make kernels (needs g++)")
        try:
            # Its own search path does not reach into the environment where pip has put oneDNN.
            ctypes.CDLL(str(Path(sysconfig.get_path("data")) / "lib" / "libdnnl.so.3"))
            self.library = ctypes.CDLL(str(path))
            ctypes.CDLL(str(_BUILD / "preload.so"), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise _NotAvailableError(f"the library does not load ({_first_line(error)})") from None
        self._instruction_set = instruction_set

    def description(self):
        return f"native kernels: {self._instruction_set}, {self.library.bert_thread_count()} threads"


def _chosen_set():
    chosen = os.environ.get("BERT_KERNELS", "")
    if chosen == "none":
        raise _NotAvailableError("BERT_KERNELS=none")
    if chosen and chosen not in _INSTRUCTION_SETS:
        raise _NotAvailableError(f"BERT_KERNELS={chosen} is none of none, {', '.join(_INSTRUCTION_SETS)}")
    flags = _processor_flags()
    available = [name for name, needed in _INSTRUCTION_SETS.items() if needed <= flags]
    if chosen and chosen not in available:
        raise _NotAvailableError(f"BERT_KERNELS={chosen}, which this processor cannot run")
    return chosen or available[0]


def _processor_flags():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
