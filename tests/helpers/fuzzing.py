"""Fuzzing: damages input files and checks that a script handles them."""

import contextlib
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import hard_text
from in_process import run_in_process
from system import input_files

# Limits for a script with a few kilobytes of damaged input.
MOST_MEMORY = 1 << 30  # bytes of address space, in addition to what the process has
LONGEST_CASE = 10  # seconds of computing
LONGEST_WAIT = 120  # seconds; the machine may be busy

CASES = int(os.environ.get("FUZZ_CASES", 40))
fuzz = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
# For cases of a quarter of a second or more: fewer cases, no shrinking.
fuzz_slowly = settings(fuzz, max_examples=max(5, CASES // 10), phases=[Phase.generate])

# Values to put where a file has a length, a count, an offset or an id.
_ABSURD = [0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_ABSURD_TEXTS = [
    *(str(number).encode() for number in (-1, 0, 0.5, 2**31, 2**63, 2**64, 10**30)),
    *(b"NaN", b"-Infinity", b"1e999", b"null", b"true", b'""', b"[]", b"{}", b'"\\ud800"', b"[" * 100000),
    *(
        b'{"a":' * 20000,
        b"9" * 5000,
        b"\x00",
        b"\xff\xfe",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\r",
        b"\n",
        b"\x1b[2J",
        b"%s%n",
        b"../",
    ),
]


class Change(NamedTuple):
    """A change to one of the files. `place` is the position, as a fraction of its size."""

    file: int
    kind: str
    place: float
    size: int
    data: bytes
    number: int


_KINDS = {
    "flip": 6,
    "overwrite": 3,
    "truncate": 3,
    "insert": 2,
    "delete": 2,
    "repeat": 1,
    "number64": 3,
    "number32": 2,
    "text": 3,
    "append": 1,
    "empty": 1,
    "remove": 1,
    "folder": 1,
    "fifo": 1,
    "device": 1,
    "link": 1,
    "unreadable": 1,
    "swap": 1,
    "replace": 1,
}


def changes():
    """Returns a strategy for one to three Changes."""
    change = st.builds(
        Change,
        file=st.integers(0, 1000),
        kind=st.sampled_from([kind for kind, weight in _KINDS.items() for _ in range(weight)]),
        place=st.floats(0, 1),
        size=st.integers(1, 64),
        data=st.binary(min_size=1, max_size=24) | st.sampled_from(_ABSURD_TEXTS),
        number=st.sampled_from(_ABSURD),
    )
    return st.lists(change, min_size=1, max_size=3)


def damage(files, change):
    """Applies the change to one of the paths `files` and returns that path."""
    path = files[change.file % len(files)]
    if not path.is_file() or path.is_symlink():
        return path
    content = path.read_bytes()
    at = min(int(change.place * len(content)), max(0, len(content) - 1))
    end = at + change.size
    contents = {
        "flip": content[:at] + bytes(byte ^ 1 << change.size % 8 for byte in content[at : at + 1]) + content[at + 1 :],
        "overwrite": content[:at] + change.data + content[at + len(change.data) :],
        "truncate": content[:at],
        "insert": content[:at] + change.data + content[at:],
        "delete": content[:at] + content[end:],
        "repeat": content[:at] + content[at:end] * 50 + content[end:],
        "number64": content[:at] + change.number.to_bytes(8, "little") + content[at + 8 :],
        "number32": content[:at] + (change.number % 2**32).to_bytes(4, "big") + content[at + 4 :],
        "text": _with_another_word(content, at, change.data),
        "append": content + change.data,
        "empty": b"",
        "replace": change.data,
    }
    # The copy is a hard link to the template's file: replace it, never write to it.
    path.unlink()
    if change.kind in contents:
        path.write_bytes(contents[change.kind])
    elif change.kind == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
    elif change.kind == "swap":
        other = files[(change.file + change.size) % len(files)]
        path.write_bytes(other.read_bytes() if other.is_file() and not other.is_symlink() else content)
    else:
        if change.kind == "folder":
            path.mkdir()
        elif change.kind == "fifo":
            os.mkfifo(path)
        elif change.kind == "device":
            path.symlink_to("/dev/zero")
        elif change.kind == "link":
            path.symlink_to(path.name if change.size % 2 else "/nowhere/at/all")
    return path


# Keys of SQuAD files, predictions, tokenizers and log lines.
_KEYS = ["data", "paragraphs", "qas", "id", "question", "context", "answers", "text", "answer_start", "probability"]
_KEYS += ["model", "vocab", "type", "added_tokens", "train_step", "total_loss", "x_loss", "metrics"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | hard_text.texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), children, max_size=4),
    max_leaves=12,
)


@st.composite
def changed_json(draw, content):
    """Returns `content` with one value, at any depth, replaced."""
    if draw(st.integers(0, 4)) == 0 or not isinstance(content, (dict, list)) or not content:
        return draw(json_values)
    key = draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    changed = dict(content) if isinstance(content, dict) else list(content)
    if draw(st.integers(0, 9)) == 0:
        del changed[key]
    else:
        changed[key] = draw(changed_json(changed[key]))
    return changed


def replace(path, content):
    """Replaces a file of a case, a hard link to the template's file, with new text or bytes."""
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path.unlink()
    path.write_bytes(content)


def _with_another_word(content, at, data):
    """Returns the content with the word at `at`, a number or a name, replaced."""
    word = b"-+._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    begin = end = at
    while begin > 0 and content[begin - 1] in word:
        begin -= 1
    while end < len(content) and content[end] in word:
        end += 1
    return content[:begin] + data + content[end:]


class Victim:
    """A script with a folder of good input. Each case gets a copy of the folder."""

    def __init__(self, main, script, template, arguments, files=None):
        """`arguments(folder)`: the arguments for input in `folder`; the script may write to `folder`/output only.

        `files`: names of the input files to damage (default: all in the template folder).
        """
        self.main, self.script, self.template, self.arguments = main, script, template, arguments
        self.files = files or sorted(str(path.relative_to(template)) for path in template.rglob("*") if path.is_file())
        with self.copy() as folder:
            result = self.run(folder)
        assert result.returncode == 0, result.stderr

    @contextlib.contextmanager
    def copy(self):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
            folder = Path(parent) / "case"
            shutil.copytree(self.template, folder, copy_function=os.link)
            (folder / "output").mkdir()
            yield folder

    def run(self, folder):
        return run_in_process(self.main, self.script, *self.arguments(folder))

    def suffers(self, changes):
        """Damages the input and runs the script. Asserts that it succeeds or fails with one line."""
        with self.copy() as folder:
            files = [folder / name for name in self.files]
            damaged = {damage(files, change) for change in changes}
            self.check(folder, damaged)

    def check(self, folder, damaged):
        """Runs the script on `folder` with the `damaged` paths and asserts that it behaves."""
        before = _listing(folder.parent)
        with tempfile.TemporaryFile() as stderr:
            with _limits(), _watching_writes(folder), _stderr_of_libraries(stderr), warnings.catch_warnings():
                # Other warnings are for developers.
                for kind in (RuntimeWarning, UserWarning):
                    warnings.simplefilter("error", kind)
                result = self.run(folder)
            stderr.seek(0)
            assert stderr.read() == b"", "a library has written to stderr"
        assert _listing(folder.parent) == before, "files outside of the output folder have changed"
        assert result.returncode in (0, 2), (result.returncode, result.stderr)
        if result.returncode == 2:
            lines = result.stderr.splitlines()
            assert len(lines) == 1, result.stderr
            assert lines[0].startswith(f"{Path(self.script).name}: error: "), lines[0]
            assert lines[0].isprintable(), lines[0]
            assert len(lines[0]) < 2100, lines[0]
            places = {"--", str(folder), *(path.parent.name for path in damaged)}
            assert any(place in lines[0] for place in places), lines[0]
            left = sorted(path.name for path in (folder / "output").rglob("*") if path.is_file())
            assert left == [], "a run that failed has left output"


def _listing(folder):
    """Returns name -> (kind, size, modification time) of everything in `folder` except the output."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "output"]
        for name in folders + files:
            status = os.lstat(os.path.join(parent, name))
            size_and_time = (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else ()
            found[os.path.join(parent, name)] = (status.st_mode, *size_and_time)
    return found


@contextlib.contextmanager
def _stderr_of_libraries(file):
    """Redirects file descriptor 2 to `file`, for libraries that bypass Python's stderr."""
    terminal = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


class TooSlow(BaseException):
    """The script exceeded its time. Not an Exception, so that the script does not catch it."""


@contextlib.contextmanager
def _limits():
    """Limits the block's time, with TooSlow, and its memory to MOST_MEMORY."""

    def stop(number, frame):
        raise TooSlow

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    patience = mock.patch.object(input_files, "PIPE_SECONDS", 0.05)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, LONGEST_CASE)
    signal.alarm(LONGEST_WAIT)
    try:
        with patience:
            yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


_watched: list[str] = []


def _audit(event, arguments):
    """Raises an error for any write outside the case's output folder."""
    if not _watched or event not in _WRITES:
        return
    for path in _WRITES[event](arguments):
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(path))
            if not path.startswith((str(_watched[-1]) + "/output", "/dev/", "/proc/")):
                raise AssertionError(f"{event} of {path}")


_WRITES = {
    "open": lambda arguments: arguments[:1] if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else (),
    "os.mkdir": lambda arguments: arguments[:1] if arguments[2] == -1 else (),
    "os.rename": lambda arguments: arguments[:2],
    "os.link": lambda arguments: arguments[1:2],
    "os.symlink": lambda arguments: arguments[1:2],
    "os.remove": lambda arguments: arguments[:1] if arguments[1] == -1 else (),
    "os.rmdir": lambda arguments: arguments[:1] if arguments[1] == -1 else (),
    "os.chmod": lambda arguments: arguments[:1],
    "os.truncate": lambda arguments: arguments[:1],
    "subprocess.Popen": lambda arguments: [arguments[0]],
    "os.system": lambda arguments: ["/" + str(arguments[0])],
    "pickle.find_class": lambda arguments: ["/pickle"],
}


@contextlib.contextmanager
def _watching_writes(folder):
    if not hasattr(sys, "_bert_audit"):
        sys.addaudithook(_audit)
        sys.dont_write_bytecode = True
        sys._bert_audit = True
    _watched.append(os.path.realpath(folder))
    try:
        yield
    finally:
        _watched.pop()
