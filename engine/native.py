"""Finds and loads the native library of CPU kernels that `make kernels` builds (docs/kernels.md).

Without it everything works with OneFlow's own kernels, several times slower.
"""

import ctypes
import errno
import json
import os
import re
from typing import NamedTuple

from engine import kernel_files
from system.errors import UserError
from system.processors import usable_processors

# The C++ names of the pointer within Singleton<ResourceDesc, ForSession>, and of one::PyTensor_New.
_SESSION_RESOURCES = "_ZZN7oneflow9SingletonINS_12ResourceDescENS_10ForSessionEE7GetPPtrEvE3ptr"
_PY_TENSOR_NEW = "_ZN7oneflow3one12PyTensor_NewERKSt10shared_ptrINS0_6TensorEE"

_kernels = None
_plugin = None
_new_tensor = None
_tensor_type = None
_reader_settings = None
_reason = "not loaded yet"


def preload(device_type="cpu"):
    """Loads the kernels, before OneFlow is imported. Returns a description, or None if there are none to load.

    For a model on `device_type` "cuda" without what makes a CPU fast: of OneFlow's, faults alone are then replaced.
    BERT_KERNELS in the environment chooses: `none`, or one of `baseline`, `avx2`, `avx512`; without it the fastest that
    has been built and that the processor can run.
    """
    global _kernels, _reason
    if _kernels is None:
        try:
            _kernels = _Kernels(_chosen_set())
        except _NotAvailableError as error:
            _reason = str(error)
            return None
    _kernels.preloaded.bert_tune_cpu(ctypes.c_bool(device_type == "cpu"))
    return _kernels.description()


def load(flow, device_type="cpu"):
    """Gives the kernels to OneFlow, before it has run any operator. Returns a description, or None without kernels.

    For a model on `device_type` "cuda" graphs keep OneFlow's own plans and streams.
    """
    global _kernels, _reason, _plugin, _new_tensor, _tensor_type
    if _kernels is None:
        return None
    if _plugin is not None:
        return _kernels.description()
    try:
        # Once more: what was whole when OneFlow began to load may have been built anew since.
        path = str(_usable(_kernels.folder, "plugin.so"))
        flow.utils.load_library(path)
        flow.framework.session_context.GetDefaultSession().TryInit()
        oneflow_internal = ctypes.CDLL(flow._oneflow_internal.__file__)
        # PyDLL: its functions make Python objects.
        plugin = ctypes.PyDLL(path)
        if device_type == "cpu":
            _kernels.preloaded.bert_change_plans(plugin.bert_share_memory)
            _kernels.preloaded.bert_tell_plans(plugin.bert_check_memory)
            plugin.bert_use_one_stream(ctypes.c_void_p.in_dll(oneflow_internal, _SESSION_RESOURCES))
        else:
            _kernels.preloaded.bert_tell_plans(plugin.bert_tell_memory)
        _kernels.preloaded.bert_choose_gradients(plugin.bert_first_gradient)
        plugin.bert_newest_reader_position.restype = ctypes.c_int64
        plugin.bert_newest_reader_failure.restype = ctypes.c_int64
        _new_tensor = getattr(oneflow_internal, _PY_TENSOR_NEW)
        _tensor_type = flow.Tensor
        _plugin = plugin
    except _NotAvailableError as error:
        _kernels, _reason = None, str(error)
        return None
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
    return is_loaded() and not tensor.is_cuda


def is_loaded():
    """Whether apply() works, also for those of OneFlow's operators that only C++ reaches, on any device."""
    return _plugin is not None


def apply(operator, tensors, heads=1, rate=0.0, epsilon=0.0):
    """Applies an operator of the library (kernels/plugin_operators.cpp); returns its outputs as a tuple of tensors.

    In a graph too. One of OneFlow's own works as well. It has no gradient: see engine/operators.py.
    Raises TypeError if `tensors` are no tensors of OneFlow's, ValueError if the operator is not known or does not take
    tensors of these shapes and data types.
    """
    if _plugin is None:
        raise ValueError(f"{operator}: {describe()}")
    for tensor in tensors:
        if not isinstance(tensor, _tensor_type):
            raise TypeError(f"{operator}: {type(tensor).__name__} is no tensor")
    outputs = (ctypes.c_void_p * 8)()
    error = ctypes.create_string_buffer(8192)
    inputs = (ctypes.py_object * len(tensors))(*tensors)
    attributes = (ctypes.c_int64(heads), ctypes.c_float(rate), ctypes.c_double(epsilon))
    what_went_wrong = (error, ctypes.c_int64(len(error)))
    count = _plugin.bert_apply(
        operator.encode(), *attributes, _new_tensor, len(tensors), inputs, outputs, *what_went_wrong
    )
    if count < 0:
        raise ValueError(f"{operator}: {_plain(error.value)}")
    made = tuple(ctypes.cast(pointer, ctypes.py_object).value for pointer in outputs[:count])
    for tensor in made:
        # bert_apply's own reference.
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(tensor))
    return made


def set_thread_count(count):
    """Makes the kernels use `count` threads; at first as many as there are processors. No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_thread_count(count)


def limit_memory(size):
    """Makes a graph on the CPU, when it is compiled, raise RuntimeError, `out of memory`, if it needs more bytes.

    What it needs goes to stderr. No effect without kernels.
    """
    if _plugin is not None:
        _plugin.bert_limit_memory(ctypes.c_int64(size))


def set_seed(seed):
    """Seeds the dropout masks of graphs made from now on. No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_seed(ctypes.c_uint64(seed))


def expect_records(paths, fields, buffer_size, readers, reader):
    """Tells what the readers that are made from now on will read and must find there.

    Returns whether they will check that. Without the kernels it has no effect: nothing checks what OneFlow's own reader
    reads. `fields`: name -> records.Field. This rank is number `reader` of `readers`, who share out the parts `paths`;
    `buffer_size` is how many records they draw from, 1 if the order is not random.
    """
    global _reader_settings
    if _plugin is None:
        return False
    _reader_settings = _ReaderSettings.of(paths, buffer_size, readers, reader)
    lengths = [field.length for field in fields.values()]
    bounds = [-1 if field.bound is None else field.bound for field in fields.values()]
    are_integers = [field.dtype.kind == "i" for field in fields.values()]
    _plugin.bert_expect_fields(
        ctypes.c_int64(len(fields)),
        _strings(fields),
        (ctypes.c_int64 * len(fields))(*lengths),
        (ctypes.c_int64 * len(fields))(*bounds),
        (ctypes.c_bool * len(fields))(*are_integers),
    )
    return True


def reader_state(batches):
    """Where the reader of records is, as bytes for `restore_reader`, after it has given out `batches` batches.

    It is that of the newest job (a reader is made by its job's first call), counted from that call. The last 64 batches
    given out, and some yet to come, can be asked for; ValueError for others. None without kernels, and on ranks that
    read no parts.
    """
    if _plugin is None:
        return None
    state = ctypes.create_string_buffer(0)
    while True:
        size = _plugin.bert_newest_reader_position(ctypes.c_int64(batches), state, ctypes.c_int64(len(state)))
        if size == -1:
            return None
        if size == 0:
            raise ValueError(f"the reader's position after {batches} batches is not known (any more)")
        if size == len(state):
            return state.raw
        state = ctypes.create_string_buffer(size)


def restore_reader(state):
    """Makes the next reader begin where `reader_state` says: to be called between a job's loader and its first call.

    The order of the records goes on as the saved reader's would, whatever the seed of this one. Raises UserError if the
    bytes are no such state, or that of other parts or ranks, and without kernels.
    """
    if _plugin is None:
        raise UserError("a reader's position can be restored with the native kernels only (make kernels)")
    if _reader_settings is None:
        raise UserError("a reader's position is to be restored, but this rank reads no parts")
    error = _reader_settings.error_of(state)
    if error:
        raise UserError(error)
    _plugin.bert_restore_next_reader(state, ctypes.c_int64(len(state)))


class ReaderFailure(NamedTuple):
    """What the reader of records cannot read."""

    batches: int  # read before
    text: str  # what is wrong, and where
    path: str  # of the part whose record is at fault, or empty
    offset: int  # in bytes, of that record


def reader_failure():
    """The ReaderFailure of the newest job's reader, or None. It fills the batches that it cannot read with zeros."""
    if _plugin is None:
        return None
    text, path = ctypes.create_string_buffer(8192), ctypes.create_string_buffer(8192)
    offset = ctypes.c_int64()
    batches = _plugin.bert_newest_reader_failure(text, path, ctypes.c_int64(len(path)), ctypes.byref(offset))
    if batches < 0:
        return None
    return ReaderFailure(batches, os.fsdecode(text.value), os.fsdecode(path.value), offset.value)


def random_state():
    """How far the random streams of all dropout in graphs are, as bytes for `restore_random_state`.

    To be asked when no call of a job is under way. None without kernels.
    """
    if _kernels is None:
        return None
    lines = ctypes.create_string_buffer(0)
    while (size := _kernels.library.bert_list_streams(lines, ctypes.c_int64(len(lines)))) > len(lines):
        lines = ctypes.create_string_buffer(size)
    streams = [line.split(" ", 1) for line in lines.raw[:size].decode().splitlines()]
    calls = {name: int(count) for count, name in streams}
    return json.dumps({"seed": _kernels.library.bert_seed(), "dropout_calls": calls}, indent=1).encode()


def restore_random_state(state):
    """Makes the dropout of a job go on where `random_state` says: to be called before the job's first call.

    The seed is the state's. Raises UserError if the bytes are no such state, and without kernels.
    """
    if _kernels is None:
        raise UserError("the random state can be restored with the native kernels only (make kernels)")
    try:
        found = json.loads(state)
        seed, calls = found["seed"], found["dropout_calls"]
        for count in (seed, *calls.values()):
            if type(count) is not int or not 0 <= count < 2**64:
                raise ValueError(count)
        if not all(name.isprintable() for name in calls):
            raise ValueError(calls)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("the saved random state is damaged") from None
    set_seed(seed)
    for name, count in calls.items():
        _kernels.library.bert_restore_stream(name.encode(errors="replace"), ctypes.c_uint64(count))


def use_bfloat16(on):
    """Makes matrix products round their operands to bfloat16, or stop doing so; the sums stay float32.

    Returns None, or in words why that is not possible here.
    """
    if _kernels is None:
        return "it needs the native kernels (make kernels)" if on else None
    _kernels.library.bert_set_bfloat16(ctypes.c_bool(on))
    return None


def has_bfloat16_instructions():
    """Whether use_bfloat16 makes products faster: else operands are rounded in software, for the same results."""
    return _kernels is not None and _kernels.has_bfloat16_instructions()


def is_built():
    """Whether `make kernels` has built the library for this processor."""
    return bool(kernel_files.built_sets()) and _folder_with("plugin.so") is not None


def open_library(instruction_set):
    """The kernels in their build for one instruction set, as a ctypes.CDLL with the functions of kernels/kernels.h.

    Raises OSError if it is not there or does not load.
    """
    kernel_files.load_onednn()
    name = kernel_files.library_of(instruction_set)
    folder = _folder_with(name)
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, "not built", name)
    return ctypes.CDLL(str(folder / name))


def steady_graphs():
    """Loads what keeps OneFlow's scheduler from spinning and small graphs from crashing (kernels/preload.cpp).

    preload() does so too; this is for those who want it without the kernels. Before OneFlow is imported. Returns it
    as a ctypes.CDLL. Raises OSError if it is not there or does not load.
    """
    return _preload(_folder_with("preload.so") or kernel_files.folders()[0])


def _preload(folder):
    return ctypes.CDLL(str(folder / "preload.so"), mode=ctypes.RTLD_GLOBAL)


def _folder_with(name):
    """The first folder with a file `name` of a build, or None."""
    return next((folder for folder in kernel_files.folders() if (folder / name).is_file()), None)


class _ReaderSettings(ctypes.Structure):
    """BertReaderSettings of kernels/record_reader.h."""

    _fields_ = (
        ("parts", ctypes.c_int64),
        ("paths", ctypes.POINTER(ctypes.c_char_p)),
        ("seed", ctypes.c_uint64),
        ("readers", ctypes.c_int64),
        ("reader", ctypes.c_int64),
        ("buffer_size", ctypes.c_int64),
        ("reorders_parts", ctypes.c_bool),
    )

    @classmethod
    def of(cls, paths, buffer_size, readers, reader):
        """Those of a reader that shuffles if it has a buffer to draw from."""
        return cls(len(paths), _strings(paths), 0, readers, reader, buffer_size, buffer_size > 1)

    def error_of(self, state):
        """What is wrong with the state of such a reader, or an empty string."""
        library = _kernels.library
        library.bert_reader_open.restype = ctypes.c_void_p
        library.bert_reader_error.restype = ctypes.c_char_p
        reader = ctypes.c_void_p(library.bert_reader_open(ctypes.byref(self)))
        try:
            library.bert_reader_restore(reader, state, ctypes.c_int64(len(state)))
            place = ctypes.c_int64(), ctypes.c_int64()
            return os.fsdecode(library.bert_reader_error(reader, ctypes.byref(place[0]), ctypes.byref(place[1])))
        finally:
            library.bert_reader_close(reader)


def _strings(values):
    """The values as an array of C strings."""
    return (ctypes.c_char_p * len(values))(*(os.fsencode(value) for value in values))


class _NotAvailableError(Exception):
    """There are no kernels to load; the text says why."""


class _Kernels:
    """The loaded library."""

    def __init__(self, instruction_set):
        name = kernel_files.library_of(instruction_set)
        try:
            self.folder = _folder_of_build(name)
            for library in ("preload.so", "plugin.so", name):
                _usable(self.folder, library)
            kernel_files.load_onednn()
            self.library = ctypes.CDLL(str(self.folder / name))
            self.library.bert_set_thread_count(usable_processors())
            self.library.bert_list_streams.restype = ctypes.c_int64
            self.library.bert_seed.restype = ctypes.c_uint64
            self.has_bfloat16_instructions = self.library.bert_has_bfloat16_instructions
            self.has_bfloat16_instructions.restype = ctypes.c_bool
            self.preloaded = _preload(self.folder)
        except (OSError, AttributeError) as error:
            raise _NotAvailableError(f"the library does not load ({_first_line(error)})") from None
        self._instruction_set = instruction_set

    def description(self):
        count = self.library.bert_thread_count()
        return f"native kernels: {self._instruction_set}, {count} thread{'s' if count > 1 else ''}"


def _folder_of_build(name):
    """The first folder of a build with the library `name` of what is installed now, or else with any such library."""
    found = [folder for folder in kernel_files.folders() if (folder / name).is_file()]
    if not found:
        raise _NotAvailableError("no library, run make kernels (needs g++)")
    return next((folder for folder in found if kernel_files.problem_of(folder / name) is None), found[0])


def _usable(folder, name):
    """The path of a library in a build. Raises _NotAvailableError if it is not to be loaded."""
    problem = kernel_files.problem_of(folder / name)
    if problem:
        raise _NotAvailableError(problem)
    return folder / name


def _chosen_set():
    chosen = os.environ.get("BERT_KERNELS", "")
    names = list(kernel_files.INSTRUCTION_SETS)
    if chosen == "none":
        raise _NotAvailableError("BERT_KERNELS=none")
    if chosen and chosen not in names:
        raise _NotAvailableError(f"BERT_KERNELS={chosen} is none of none, {', '.join(names)}")
    if chosen and chosen not in kernel_files.runnable_sets():
        raise _NotAvailableError(f"BERT_KERNELS={chosen}, which this processor cannot run")
    try:
        built = kernel_files.built_sets()
    except OSError as error:
        raise _NotAvailableError(f"the library does not load ({_first_line(error)})") from None
    if chosen and chosen not in built:
        raise _NotAvailableError(f"BERT_KERNELS={chosen}, which has not been built: run make kernels")
    if not built:
        raise _NotAvailableError("no library, run make kernels (needs g++)")
    return chosen or built[0]


def _plain(text):
    """What OneFlow says of an error, in colours on several lines, as one line."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", text.decode(errors="replace")).split()).removeprefix("Error: ")


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
