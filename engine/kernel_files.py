"""Where the native library of CPU kernels is built, for which processors, and of what.

Every library holds the build id: a digest of the sources and of the OneFlow and oneDNN that it was built for.
"""

import ctypes
import functools
import hashlib
import os
from pathlib import Path

from engine import libraries

SOURCES = Path(__file__).resolve().parent.parent / "kernels"
# It has the flags of the compiler.
_BUILDER = SOURCES.parent / "tools" / "build_kernels.py"

# Fastest first: what a processor needs for a build, in the names of /proc/cpuinfo.
INSTRUCTION_SETS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi1", "bmi2", "f16c", "abm"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "abm"},
    "baseline": set(),
}

# What build_id.cpp has before it.
_ID_MARK = b"bert build id "


def processor_flags():
    """The names that /proc/cpuinfo has for what this processor can do."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


def runnable_sets():
    """The instruction sets of the library that this processor can run, fastest first."""
    flags = processor_flags()
    return [name for name, needed in INSTRUCTION_SETS.items() if needed <= flags]


def library_of(instruction_set):
    """Where in a build the kernels for that instruction set lie."""
    return f"{instruction_set}/libbert_kernels.so"


def load_onednn():
    """oneDNN as a ctypes.CDLL, in the process for good. Raises OSError if it is not there or does not load."""
    # A library's own search path does not reach into the environment where pip has put oneDNN.
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
    """What a library is built of, in 64 hexadecimal digits: the sources, and which OneFlow and oneDNN are installed.

    Raises OSError if one of these is not there.
    """
    onednn = load_onednn()
    onednn.dnnl_version.restype = ctypes.POINTER(_OneDnnVersion)
    version = onednn.dnnl_version().contents
    digest = hashlib.sha256(_BUILDER.read_bytes())
    digest.update(repr([getattr(version, name) for name, _ in version._fields_]).encode())
    oneflow = oneflow_folder()
    # Its version and commit, and its library, whose name has a checksum in it.
    digest.update((oneflow / "version.py").read_bytes())
    digest.update(repr([path.name for path in oneflow_libraries(oneflow)]).encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(repr((str(path.relative_to(SOURCES)), path.stat().st_size)).encode() + path.read_bytes())
    return digest.hexdigest()


def oneflow_folder():
    """The folder of the module oneflow, which is not imported. Raises OSError if it is not there."""
    found = libraries.find("oneflow/version.py")
    if found is None:
        raise FileNotFoundError(2, "OneFlow is not installed")
    return found.parent


def oneflow_libraries(oneflow):
    """OneFlow's own libraries beside the folder `oneflow` of its module: those that define its C++ names."""
    found = (oneflow.parent / "oneflow.libs").glob("lib*.so")
    return sorted(path for path in found if path.name.startswith(("liboneflow-", "libof_protoobj-")))


def checksum_of(path):
    """Where the SHA-256 of the library at `path` lies, taken when it was linked."""
    return path.with_name(f"{path.name}.sha256")


def folders():
    """Where a build may lie: that of BERT_KERNELS_FOLDER only, else in the checkout, else in the user's cache."""
    given = os.environ.get("BERT_KERNELS_FOLDER")
    if given:
        return [Path(given)]
    # Two checkouts have a folder each.
    checkout = hashlib.sha256(os.fsencode(SOURCES)).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [SOURCES / "build", Path(cache) / "bert-oneflow" / f"kernels-{checkout}"]


def problem_of(path):
    """Why the library at `path` is not to be loaded, in words, or None. Raises OSError if it cannot be read.

    One that has been cut short would kill the process, one that was built of something else might compute anything.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest().encode() != checksum_of(path).read_bytes().strip():
        return f"the library is damaged ({path}), run make clean-kernels kernels"
    if _ID_MARK + build_id().encode() not in content:
        return f"the library was built of other sources or for another OneFlow or oneDNN ({path}), run make kernels"
    return None


def built_sets():
    """The instruction sets that have been built and that this processor can run, fastest first."""
    return [name for name in runnable_sets() if any((folder / library_of(name)).is_file() for folder in folders())]
