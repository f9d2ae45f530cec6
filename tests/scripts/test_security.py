"""What the suite must never do with what users give it, whoever changes it next."""

import ast
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from made_parts import write_pretraining_part
from records import ofrecord
from running import ROOT, TINY_MODEL, WITHOUT_FSYNC, assert_fails_with_one_line, run

pytestmark = pytest.mark.slow

PRODUCT = sorted([*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")])
# Ways for data to become code, or a command line.
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "torch"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen"}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: path.name)
def test_data_never_become_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert FORBIDDEN_MODULES.isdisjoint(name.split(".")[0] for name in names), ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        assert ast.unparse(node.func) not in FORBIDDEN_CALLS, ast.unparse(node)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        for name in ("allow_pickle", "shell"):
            value = keywords.get(name)
            assert value is None or (isinstance(value, ast.Constant) and value.value is False), ast.unparse(node)
        if ast.unparse(node.func) in ("np.load", "numpy.load"):
            assert "allow_pickle" in keywords, ast.unparse(node)


def test_what_a_run_writes_has_the_permissions_of_the_umask(tmp_path):
    """Snapshots, logs, measurements: all are the user's own here, and nothing is executable."""
    (tmp_path / "data").mkdir()
    write_pretraining_part(tmp_path / "data/part-0", 4)
    flags = {
        **TINY_MODEL,
        **{"seq_length": 32, "max_predictions_per_seq": 5, "batch_size_per_device": 2, "iter_num": 2},
        **{"data_dir": tmp_path / "data", "data_part_num": 1, "save_last_snapshot": True},
        **{"model_save_dir": tmp_path / "out/model", "log_dir": tmp_path / "out/log"},
    }
    command = [sys.executable, ROOT / "run_pretraining.py", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {**os.environ, **WITHOUT_FSYNC}
    subprocess.run(command, cwd=tmp_path, env=environment, umask=0o027, check=True, capture_output=True, timeout=300)
    modes = {path: stat.S_IMODE(os.lstat(path).st_mode) for path in (tmp_path / "out").rglob("*")}
    assert len(modes) > 100
    wrong = {path: oct(mode) for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)}
    assert wrong == {}


def test_numbers_that_are_none_are_found_before_the_run(tmp_path):
    record = write_pretraining_part(tmp_path / "part-0", 1)[0]
    record["masked_lm_weights"][2] = np.nan
    with ofrecord.open_writer(tmp_path / "part-0") as write:
        write(ofrecord.serialize(record))
    flags = {**TINY_MODEL, "seq_length": 32, "max_predictions_per_seq": 5, "data_dir": tmp_path, "data_part_num": 1}
    result = run("run_pretraining.py", **flags, model_save_dir=tmp_path / "out", log_dir=tmp_path / "out")
    assert_fails_with_one_line(result, tmp_path / "part-0", "masked_lm_weights holds NaN or infinity")
    assert not (tmp_path / "out").exists()
