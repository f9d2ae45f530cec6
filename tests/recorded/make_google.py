"""Makes google.npz anew: what google-research/bert makes of the cases of tests/text/test_against_google.py.

    python tests/recorded/make_google.py BERT_REPO

BERT_REPO is a checkout of google-research/bert; its scripts run on the TensorFlow that is installed. It takes minutes.
"""

import json
import platform
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = map(str, (ROOT, ROOT / "tools", ROOT / "tests/helpers"))

# isort: split

import google_cases  # noqa: E402
import hard_text  # noqa: E402
import recordings  # noqa: E402

DATASET = ROOT / "dataset"


def main():
    (bert_repo,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(2) as threads:
        made = {}
        for name, case in cases().items():
            folder = Path(top, name)
            folder.mkdir()
            google_cases.write_case(case, folder)
            made[name] = case, threads.submit(google_cases.google_output, bert_repo, case, folder)
        outputs = {
            name: {"case": json.dumps(case._asdict()).encode(), **future.result()}
            for name, (case, future) in made.items()
        }
    commit = subprocess.run(
        ["git", "-C", bert_repo, "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("tensorflow-cpu", "numpy"))
    made_by = [
        "google.npz was made by: python tests/recorded/make_google.py BERT_REPO",
        f"https://github.com/google-research/bert, commit {commit}",
        f"Python {platform.python_version()}, {versions}",
    ]
    recordings.write("google", outputs, made_by)


def cases():
    """name -> Case."""
    generator = random.Random(0)
    texts = hard_text.EXAMPLES + [google_cases.hard_string(generator, 60) for _ in range(200)]
    found = {}
    for do_lower_case, case, training in (
        (True, "uncased", ["train", "train version 2"]),
        (False, "cased", ["train shuffled"]),
    ):
        found[f"pieces, {case}"] = google_cases.Case(
            "tokenize", texts, list(hard_text.VOCAB), {"do_lower_case": do_lower_case}
        )
        for task in ("eval", *training):
            found[f"features, {task}, {case}"] = google_cases.feature_case(task, do_lower_case, 12)
    for seed, ties, version_2 in ((0, False, False), (1, True, False), (0, True, True), (1, False, True)):
        name = f"answers, version {2 if version_2 else 1}, {'ties' if ties else 'no ties'}"
        found[name] = google_cases.answer_case(seed, ties, version_2, 6)
    return found | cases_of_the_dataset()


def cases_of_the_dataset():
    """dev-v1.1.json, and the same with every third question unanswerable, as SQuAD v2.0 has them."""
    vocab = (DATASET / "vocab.txt").read_text(encoding="utf-8").splitlines()
    squad = json.loads((DATASET / "squad/dev-v1.1.json").read_text(encoding="utf-8"))
    squad_2 = json.loads(json.dumps(squad)) | {"version": "v2.0"}
    for entry in squad_2["data"]:
        for paragraph in entry["paragraphs"]:
            for number, question in enumerate(paragraph["qas"]):
                question["is_impossible"] = number % 3 == 0
                question["answers"] = [] if question["is_impossible"] else question["answers"][:1]
    flags = {
        "max_seq_length": 64,
        "doc_stride": 16,
        "max_query_length": 16,
        "do_lower_case": True,
        "version_2_with_negative": False,
    }
    training = flags | {"version_2_with_negative": True, "shuffle": False}
    answering = flags | {"n_best_size": 10, "max_answer_length": 30}
    with_null = answering | {"version_2_with_negative": True, "null_score_diff_threshold": 0.0}
    logits = {"seed": 0, "ties": False}
    return {
        "features, eval, dataset": google_cases.Case("eval", squad, vocab, flags),
        "features, train version 2, dataset": google_cases.Case("train", squad_2, vocab, training),
        "answers, version 1, dataset": google_cases.Case("answer", squad, vocab, answering, logits),
        "answers, version 2, dataset": google_cases.Case("answer", squad_2, vocab, with_null, logits),
    }


if __name__ == "__main__":
    main()
