"""The files of the native kernels: where builds lie, for which processors, and from which sources.

Every library holds a build id, a digest of the sources and of the OneFlow and oneDNN that it was built for.
"""

import ctypes
import functools
import hashlib
import os
from pathlib import Path

from engine import libraries

SOURCES = Path(__file__).resolve().parent.parent / "kernels"
# Part of the build id, as it holds the compiler flags.
_BUILDER = SOURCES.parent / "tools" / "build_kernels.py"

# Build -> the processor flags that it needs, as in /proc/cpuinfo; fastest first.
INSTRUCTION_SETS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi1", "bmi2", "f16c", "abm"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm"},
    "baseline": set(),
}

# build_id.cpp writes it before the id.
_ID_MARK = b"bert build id "


def processor_flags():
    """Returns the processor flags of /proc/cpuinfo."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


def runnable_sets():
    """Returns the instruction sets that this processor can run, fastest first."""
    flags = processor_flags()
    return [name for name, needed in INSTRUCTION_SETS.items() if needed <= flags]


def library_of(instruction_set):
    """Returns the path, within a build folder, of the kernels for an instruction set."""
    return f"{instruction_set}/libbert_kernels.so"


def load_onednn():
    """Loads oneDNN for the life of the process; returns a ctypes.CDLL. Raises OSError if it does not load."""
    # The kernels' own search path does not include pip's folder of oneDNN.
    return ctypes.CDLL(str(libraries.find("lib/libdnnl.so.3") or "libdnnl.so.3"))


class _OneDnnVersion(ctypes.Structure):
    """dnnl_version_t of dnnl_types.h."""

    _fields_ = (
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
        ("hash", ctypes.c_char_p),
        ("cpu_runtime", ctypes.c_uint),
        ("gpu_runtime", ctypes.c_uint),
    )


@functools.cache
def build_id():
    """Returns the digest of the sources and of the installed OneFlow and oneDNN, as 64 hexadecimal digits.

    Raises OSError if one of them is missing.
    """
    onednn = load_onednn()
    onednn.dnnl_version.restype = ctypes.POINTER(_OneDnnVersion)
    version = onednn.dnnl_version().contents
    digest = hashlib.sha256(_BUILDER.read_bytes())
    digest.update(repr([getattr(version, name) for name, _ in version._fields_]).encode())
    oneflow = oneflow_folder()
    # Version and commit, and the names of the libraries, which contain checksums.
    digest.update((oneflow / "version.py").read_bytes())
    digest.update(repr([path.name for path in oneflow_libraries(oneflow)]).encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(repr((str(path.relative_to(SOURCES)), path.stat().st_size)).encode() + path.read_bytes())
    return digest.hexdigest()


def oneflow_folder():
    """Returns the folder of the module oneflow without importing it. Raises OSError if it is not installed."""
    found = libraries.find("oneflow/version.py")
    if found is None:
        raise FileNotFoundError(2, "OneFlow is not installed")
    return found.parent


def oneflow_libraries(oneflow):
    """Returns the shared libraries of OneFlow's C++ code; `oneflow` is the folder of its module."""
    found = (oneflow.parent / "oneflow.libs").glob("lib*.so")
    return sorted(path for path in found if path.name.startswith(("liboneflow-", "libof_protoobj-")))


def checksum_of(path):
    """Returns the path of the file with the library's SHA-256, written when it was linked."""
    return path.with_name(f"{path.name}.sha256")


def folders():
    """Returns the build folders: BERT_KERNELS_FOLDER if set, else those in the checkout and in the user's cache."""
    given = os.environ.get("BERT_KERNELS_FOLDER")
    if given:
        return [Path(given)]
    # Each checkout has its own cache folder.
    checkout = hashlib.sha256(os.fsencode(SOURCES)).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [SOURCES / "build", Path(cache) / "bert-oneflow" / f"kernels-{checkout}"]


def folders_with(name):
    """Returns the build folders that hold the file `name`."""
    return [folder for folder in folders() if (folder / name).is_file()]


def problem_of(path):
    """Returns why the library at `path` must not be loaded, or None. Raises OSError if it cannot be read.

    Loading a truncated library kills the process; one built from other sources may compute wrong results.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest().encode() != checksum_of(path).read_bytes().strip():
        return f"the library is damaged ({path}), run make clean-kernels kernels"
    if _ID_MARK + build_id().encode() not in content:
        return f"the library was built from other sources or for another OneFlow or oneDNN ({path}), run make kernels"
    return None


def built_sets():
    """Returns the instruction sets that are built and that this processor can run, fastest first."""
    return [name for name in runnable_sets() if folders_with(library_of(name))]
