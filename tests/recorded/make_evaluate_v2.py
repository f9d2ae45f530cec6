"""Makes evaluate_v2.npz anew: what SQuAD v2.0's official script prints for the questions of test_evaluate_v2.py.

python tests/recorded/make_evaluate_v2.py OFFICIAL_SCRIPT
"""

import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = map(str, (ROOT, ROOT / "tests/helpers", ROOT / "tests/scripts"))

# isort: split

import test_evaluate_v2 as cases  # noqa: E402

import recordings  # noqa: E402


def main():
    script, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases.write(folder, cases.random_questions(100, seed=0))
        command = [sys.executable, Path(script).resolve()]
        outputs = {name: cases.outputs_of(command, folder, name) for name in cases.FLAGS}
    made_by = [
        "evaluate_v2.npz was made by: python tests/recorded/make_evaluate_v2.py OFFICIAL_SCRIPT SOURCE",
        f"evaluate-v2.0.py of {source}",
        f"Python {platform.python_version()}",
    ]
    recordings.write("evaluate_v2", outputs, made_by)


if __name__ == "__main__":
    main()
