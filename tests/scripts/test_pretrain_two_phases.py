"""scripts/pretrain_two_phases.sh: a tiny corpus and a tiny model, interrupted once; the commands of its dry run."""

import os
import re
import signal
import subprocess
import time

import pytest

from running import ROOT, WITHOUT_FSYNC, assert_fails_with_one_line

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts/pretrain_two_phases.sh"
TINY = (
    f"--vocab_file={ROOT}/dataset/vocab.txt",
    "--num_hidden_layers=1",
    "--num_attention_heads=2",
    "--hidden_size_per_head=8",
    "--max_seq_length=32",
    "--max_predictions_per_seq=5",
    "--max_seq_length_phase2=64",
    "--max_predictions_per_seq_phase2=10",
    "--iter_num=60",
    "--train_batch_size=4",
    "--batch_size_per_device=2",
    "--learning_rate=1e-3",
    "--part_num=2",
    "--dupe_factor=1",
    "--model_save_every_n_iter=5",
    "--model_save_keep=1",
    "--seed_phase2=5",
)
STEPS = ["records-1", "records-2", "phase-1", "phase-2"]


def start(folder, *arguments, environment=None):
    return subprocess.Popen(
        [SCRIPT, "my text/*.txt", "out folder", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )


def run(folder, *arguments):
    process = start(folder, *arguments, environment=WITHOUT_FSYNC)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def commands_in(output):
    """Step -> its command, of the steps that ran."""
    return dict(re.findall(r"^pretrain_two_phases\.sh: ([a-z]+(?:-\d)?): (\S*python.*)$", output, re.MULTILINE))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my text").mkdir()
    text = (ROOT / "dataset/corpus.txt").read_text()
    (tmp_path / "my text/a.txt").write_text(text)
    return tmp_path


def test_interrupted_and_resumed(folder):
    dry = run(folder, *TINY, "--dry_run", "--seconds_per_update=0.5,9")
    assert dry.returncode == 0, dry.stderr
    assert not (folder / "out folder").exists()
    told = commands_in(dry.stdout)
    assert list(told) == STEPS
    sizes = re.findall(r"phase (\d): about (\d+) records, (\d+) bytes .*, ([\d.]+) hours", dry.stdout)
    assert [hours for *_, hours in sizes] == [f"{54 * 0.5 / 3600:g}", f"{6 * 9 / 3600:g}"]

    process = start(folder, *TINY)
    while not list(folder.glob("out folder/phase1/snapshot_*/snapshot_done")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and list(commands_in(output)) == STEPS[:3]

    result = run(folder, *TINY)
    assert result.returncode == 0, result.stderr
    assert re.findall(r": (\S+): up to date", result.stdout) == STEPS[:2]
    assert commands_in(output) | commands_in(result.stdout) == told
    assert (folder / "out folder/phase2/last_snapshot/snapshot_done").is_file()
    for number, _, size, _ in sizes:
        parts = list(folder.glob(f"out folder/records{number}/part-*"))
        # The text is smaller than the sample; how it is dealt to the parts makes a difference of some records.
        assert sum(part.stat().st_size for part in parts) == pytest.approx(int(size), rel=0.1)

    again = run(folder, *TINY)
    assert (again.returncode, commands_in(again.stdout)) == (0, {})
    assert re.findall(r": (\S+): up to date", again.stdout) == STEPS
    other = run(folder, *TINY, "--learning_rate=1e-4")
    assert_fails_with_one_line(other, "holds a model that was begun with other flags")


def flags_of(command):
    return dict(re.findall(r"--(\w+)=(\S+)", command))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            (),
            [
                ("900000", "1e-4", "9000", "32", "8", "128", "20", "1e-05"),
                ("100000", "1e-05", "0", "8", "32", "512", "80", None),
            ],
        ),
        (
            ("--optimizer_type=lamb",),
            [
                ("7038", "6e-3", "2000", "32", "2048", "128", "20", None),
                ("1563", "4e-3", "200", "8", "4096", "512", "80", None),
            ],
        ),
    ],
)
def test_defaults(folder, arguments, expected):
    # Ends after the commands: the tools refuse the sample.
    (folder / "my text/a.txt").write_text("one document\n")
    result = run(folder, f"--vocab_file={ROOT}/dataset/vocab.txt", "--dry_run", "--seconds_per_update=1,1", *arguments)
    assert result.returncode == 2
    told = commands_in(result.stdout)
    names = "iter_num learning_rate warmup_batches batch_size_per_device num_accumulation_steps seq_length".split()
    names += ["max_predictions_per_seq", "end_learning_rate"]
    for number, values in enumerate(expected, start=1):
        flags = flags_of(told[f"phase-{number}"])
        assert tuple(flags.get(name) for name in names) == values
        assert flags.get("lr_power") == ("0.5" if arguments else None)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--iter_num=x",), "x is not a whole number above 0"),
        (("--iter_num=1",), "leaves no update for phase 1"),
        (("--train_batch_size=10",), "is not a multiple of 1 devices x --batch_size_per_device=32"),
        (("--vocab_file=none",), "none: there is no such file"),
        (("--learning_rate", "1"), "1 is no flag"),
        (("--resume",), "this script gives it to run_pretraining.py itself"),
        (("--seconds_per_update=3", "--dry_run"), "give two numbers"),
        (("--seconds_per_update=3,4",), "is for --dry_run"),
    ],
)
def test_wrong_usage_is_one_line(folder, arguments, fragment):
    assert_fails_with_one_line(run(folder, *arguments), "pretrain_two_phases.sh: error: ", fragment)
    assert not (folder / "out folder").exists()


def test_text_that_is_missing_is_one_line(tmp_path):
    assert_fails_with_one_line(run(tmp_path), "there is no such file")
