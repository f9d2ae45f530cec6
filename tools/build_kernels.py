"""Builds the native library of CPU kernels: what `make kernels` runs (docs/kernels.md).

    python tools/build_kernels.py avx2

The kernels are compiled once for each instruction set, into libraries of the same name in folders of their own;
plugin.so gives them to OneFlow.
"""

import suite  # noqa: F401

# isort: split

import concurrent.futures
import hashlib
import math
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from engine import kernel_files, libraries
from engine.kernel_files import SOURCES, library_of
from system import errors, folder_lock, output_files, signals
from system.command_line import ArgumentParser, add_bool
from system.errors import RunError, UserError
from util import run_script

_SET_FLAGS = {"baseline": [], "avx2": ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mlzcnt"]}
_SET_FLAGS["avx512"] = [
    *_SET_FLAGS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl",
    "-mprefer-vector-width=512",
]  # fmt: skip
_FLAGS = ["-std=c++17", "-fPIC", "-Wall", "-Wextra"]
_KERNEL_FLAGS = ["-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# With OneFlow's own visibility: the objects that its headers define are shared with it.
_PLUGIN_FLAGS = ["-O2", "-D_GLIBCXX_USE_CXX11_ABI=0", "-DHALF_ENABLE_CPP11_USER_LITERALS=0"]
# What they add to the code makes g++ warn of OneFlow's Maybe<void>.
_SANITIZER_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-Wno-maybe-uninitialized"]

# Nothing in these gets faster by other instructions: compiled once for all sets.
_COMMON = ("record_reader", "build_id")


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help="instruction sets; without any, the fastest that this processor has")
    add_bool(parser, "--if_possible", help="if it cannot be built, say so in one line and end with status 0")
    add_bool(parser, "--plugin", default=True, help="build what gives the kernels to OneFlow")
    parser.add_argument("--sanitizer", choices=["address", "undefined", "thread"], help="compile for this sanitizer")
    args = parser.parse_args()
    for name in args.sets:
        if name not in kernel_files.INSTRUCTION_SETS:
            raise UserError(f"{name} is none of {', '.join(kernel_files.INSTRUCTION_SETS)}")
    sets = args.sets or kernel_files.runnable_sets()[:1]
    if not args.if_possible:
        build(sets, args.plugin, args.sanitizer)
        return
    status, problem = errors.outcome_of(lambda: build(sets, args.plugin, args.sanitizer, explains=False))
    if status > 128:
        raise signals.Signalled(status - 128)
    if problem:
        print(f"Notice: the native kernels are not built ({problem}); everything works without, several times slower.")


def build(sets, plugin=True, sanitizer=None, explains=True):
    """Builds the libraries for the instruction sets `sets` and, with `plugin`, those that give them to OneFlow.

    What is there of the same sources stays; the new ones appear beside it all at once. Raises RunError if the compiler
    fails, of which all that it says goes to stderr if `explains`; UserError if it or a header is not there.
    """
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(compiler[0]) is None:
        raise UserError(f"there is no C++ compiler {compiler[0]}; install g++")
    folder = _writable_folder()
    # One build at a time.
    lock = folder_lock.lock_folder(folder.parent, patience=math.inf)
    try:
        wanted = [*map(library_of, sets), *(["preload.so", "plugin.so"] if plugin else [])]
        possible = [*map(library_of, kernel_files.INSTRUCTION_SETS), "preload.so", "plugin.so"]
        there = [name for name in possible if _is_good(folder / name)]
        missing = [name for name in wanted if name not in there]
        if not missing:
            return
        with output_files.atomic_folder(folder) as new:
            for name in there:
                (new / name).parent.mkdir(exist_ok=True)
                shutil.copy2(folder / name, new / name)
                shutil.copy2(kernel_files.checksum_of(folder / name), kernel_files.checksum_of(new / name))
            objects = new / "objects"
            objects.mkdir()
            _Build(compiler, new, objects, sanitizer, explains).make(missing)
            shutil.rmtree(objects)
    finally:
        os.close(lock)


def _writable_folder():
    """The first of the folders for a build that can be written."""
    candidates = kernel_files.folders()
    for folder in candidates:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder.parent, os.W_OK):
            return folder
    raise UserError(f"{candidates[-1]}: cannot be written; name a folder in BERT_KERNELS_FOLDER")


def _is_good(path):
    try:
        return kernel_files.problem_of(path) is None
    except OSError:
        return False


class _Build:
    """One run of the compiler over what is to be made in the folder `new`."""

    def __init__(self, compiler, new, objects, sanitizer, explains):
        self._compiler = compiler
        self._new = new
        self._objects = objects
        self._explains = explains
        self._sanitizer = [f"-fsanitize={sanitizer}", *_SANITIZER_FLAGS] if sanitizer else []
        header = libraries.find("include/dnnl.hpp")
        if header is None:
            raise UserError("oneDNN's headers are not installed; pip install -r requirements.txt")
        build_id = f'-DBERT_BUILD_ID="{kernel_files.build_id()}"'
        self._kernel_flags = [*_FLAGS, *_KERNEL_FLAGS, build_id, "-isystem", str(header.parent)]
        self._onednn = str(libraries.find("lib/libdnnl.so.3") or "-l:libdnnl.so.3")
        oneflow = kernel_files.oneflow_folder()
        # OneFlow's include folder also holds ancient system headers, which must not come before the real ones.
        self._plugin_flags = [
            *_FLAGS, *_PLUGIN_FLAGS, "-iquote", str(SOURCES), "-isystem", str(SOURCES / "stand_in"),
            "-idirafter", str(oneflow / "include"),
        ]  # fmt: skip
        self._oneflow = [str(path) for path in kernel_files.oneflow_libraries(oneflow)]

    def make(self, names):
        """Makes the libraries `names`."""
        units = {path.stem for path in SOURCES.glob("*.cpp")}
        plugin_units = sorted(unit for unit in units if unit.startswith("plugin"))
        kernel_units = sorted(units - {*plugin_units, *_COMMON, "preload"})
        sets = [os.path.dirname(name) for name in names if name.endswith("/libbert_kernels.so")]
        jobs = []  # the slowest first
        if "plugin.so" in names:
            # OneFlow's headers, and the code that comes of them, are most of the work: once for the whole plugin.
            text = "".join(f'#include "{unit}.cpp"\n' for unit in plugin_units)
            jobs.append(("plugin", [*self._plugin_flags, "-x", "c++", "-"], text))
        for unit in [*_COMMON, "preload"]:
            jobs.append((unit, [*self._kernel_flags, str(SOURCES / f"{unit}.cpp")], ""))
        for name in sets:
            (self._objects / name).mkdir()
            for unit in kernel_units:
                flags = [*self._kernel_flags, *_SET_FLAGS[name], str(SOURCES / f"{unit}.cpp")]
                jobs.append((f"{name}/{unit}", flags, ""))
        self._compile(jobs)
        for name in sets:
            self._link(
                library_of(name), [*_COMMON, *(f"{name}/{unit}" for unit in kernel_units)],
                "-Wl,-soname,libbert_kernels.so", self._onednn, "-l:libgomp.so.1", "-lpthread",
            )  # fmt: skip
        if "preload.so" in names:
            self._link("preload.so", ["preload", "build_id"], "-ldl")
        if "plugin.so" in names:
            kernels = next(self._new.glob("*/libbert_kernels.so"))
            self._link("plugin.so", ["plugin", "build_id"], str(kernels), *self._oneflow, "-Wl,--allow-shlib-undefined")

    def _compile(self, jobs):
        """Makes an object of each (name, flags and source, text for stdin), one a processor at a time."""
        processors = len(os.sched_getaffinity(0))
        print(f"Compiling the native kernels: {len(jobs)} files, {processors} at a time", flush=True)
        pool = concurrent.futures.ThreadPoolExecutor(processors)
        try:
            running = {pool.submit(self._object, *job): job[0] for job in jobs}
            for count, done in enumerate(concurrent.futures.as_completed(running), start=1):
                done.result()
                print(f"  {count}/{len(jobs)} {running[done]}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _object(self, name, arguments, text):
        self._run([*arguments, *self._sanitizer, "-c", "-o", str(self._objects / f"{name}.o")], text)

    def _link(self, name, objects, *arguments):
        path = self._new / name
        path.parent.mkdir(exist_ok=True)
        inputs = [str(self._objects / f"{unit}.o") for unit in objects]
        self._run(["-shared", *self._sanitizer, *inputs, *arguments, "-o", str(path)])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        kernel_files.checksum_of(path).write_text(digest + "\n", encoding="ascii")

    def _run(self, arguments, text=""):
        command = [*self._compiler, *arguments]
        environment = {**os.environ, "LC_ALL": "C"}
        result = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
        said = result.stderr.strip()
        if result.returncode == 0:
            if said:
                print(said, flush=True)  # warnings
            return
        if self._explains:
            print(shlex.join(command), said, sep="\n", flush=True)
        # "file:1:2: fatal error: ...", "g++: error: ...", "ld: cannot find ..."
        telling = [line for line in said.splitlines() if re.search("error|cannot|No space", line)]
        reason = (telling or said.splitlines() or [f"status {result.returncode}"])[0]
        raise RunError(f"{Path(self._compiler[0]).name} failed: {reason}")


if __name__ == "__main__":
    run_script(main)
