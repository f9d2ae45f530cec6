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

# The C++ names of the pointer within Singleton<ResourceDesc, ForSession>, and of one::PyTensor_New.
_SESSION_RESOURCES = "_ZZN7oneflow9SingletonINS_12ResourceDescENS_10ForSessionEE7GetPPtrEvE3ptr"
_PY_TENSOR_NEW = "_ZN7oneflow3one12PyTensor_NewERKSt10shared_ptrINS0_6TensorEE"

_kernels = None
_plugin = None
_new_tensor = None
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
    global _kernels, _reason, _plugin, _new_tensor
    if _kernels is None:
        return None
    if _plugin is not None:
        return _kernels.description()
    try:
        flow.utils.load_library(str(_BUILD / "plugin.so"))
        flow.framework.session_context.GetDefaultSession().TryInit()
        oneflow_internal = ctypes.CDLL(flow._oneflow_internal.__file__)
        # PyDLL: its functions make Python objects.
        plugin = ctypes.PyDLL(str(_BUILD / "plugin.so"))
        plugin.bert_use_one_stream(ctypes.c_void_p.in_dll(oneflow_internal, _SESSION_RESOURCES))
        _new_tensor = getattr(oneflow_internal, _PY_TENSOR_NEW)
        _plugin = plugin
    except Exception as error:  # OneFlow raises RuntimeError or its own exceptions, by version of the failure.
        _kernels, _reason = None, f"the library does not load ({_first_line(error)}), run make clean-kernels kernels"
        return None
    return _kernels.description()


def describe():
    """One line on which kernels are in use."""
    if _kernels is None:
        return f"slow kernels are used: {_reason}"
    return _kernels.description()


def is_used_for(tensor):
    """Whether an operator on `tensor` can be one of the library's."""
    return _plugin is not None and not tensor.is_cuda


def apply(operator, tensors, heads=1, rate=0.0, epsilon=0.0):
    """Applies an operator of the library (kernels/plugin_operators.cpp); returns its outputs as a tuple of tensors.

    In a graph too. It has no gradient: see fused_operators.py.
    """
    outputs = (ctypes.c_void_p * 8)()
    inputs = (ctypes.py_object * len(tensors))(*tensors)
    attributes = (ctypes.c_int64(heads), ctypes.c_float(rate), ctypes.c_double(epsilon))
    count = _plugin.bert_apply(operator.encode(), *attributes, _new_tensor, len(tensors), inputs, outputs)
    made = tuple(ctypes.cast(pointer, ctypes.py_object).value for pointer in outputs[:count])
    for tensor in made:
        # bert_apply's own reference.
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(tensor))
    return made


def set_thread_count(count):
    """Makes the kernels use `count` threads (0: as many as the process may run on). No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_thread_count(count)


def set_seed(seed):
    """Seeds the dropout masks of graphs made from now on. No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_seed(ctypes.c_uint64(seed))


def use_bfloat16(on):
    """Makes matrix products round their operands to bfloat16, or stop doing so; the sums stay float32.

    Returns None, or in words why that is not possible here.
    """
    if on and _kernels is None:
        return "it needs the native kernels (make kernels)"
    if on and "avx512_bf16" not in _processor_flags():
        return "this processor has no bfloat16 instructions (avx512_bf16)"
    if _kernels is not None:
        _kernels.library.bert_set_bfloat16(ctypes.c_bool(on))
    return None


def is_built():
    """Whether `make kernels` has built the library."""
    return all((_BUILD / name).is_file() for name in ("plugin.so", "preload.so"))


def runnable_sets():
    """The instruction sets of the library that this processor can run, fastest first."""
    flags = _processor_flags()
    return [name for name, needed in _INSTRUCTION_SETS.items() if needed <= flags]


def open_library(instruction_set):
    """The kernels in their build for one instruction set, as a ctypes.CDLL with the functions of kernels/kernels.h.

    Raises OSError if it is not there or does not load.
    """
    # The library's own search path does not reach into the environment where pip has put oneDNN.
    ctypes.CDLL(str(Path(sysconfig.get_path("data")) / "lib" / "libdnnl.so.3"))
    return ctypes.CDLL(str(_BUILD / instruction_set / "libbert_kernels.so"))


def steady_graphs():
    """Loads what keeps OneFlow's scheduler from spinning and small graphs from crashing (kernels/preload.cpp).

    preload() does so too; this is for those who want it without the kernels. Before OneFlow is imported.
    """
    ctypes.CDLL(str(_BUILD / "preload.so"), mode=ctypes.RTLD_GLOBAL)


class _NotAvailableError(Exception):
    """There are no kernels to load; the text says why."""


class _Kernels:
    """The loaded library."""

    def __init__(self, instruction_set):
        if not is_built():
            raise _NotAvailableError("no library, run make kernels (needs g++)")
        try:
            self.library = open_library(instruction_set)
            steady_graphs()
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
    available = runnable_sets()
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
