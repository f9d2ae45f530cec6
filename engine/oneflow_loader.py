"""Loads OneFlow 0.9.0. All other modules import OneFlow from here.

The wheel is a CUDA 11.7 build. Even on a machine without a GPU it can be imported only after cuBLAS 11 and cuDNN 8 have
been loaded. They come from their PyPI packages, so LD_LIBRARY_PATH is not needed.
"""

import contextlib
import ctypes
import os
import re
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine import kernel_files, libraries, native
from system.errors import UserError
from system.signals import Signalled

# Version and commit. The kernels replace functions of this build by name (kernels/preload.cpp), and rely on the layout
# of its classes.
_BUILD = ("0.9.0", "381b12c")

# In the order of their dependencies.
_CUDA_LIBRARIES = (
    ("nvidia-cublas-cu11==11.10.3.66", "nvidia/cublas/lib/libcublasLt.so.11"),
    ("nvidia-cublas-cu11==11.10.3.66", "nvidia/cublas/lib/libcublas.so.11"),
    ("nvidia-cudnn-cu11==8.5.0.96", "nvidia/cudnn/lib/libcudnn_ops_infer.so.8"),
    ("nvidia-cudnn-cu11==8.5.0.96", "nvidia/cudnn/lib/libcudnn_cnn_infer.so.8"),
    ("nvidia-cudnn-cu11==8.5.0.96", "nvidia/cudnn/lib/libcudnn_ops_train.so.8"),
    ("nvidia-cudnn-cu11==8.5.0.96", "nvidia/cudnn/lib/libcudnn_cnn_train.so.8"),
)

_CPU_SETTINGS = {
    # With oneDNN on, additions of a bias or a mask run in its reference implementation: three quarters of a step.
    "ONEFLOW_ENABLE_ONEDNN_OPTS": "0",
}

# The dynamic linker's message when a limit (ulimit -v) leaves no room for a library.
_NO_ADDRESS_SPACE = "failed to map segment"

# Harmless messages that the engine prints to stderr at every start.
_NOISE = re.compile(rb"libibverbs not available|CUDA driver version is insufficient")


# `from engine.oneflow_loader import flow, nn` loads OneFlow. Scripts import modules that do so through system.lazy, so
# that flags and data are checked first.
flow: Any
nn: Any


def __getattr__(name):
    if name == "flow":
        return load()
    if name == "nn":
        return load().nn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(log_file=None, device_type="cpu") -> Any:
    """Imports OneFlow for a model on `device_type` and returns the module; later calls return the same one.

    Sets environment variables for speed on a CPU, unless the user has set them. Unless stderr is a file, OneFlow's
    harmless start-up messages go to `log_file` (or are dropped) and others to stderr. With several ranks, returns when
    all can receive messages. Raises UserError, naming the package to install, for a wrong Python, OneFlow or library.
    """
    if "oneflow" in sys.modules:
        return sys.modules["oneflow"]
    check_python()
    check_build()
    for name, value in _CPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    for package, library in _CUDA_LIBRARIES:
        _load_library(package, library)
    native.preload(device_type)
    with _noise_to(log_file), _interrupts_as_before(), _functions_bound_when_called():
        try:
            import oneflow
        except ImportError as error:
            signalled = re.match(r"Signalled: ended by (SIG\w+)", str(error))
            if signalled:
                # OneFlow's library turns an exception during its initialisation into an ImportError.
                raise Signalled(signal.Signals[signalled[1]]) from None
            if _NO_ADDRESS_SPACE in str(error):
                raise MemoryError(f"for OneFlow: {error}") from None
            raise UserError(f"OneFlow cannot be imported ({error}): pip install -r requirements.txt") from None
        # Starts the session now, so that its start-up messages are caught here.
        oneflow.framework.session_context.GetDefaultSession().TryInit()
        native.load(oneflow, device_type)
    # It tells errors on stderr that it then raises.
    sys.modules["oneflow.nn.graph.graph"].__dict__["print"] = _print_but_to_stderr
    if oneflow.env.get_world_size() > 1:
        # A rank accepts connections before it can handle messages, and one that comes too early kills it. The barrier
        # uses gRPC, not these connections.
        oneflow.comm.barrier()
    return oneflow


def _print_but_to_stderr(*values, file=None, **options):
    if file is not sys.stderr:
        print(*values, file=file, **options)


def check_python(version=sys.version_info, optimize=sys.flags.optimize):
    """Raises UserError unless this Python version and optimisation level can run OneFlow 0.9.0's wheel."""
    if not (3, 7) <= version[:2] <= (3, 10):
        raise UserError(
            f"OneFlow 0.9.0 has no wheel for Python {version[0]}.{version[1]}: use Python 3.10 "
            "(make setup creates .venv with it)"
        )
    if optimize:
        # OneFlow has asserts with side effects.
        raise UserError("OneFlow 0.9.0 does not run without assertions: leave out python -O and PYTHONOPTIMIZE")


def check_build():
    """Raises UserError unless the installed OneFlow is the build that this suite patches."""
    try:
        text = (kernel_files.oneflow_folder() / "version.py").read_text(errors="replace")
    except OSError as error:
        raise UserError(f"OneFlow cannot be imported ({error.strerror}): pip install -r requirements.txt") from None
    build = tuple(re.findall(r'^__(?:version|git_commit)__ = "(.*)"$', text, re.MULTILINE))
    if build != _BUILD:
        raise UserError(
            f"OneFlow {' '.join(build) or 'of an unknown version'} is installed, but this suite replaces functions of "
            f"{_BUILD[0]} of commit {_BUILD[1]} and works with no other: "
            "pip install -r requirements.txt"
        )


def _load_library(package, library):
    """Loads a shared library from its PyPI package, else from the system's search path."""
    try:
        ctypes.CDLL(str(libraries.find(library) or Path(library).name))
    except OSError as error:
        if _NO_ADDRESS_SPACE in str(error):
            raise MemoryError(f"for {Path(library).name}: {error}") from None
        raise UserError(f"OneFlow needs {Path(library).name} ({error}): pip install {package}") from None


@contextlib.contextmanager
def _interrupts_as_before():
    """Keeps the action for SIGINT: importing OneFlow installs one that ends the process, sometimes with a crash.

    A SIGINT within the block, which takes less than a second, is delivered at its end.
    """
    libc = ctypes.CDLL(None)
    action = ctypes.create_string_buffer(512)  # more than a struct sigaction
    libc.sigaction(signal.SIGINT, None, action)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        libc.sigaction(signal.SIGINT, action, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _functions_bound_when_called():
    """Lets the dynamic linker find the functions of extension modules imported within the block when they are called.

    OneFlow's libraries name over 50,000, and most are never called: to find them all takes a fifth of the import.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        yield
    finally:
        sys.setdlopenflags(flags)


@contextlib.contextmanager
def _noise_to(log_file):
    """Captures file descriptor 2 within the block; then writes known noise to `log_file` and the rest to stderr.

    If the descriptor is a file, usually the run's log, nothing is captured: the engine may end the process within the
    block, and its last message must reach the file.
    """
    if stat.S_ISREG(os.fstat(2).st_mode):
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            captured.seek(0)
            lines = captured.read().splitlines(keepends=True)
            noise = [line for line in lines if _NOISE.search(line)]
            sys.stderr.buffer.writelines(line for line in lines if not _NOISE.search(line))
            sys.stderr.buffer.flush()
            if log_file is not None and noise:
                # Losing noise on a full disk does no harm.
                with contextlib.suppress(OSError), open(log_file, "ab") as log:
                    log.writelines(noise)
