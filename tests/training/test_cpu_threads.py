"""--cpu_threads: how many threads each rank computes with, and that their number changes nothing but the time."""

import argparse
import json

import pytest

import config
from running import TINY_MODEL, needs_kernels, run
from system.errors import UserError
from training import run_setup

pytestmark = pytest.mark.slow


def threads(cpu_threads, ranks):
    return run_setup.cpu_threads_of_rank(argparse.Namespace(cpu_threads=cpu_threads, gpu_num_per_node=ranks))


def test_division_among_ranks(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run_setup, "usable_processors", lambda: 12)
    assert [threads(None, ranks) for ranks in (1, 2, 5, 12, 24)] == [12, 6, 2, 1, 1]
    assert [threads(7, ranks) for ranks in (1, 2, 7)] == [7, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(None, 1) == 3
    assert threads(7, 1) == 7
    for text in ("many", "\N{SUPERSCRIPT TWO}"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert threads(None, 1) == 12
    monkeypatch.setenv("OMP_NUM_THREADS", "4097")
    with pytest.raises(UserError, match="OMP_NUM_THREADS=4097: too many threads"):
        threads(None, 1)


def test_fewer_than_ranks():
    with pytest.raises(UserError, match="--cpu_threads=1 is too few for --gpu_num_per_node=2"):
        config.parse_pretraining_args(["--data_dir=x", "--cpu_threads=1", "--gpu_num_per_node=2"])
    with pytest.raises(UserError, match="--cpu_threads=4097: too many threads; 4096 are the most"):
        config.parse_pretraining_args(["--data_dir=x", "--cpu_threads=4097"])
    assert config.parse_squad_predict_args(["--data_dir=x", "--model_load_dir=y", "--cpu_threads=2"]).cpu_threads == 2


def pretrained(data, folder, **flags):
    """What five steps of pre-training print, and their losses."""
    result = run(
        "run_pretraining.py", **TINY_MODEL, data_dir=data, data_part_num=1, log_dir=folder, model_save_dir=folder,
        seq_length=32, max_predictions_per_seq=5, batch_size_per_device=12, iter_num=5, device="cpu", **flags,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (log,) = folder.glob("metrics-*.jsonl")
    return result.stdout, [step["total_loss"] for step in map(json.loads, log.read_text().splitlines())]


@needs_kernels
def test_same_results(tiny_data, tmp_path):
    output, alone = pretrained(tiny_data, tmp_path / "1", cpu_threads=1)
    assert ", 1 thread\n" in output
    output, together = pretrained(tiny_data, tmp_path / "3", cpu_threads=3)
    assert ", 3 threads\n" in output
    assert len(alone) == 5
    assert alone == together
