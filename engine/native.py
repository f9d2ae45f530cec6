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
from system.limits import usable_processors

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
    """Loads the kernels, before OneFlow is imported. Returns a description, or None if no library can be loaded.

    With `device_type` "cuda" only the fixes of OneFlow's faults are active, not the changes that make a CPU fast. The
    environment variable BERT_KERNELS selects `none`, `baseline`, `avx2` or `avx512`; by default the fastest build that
    the processor can run.
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
    """Registers the kernels with OneFlow, before it runs any operator. Returns a description, or None without kernels.

    With `device_type` "cuda" graphs keep OneFlow's own plans and streams.
    """
    global _kernels, _reason, _plugin, _new_tensor, _tensor_type
    if _kernels is None:
        return None
    if _plugin is not None:
        return _kernels.description()
    try:
        # Checked again: a build may have replaced the library while OneFlow was loading.
        path = str(_usable(_kernels.folder, "plugin.so"))
        flow.utils.load_library(path)
        flow.framework.session_context.GetDefaultSession().TryInit()
        oneflow_internal = ctypes.CDLL(flow._oneflow_internal.__file__)
        # PyDLL, as its functions create Python objects.
        plugin = ctypes.PyDLL(path)
        if device_type == "cpu":
            _kernels.preloaded.bert_change_plans(plugin.bert_share_memory)
            _kernels.preloaded.bert_tell_plans(plugin.bert_check_memory)
            _kernels.preloaded.bert_keep_graphs(
                plugin.bert_build_graph,
                plugin.bert_keep_graph,
                plugin.bert_keep_dumped_graph,
                plugin.bert_forget_graphs,
            )
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
    except Exception as error:  # OneFlow raises RuntimeError or exceptions of its own.
        _kernels, _reason = None, f"the library does not load ({_first_line(error)}), run make clean-kernels kernels"
        return None
    return _kernels.description()


def describe():
    """Returns one line that says which kernels are in use."""
    if _kernels is None:
        return f"slow kernels are used: {_reason}"
    return _kernels.description()


def is_used_for(tensor):
    """Returns whether the library has operators for the device of `tensor`."""
    return is_loaded() and not tensor.is_cuda


def is_loaded():
    """Returns whether apply() works, on any device, for OneFlow operators without a Python interface too."""
    return _plugin is not None


def apply(operator, tensors, heads=1, rate=0.0, epsilon=0.0):
    """Applies an operator of the library (kernels/plugin_operators.cpp) or of OneFlow; returns a tuple of tensors.

    Works in graphs too. The operator has no gradient; engine/operators.py defines those. Raises TypeError if `tensors`
    holds anything but OneFlow tensors, ValueError if the operator is unknown or rejects the shapes or data types.
    """
    if _plugin is None:
        raise ValueError(f"{operator}: {describe()}")
    for tensor in tensors:
        if not isinstance(tensor, _tensor_type):
            raise TypeError(f"{operator}: {type(tensor).__name__} is not a tensor")
    outputs = (ctypes.c_void_p * max(8, len(tensors)))()
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
        # Drops the reference that bert_apply has added.
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(tensor))
    return made


def set_thread_count(count):
    """Sets the number of threads of the kernels, initially that of the processors. No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_thread_count(count)


def limit_memory(size):
    """Makes a graph on the CPU, when it is compiled, raise RuntimeError, `out of memory`, if it needs more bytes.

    What it needs goes to stderr, if it is more than half of that. No effect without kernels.
    """
    if _plugin is not None:
        _plugin.bert_limit_memory(ctypes.c_int64(size))


def make_rank_memory(ranks):
    """Returns the file descriptor of new memory through which `ranks` processes of this machine can sum gradients.

    The caller may write a token to its first 64 bytes. Raises OSError if there is no such memory or no library.
    """
    if _kernels is None:
        raise OSError(errno.ENOSYS, describe())
    file = _kernels.library.bert_make_rank_memory(ranks)
    if file < 0:
        raise OSError(-file, os.strerror(-file))
    return file


def join_ranks(memory, ranks, rank):
    """Makes this process `rank` of the `ranks` that share `memory`, which it has opened and may close afterwards.

    The operator `bert_sum_over_ranks` then sums over them. Raises OSError if that is not possible.
    """
    if _kernels is None:
        raise OSError(errno.ENOSYS, describe())
    problem = _kernels.library.bert_join_ranks(memory, ranks, rank)
    if problem:
        raise OSError(problem, os.strerror(problem))


def set_seed(seed):
    """Seeds the dropout masks of graphs created from now on. No effect without kernels."""
    if _kernels is not None:
        _kernels.library.bert_set_seed(ctypes.c_uint64(seed))


def expect_records(paths, fields, buffer_size, readers, reader):
    """Sets the parts and fields that readers created from now on read and check.

    Returns whether they check records: OneFlow's own reader, used without the kernels, does not. `fields` maps names to
    records.Field. This rank is `reader` of `readers`, which share the parts `paths`; `buffer_size` is the size of the
    shuffle buffer in records, 1 for no shuffling.
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
    """Returns the position of the record reader after `batches` batches, as bytes for `restore_reader`.

    The reader is that of the newest job, created by the job's first call; batches count from there. Positions of the
    last 64 batches and of prefetched ones are known; raises ValueError for others. Returns None without kernels, and on
    ranks that read no parts.
    """
    if _plugin is None:
        return None
    state = ctypes.create_string_buffer(0)
    while True:
        size = _plugin.bert_newest_reader_position(ctypes.c_int64(batches), state, ctypes.c_int64(len(state)))
        if size == -1:
            return None
        if size == 0:
            raise ValueError(f"the reader's position after {batches} batches is not known")
        if size == len(state):
            return state.raw
        state = ctypes.create_string_buffer(size)


def restore_reader(state):
    """Makes the next reader start at a position from `reader_state`. Call it before the job's first call.

    The order of the records continues as the saved reader's would, whatever this reader's seed. Raises UserError if the
    state is damaged or of other parts or ranks, and without kernels.
    """
    if _plugin is None:
        raise UserError("a reader's position can be restored with the native kernels only (make kernels)")
    if _reader_settings is None:
        raise UserError("the saved state has a reader's position, but this rank reads no parts")
    error = _reader_settings.error_of(state)
    if error:
        raise UserError(error)
    _plugin.bert_restore_next_reader(state, ctypes.c_int64(len(state)))


class ReaderFailure(NamedTuple):
    """A record that the reader cannot read."""

    batches: int  # read before it
    text: str  # what is wrong, and where
    path: str  # of its part, or empty
    offset: int  # of the record in its part, in bytes


def reader_failure():
    """Returns the ReaderFailure of the newest job's reader, or None. Batches after a failure are zeros."""
    if _plugin is None:
        return None
    text, path = ctypes.create_string_buffer(8192), ctypes.create_string_buffer(8192)
    offset = ctypes.c_int64()
    batches = _plugin.bert_newest_reader_failure(text, path, ctypes.c_int64(len(path)), ctypes.byref(offset))
    if batches < 0:
        return None
    return ReaderFailure(batches, os.fsdecode(text.value), os.fsdecode(path.value), offset.value)


def random_state():
    """Returns the state of all dropout in graphs, as bytes for `restore_random_state`; None without kernels.

    Call it while no iteration is running.
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
    """Restores the seed and dropout state from `random_state`. Call it before the job's first call.

    Raises UserError if the state is damaged, and without kernels.
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
    """Turns rounding of matrix products' operands to bfloat16 on or off; sums stay float32.

    Returns None, or the reason why it is not possible.
    """
    if _kernels is None:
        return "it needs the native kernels (make kernels)" if on else None
    _kernels.library.bert_set_bfloat16(ctypes.c_bool(on))
    return None


def has_bfloat16_instructions():
    """Returns whether bfloat16 instructions are in use; otherwise software rounds the operands, slowly."""
    return _kernels is not None and _kernels.has_bfloat16_instructions()


def is_built():
    """Returns whether `make kernels` has built the library for this processor."""
    return bool(kernel_files.built_sets() and kernel_files.folders_with("plugin.so"))


def open_library(instruction_set):
    """Returns the kernels for one instruction set, a ctypes.CDLL with the functions of kernels/kernels.h.

    Raises OSError if they are not built or do not load.
    """
    kernel_files.load_onednn()
    name = kernel_files.library_of(instruction_set)
    found = kernel_files.folders_with(name)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "not built", name)
    return ctypes.CDLL(str(found[0] / name))


def load_engine_fixes():
    """Loads the fixes of OneFlow's scheduler and of small graphs (kernels/preload.cpp), before OneFlow is imported.

    For programs without the kernels; preload() loads them too. Returns a ctypes.CDLL. Raises OSError if they are not
    built or do not load.
    """
    return _preload((kernel_files.folders_with("preload.so") or kernel_files.folders())[0])


def _preload(folder):
    return ctypes.CDLL(str(folder / "preload.so"), mode=ctypes.RTLD_GLOBAL)


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
        """Returns the settings of a reader, which shuffles if `buffer_size` exceeds 1."""
        return cls(len(paths), _strings(paths), 0, readers, reader, buffer_size, buffer_size > 1)

    def error_of(self, state):
        """Returns what is wrong with a reader's saved state, or an empty string."""
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
    """Returns the values as an array of C strings."""
    return (ctypes.c_char_p * len(values))(*(os.fsencode(value) for value in values))


class _NotAvailableError(Exception):
    """No kernels can be loaded; the text says why."""


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
    found = kernel_files.folders_with(name)
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
    """Returns OneFlow's error message, which has colours and several lines, as one plain line."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", text.decode(errors="replace")).split()).removeprefix("Error: ")


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
