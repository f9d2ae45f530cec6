"""Tests checksums of snapshots: written beside each variable, copied by cp -R, compared on loading."""

import hashlib
import os
import subprocess

import numpy as np
import pytest

import small_models
import verify_snapshot
from in_process import run_in_process
from made_parts import write_squad_parts
from running import TINY_MODEL, assert_fails_with_one_line, run
from snapshots import layout
from system import input_files
from system.errors import UserError
from training import job_state

pytestmark = pytest.mark.slow

STEP = "System-Train-TrainStep-SquadFinetuneJob"


def write_snapshot(folder, **arrays):
    with layout.open_writer(folder) as write:
        for name, array in arrays.items():
            write(name, np.asarray(array))


@pytest.fixture
def some_snapshot(tmp_path):
    """A snapshot with two variables, Adam's moments of one, and the train step."""
    one = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"one": one, "one-m": one + 1, "one-v": one + 2, "two": one * 2, STEP: np.array([7])}
    write_snapshot(tmp_path / "snapshot", **arrays)
    return tmp_path / "snapshot"


def load(folder):
    """Returns all variables of a snapshot, with checksums verified."""
    names = layout.variable_names(folder)
    digests = layout.read_checksums(folder, names)
    return {name: layout.read_variable(folder, name, digests=digests) for name in names}


def merge(source, target):
    """Copies one snapshot over another, like the tutorial."""
    subprocess.run(["cp", "-R", "--remove-destination", *source.iterdir(), target], check=True)


def flip_bit(path, bit=5):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def forget_checksums(folder):
    """Turns a snapshot into one from an earlier version, without checksums."""
    for path in folder.glob("*/sha256"):
        path.unlink()
    (folder / "snapshot_done").write_bytes(b"")


def test_sha256sum_verifies_a_variable_and_the_whole_snapshot(some_snapshot):
    for folder, file in ((some_snapshot / "one", "sha256"), (some_snapshot, "snapshot_done")):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", file], cwd=folder, check=True)
    assert (some_snapshot / "one-m/sha256").read_text().split() == [
        hashlib.sha256((some_snapshot / "one-m/out").read_bytes()).hexdigest(),
        "out",
    ]
    assert len((some_snapshot / "snapshot_done").read_text().splitlines()) == 4
    assert not (some_snapshot / STEP / "sha256").exists(), "the tutorial edits the step by hand"


@pytest.mark.parametrize("name", ["one", "one-v", "two"])
@pytest.mark.parametrize("bit", [0, 100, 383])
def test_a_flipped_bit(some_snapshot, name, bit):
    load(some_snapshot)
    flip_bit(some_snapshot / name / "out", bit)
    with pytest.raises(UserError, match=f"/{name}: the values are not those that were saved.*--skip_checksums"):
        load(some_snapshot)
    names = layout.variable_names(some_snapshot)
    assert len([layout.read_variable(some_snapshot, name) for name in names]) == 5


def test_a_truncated_file(some_snapshot):
    os.truncate(some_snapshot / "two/out", 44)
    with pytest.raises(UserError, match="two/out: has 44 bytes"):
        load(some_snapshot)


def test_swapped_files(some_snapshot):
    one, two = some_snapshot / "one/out", some_snapshot / "two/out"
    one.rename(some_snapshot / "aside")
    two.rename(one)
    (some_snapshot / "aside").rename(two)
    with pytest.raises(UserError, match="/one: the values are not those"):
        load(some_snapshot)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"x" * 64 + b"  out\n", b"0" * 64 + b"  two/out\n", b"0" * 5000])
def test_a_damaged_checksum(some_snapshot, content):
    (some_snapshot / "two/sha256").write_bytes(content)
    with pytest.raises(UserError, match="/two: its checksum, the file sha256, is damaged; --skip_checksums"):
        load(some_snapshot)


@pytest.mark.parametrize(
    "files, advice",
    [
        (
            ["config.json", "model.safetensors"],
            "it is a Hugging Face model; convert it with tools/convert_hf.py import",
        ),
        (["a.ckpt.index", "a.ckpt.meta"], "it is a TensorFlow checkpoint; convert it with convert_tf_ckpt_to_of.py"),
        (
            ["snapshot_20/snapshot_done", "snapshot_100/snapshot_done", "other/file"],
            "give one of the snapshots in it: snapshot_20, snapshot_100",
        ),
        (["file"], "give the folder of a snapshot, which holds a folder for each variable"),
    ],
)
def test_folder_without_a_snapshot(tmp_path, files, advice):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError) as error:
        layout.check_is_snapshot(tmp_path)
    assert str(error.value) == f"{tmp_path}: not a complete snapshot: it has no file snapshot_done; {advice}"


def test_prefix_of_a_checkpoint(tmp_path):
    (tmp_path / "bert_model.ckpt.index").touch()
    with pytest.raises(UserError, match="bert_model.ckpt: it is a TensorFlow checkpoint; convert it with"):
        layout.check_is_snapshot(tmp_path / "bert_model.ckpt")


def test_checksum_that_is_a_folder_or_a_pipe(some_snapshot, monkeypatch):
    monkeypatch.setattr(input_files, "PIPE_SECONDS", 0.01)
    (some_snapshot / "two/sha256").unlink()
    os.mkfifo(some_snapshot / "two/sha256")
    with pytest.raises(UserError, match="two/sha256: cannot be read"):
        load(some_snapshot)
    (some_snapshot / "two/sha256").unlink()
    (some_snapshot / "two/sha256").mkdir()
    with pytest.raises(UserError, match="two/sha256: is a folder; give a file"):
        load(some_snapshot)


@pytest.mark.parametrize("content", [b"\xff", b"garbage"])
def test_a_damaged_list(some_snapshot, content):
    with open(some_snapshot / "snapshot_done", "ab") as file:
        file.write(content)
    with pytest.raises(UserError, match="snapshot_done: .*damaged"):
        load(some_snapshot)


def test_flipped_bit_in_an_owner_file(some_snapshot):
    """A damaged OWNER_FILE would make a moment look stale."""
    flip_bit(some_snapshot / "one-m/of")
    with pytest.raises(UserError, match="/one-v: its file of is not that of one-m, so one of them is damaged"):
        layout.check_owners(some_snapshot, layout.variable_names(some_snapshot))
    result = run_in_process(verify_snapshot.main, "verify_snapshot.py", some_snapshot)
    assert_fails_with_one_line(result, "one-v: its file of")
    with pytest.raises(UserError, match="/one-v: its file of"):
        job_state._read_checksums(some_snapshot, layout.variable_names(some_snapshot), skip_checksums=False)
    assert job_state._read_checksums(some_snapshot, ["one"], skip_checksums=True) == {}


def test_the_train_step_may_be_edited(some_snapshot):
    (some_snapshot / STEP / "out").write_bytes(bytes(8))
    assert load(some_snapshot)[STEP] == 0


@pytest.mark.parametrize("source", ["of this version", "without sha256", "without checksums"])
def test_a_merge(some_snapshot, tmp_path, source):
    """A variable without a checksum, copied over `one`, leaves the old checksum there."""
    other = tmp_path / "other"
    write_snapshot(other, one=np.full((3, 4), 9, np.float32))
    if source == "without sha256":
        (other / "one/sha256").unlink()
    if source == "without checksums":
        forget_checksums(other)
    merge(other, some_snapshot)
    assert (load(some_snapshot)["one"] == 9).all()
    names = layout.variable_names(some_snapshot)
    digests = layout.read_checksums(some_snapshot, names)
    assert layout.stale_moments(some_snapshot, names, digests) == ["one-m", "one-v"]
    layout.check_owners(some_snapshot, names)

    flip_bit(some_snapshot / "one/out")
    flip_bit(some_snapshot / "two/out")
    if source == "without checksums":
        load(some_snapshot)
        return
    assert digests.keys() == {"one", "one-m", "one-v", "two"}
    for name in ("one", "two"):
        with pytest.raises(UserError, match=f"/{name}: the values"):
            layout.read_variable(some_snapshot, name, digests=digests)


def test_a_merge_into_a_snapshot_without_checksums(some_snapshot, tmp_path):
    forget_checksums(some_snapshot)
    write_snapshot(tmp_path / "other", one=np.full((3, 4), 9, np.float32))
    merge(tmp_path / "other", some_snapshot)
    load(some_snapshot)
    flip_bit(some_snapshot / "two/out")
    load(some_snapshot)
    flip_bit(some_snapshot / "one/out")
    with pytest.raises(UserError, match="/one: the values"):
        load(some_snapshot)


def test_verify_snapshot(some_snapshot):
    result = run_in_process(verify_snapshot.main, "verify_snapshot.py", some_snapshot)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{some_snapshot}: 5 variables, of which 4 have a checksum: no damage found\n"
    flip_bit(some_snapshot / "one/out")
    os.truncate(some_snapshot / "two/out", 1)
    (some_snapshot / "one-m/meta").unlink()
    flip_bit(some_snapshot / "one-m/out")
    result = run_in_process(verify_snapshot.main, "verify_snapshot.py", some_snapshot)
    assert_fails_with_one_line(result, f"{some_snapshot}: damaged: 3 of 5 variables: one, one-m, two")
    assert [line.split(":")[0].removeprefix(f"{some_snapshot}/") for line in result.stdout.splitlines()] == [
        "one",
        "one-m",
        "two/out",
    ]


def test_verify_snapshot_escapes_control_characters(some_snapshot):
    (some_snapshot / "a\n\x1b[2Jb").mkdir()
    (some_snapshot / "a\n\x1b[2Jb" / "meta").write_text("?")
    result = run_in_process(verify_snapshot.main, "verify_snapshot.py", some_snapshot)
    assert result.returncode == 2
    assert result.stdout.count("\n") == 1 and "\x1b" not in result.stdout


def test_verify_snapshot_without_a_snapshot(tmp_path):
    assert_fails_with_one_line(run("tools/verify_snapshot.py", tmp_path), tmp_path, "snapshot_done")


def squad(script, folder, **flags):
    tiny = {**TINY_MODEL, "seq_length": 32, "data_dir": folder, "data_part_num": 1, "log_dir": folder, "iter_num": 2}
    return run(script, **tiny, batch_size_per_device=2, **flags)


def test_runs_find_a_flipped_bit(tmp_path):
    write_squad_parts(tmp_path, 4)
    model = small_models.write_tiny_squad_snapshot(tmp_path / "model")
    name = "bert-encoder-layer_1-intermediate-dense-weight"
    flip_bit(model / name / "out", 77)
    flags = {"model_load_dir": model, "model_save_dir": tmp_path / "tuned", "save_last_snapshot": True}
    result = squad("run_squad.py", tmp_path, **flags)
    assert_fails_with_one_line(result, f"{model}/{name}: the values are not those that were saved")
    assert not (tmp_path / "tuned/last_snapshot").exists()
    assert squad("run_squad.py", tmp_path, **flags, skip_checksums=True).returncode == 0

    write_squad_parts(tmp_path, 4, is_training=False)
    flags = {"model_load_dir": model, "all_results_file": tmp_path / "all_results.npy"}
    assert_fails_with_one_line(squad("run_squad_predict.py", tmp_path, **flags), f"{model}/{name}: the values")
    assert not (tmp_path / "all_results.npy").exists()
    assert squad("run_squad_predict.py", tmp_path, **flags, skip_checksums=True).returncode == 0
