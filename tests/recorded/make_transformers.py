"""Makes transformers.npz anew: what Transformers computes for the cases of tests/models/test_transformers.py.

    python tests/recorded/make_transformers.py TRANSFORMERS_PYTHON

TRANSFORMERS_PYTHON is a Python that has torch and transformers, as `make test-transformers` installs one.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = map(str, (ROOT, ROOT / "tools", ROOT / "tests/helpers"))

# isort: split

import recordings  # noqa: E402
import transformers_cases  # noqa: E402


def main():
    (python,) = sys.argv[1:]
    outputs = {}
    for name, case in transformers_cases.cases().items():
        with tempfile.TemporaryDirectory() as folder:
            outputs[name], versions = transformers_cases.transformers_output(python, case, Path(folder))
    made_by = [
        "transformers.npz was made by: python tests/recorded/make_transformers.py TRANSFORMERS_PYTHON",
        ", ".join(f"{package} {version}" for package, version in versions.items()),
    ]
    recordings.write("transformers", outputs, made_by)


if __name__ == "__main__":
    main()
