"""The Python environment with PyTorch and Transformers, for comparisons with them."""

import os
import subprocess
from pathlib import Path

from system.errors import RunError, UserError

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "benchmarks/requirements-torch.txt"
ENVIRONMENT = ROOT / ".cache/bench-torch"


def find_or_make():
    """Returns the path of the environment's Python; creates the environment unless it matches REQUIREMENTS.

    Raises UserError if there is no Python 3.11, and RunError with pip's last line if creating it fails.
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
    """Returns the first working python3.11 on PATH or of pyenv."""
    candidates = [Path(folder) / "python3.11" for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += pyenv.glob("versions/3.11.*/bin/python3.11")
    for candidate in candidates:
        # A pyenv shim is on PATH, but fails if another version is selected.
        if os.access(candidate, os.X_OK) and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    raise UserError("found no Python 3.11, which PyTorch needs: install it (pyenv install 3.11)")
