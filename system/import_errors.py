"""Reports a missing package or an old Python in one line. Every script imports this module first.

A user who runs a script with another Python than .venv's meets these errors while the script's imports run.
"""

import os
import signal
import sys

# Module -> package, where the names differ.
_PACKAGES = {
    "google.protobuf": "protobuf",
    "google_crc32c": "google-crc32c",
    "ml_dtypes": "ml-dtypes",
    "google": "protobuf",
}
_REMEDY = "use .venv/bin/python, which make setup creates, or Python 3.10 after pip install -r requirements.txt"


def check_version(version):
    """Ends the process with one line and status 2 if Python `version` is too old."""
    if version < (3, 10):
        _end(f"{sys.executable} is Python {version[0]}.{version[1]}, which is too old: {_REMEDY}")


def _end(text, status=2):
    print(f"{os.path.basename(sys.argv[0])}: error: {text}", file=sys.stderr)
    raise SystemExit(status)


def _tell(kind, error, trace):
    """sys.excepthook: one line for a missing package and for Ctrl-C during imports, a traceback for all else."""
    if issubclass(kind, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")  # The terminal shows ^C.
        _end("ended by SIGINT", 130)
    if not issubclass(kind, ModuleNotFoundError):
        sys.__excepthook__(kind, error, trace)
        return
    name = error.name or ""
    package = next((package for module, package in _PACKAGES.items() if name.startswith(module)), None)
    package = package or name.partition(".")[0] or error
    version = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    _end(f"the package {package} is missing in {sys.executable} ({version}): {_REMEDY}")


check_version(sys.version_info)
sys.excepthook = _tell
