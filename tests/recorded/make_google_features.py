"""Makes google_features.npz anew: what google-research/bert's extract_features.py gives for a small model.

    python tests/recorded/make_google_features.py BERT_REPO

BERT_REPO is a checkout of google-research/bert at a commit that computes GELU by the error function, such as c74caa3.
"""

import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = map(str, (ROOT, ROOT / "tools", ROOT / "tests/helpers"))

# isort: split

import google_features  # noqa: E402
import recordings  # noqa: E402


def main():
    (bert_repo,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        output = google_features.google_output(bert_repo, Path(folder))
    commit = subprocess.run(
        ["git", "-C", bert_repo, "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("tensorflow-cpu", "numpy"))
    made_by = [
        "google_features.npz was made by: python tests/recorded/make_google_features.py BERT_REPO",
        f"https://github.com/google-research/bert, commit {commit}",
        f"Python {platform.python_version()}, {versions}",
    ]
    recordings.write("google_features", {"model": {"features.jsonl": output}}, made_by)


if __name__ == "__main__":
    main()
