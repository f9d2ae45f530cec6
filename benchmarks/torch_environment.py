"""The Python environment of PyTorch and Transformers, for the sides of benchmarks that are not this project."""

import os
import subprocess
from pathlib import Path

from system.errors import RunError, UserError

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "benchmarks/requirements-torch.txt"
ENVIRONMENT = ROOT / ".cache/bench-torch"


def find_or_make():
    """The path of the environment's Python; made anew unless the environment stands as REQUIREMENTS say.

    Raises UserError if there is no Python 3.11, RunError, with pip's last line, if it cannot be made.
    """
    python, installed = ENVIRONMENT / "bin/python", ENVIRONMENT / "installed.txt"
    if not installed.is_file() or installed.read_bytes() != REQUIREMENTS.read_bytes():
        print(f"Making the environment of PyTorch and Transformers in {ENVIRONMENT}", flush=True)
        _run(_find_python_3_11(), "-m", "venv", "--clear", ENVIRONMENT)
        _run(python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS)
        installed.write_bytes(REQUIREMENTS.read_bytes())
    return python


def _run(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise RunError(f"{ENVIRONMENT}: status {result.returncode}: {(result.stdout.splitlines() or ['?'])[-1]}")


def _find_python_3_11():
    """The first python3.11 on PATH, or else of pyenv, that runs."""
    candidates = [Path(folder) / "python3.11" for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += pyenv.glob("versions/3.11.*/bin/python3.11")
    for candidate in candidates:
        # A shim of pyenv is on PATH even where it has been told to use another version, and fails.
        if os.access(candidate, os.X_OK) and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    raise UserError("found no Python 3.11, which PyTorch is to run in: install it (pyenv install 3.11)")
