"""Tests invalid records found during a run: before it, only the first record of each part is checked."""

import numpy as np
import pytest

from batches_read import Read
from engine import native, oneflow_loader
from launched import PRETRAINING, Launched
from made_parts import random_pretraining_features
from records import checks, ofrecord
from running import WITHOUT_FSYNC
from snapshots import layout
from system.errors import UserError

oneflow_loader.load()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.random_state() is None, reason="OneFlow's own reader aborts the process"),
]

FIELDS = {"id": checks.Field(2, 2000), "weight": checks.Field(3, dtype=np.dtype(np.float32))}


def good():
    return {"id": np.array([1, 1999], dtype=np.int32), "weight": np.ones(3, dtype=np.float32)}


def serialized_bytes_feature():
    record = ofrecord.OFRecord.FromString(ofrecord.serialize(good()))
    record.feature[0].value.bytes_list.value.append(b"12")
    return record.SerializeToString()


BAD = {
    ": has no field weight; it has id": ofrecord.serialize({"id": good()["id"]}),
    ": has no field id; it has no field at all": b"\x12\x00",
    "field id holds 3 numbers, but 2 expected": ofrecord.serialize({**good(), "id": np.ones(3, dtype=np.int32)}),
    "field weight holds 0 numbers": ofrecord.serialize({**good(), "weight": np.ones(0, dtype=np.float32)}),
    "field id holds 2000, which": ofrecord.serialize({**good(), "id": np.array([2, 2000], dtype=np.int32)}),
    "field id holds -1, which": ofrecord.serialize({**good(), "id": np.array([2, -1], dtype=np.int32)}),
    "field id holds 4294967297": ofrecord.serialize({**good(), "id": np.array([2, 2**32 + 1], dtype=np.int64)}),
    "field id holds float32 numbers": ofrecord.serialize({**good(), "id": np.ones(2, dtype=np.float32)}),
    "field id holds bytes": serialized_bytes_feature(),
    "is not an OFRecord": b"\xff" * 20,
    "is empty": b"",
}


def write_part(path, bad, index=20, count=40):
    """Writes a part whose record number `index` is bad. Returns the byte offset of that record."""
    contents = [ofrecord.serialize(good())] * count
    contents[index] = bad
    with ofrecord.open_writer(path) as write:
        for serialized in contents:
            write(serialized)
    return index * (8 + len(contents[0]))


def check_batch(job):
    job.loader.to(oneflow_loader.load().nn.Module).check_batch()


@pytest.mark.parametrize("text", BAD)
def test_batch_with_a_bad_record_is_rejected(tmp_path, text):
    offset = write_part(tmp_path / "part-0", BAD[text])
    job = Read(checks.DataSet([tmp_path / "part-0"], FIELDS, None), shuffle=False)
    # 8 records per batch. Later batches are all zeros.
    assert job.take(4) == [[1, 1999] * 8] * 2 + [[0] * 16] * 2
    check_batch(job)
    check_batch(job)
    for _ in range(2):
        with pytest.raises(UserError) as error:
            check_batch(job)
        assert str(error.value).startswith(f"{tmp_path}/part-0: the record at byte {offset}")
        assert text in str(error.value) and "--check_data" in str(error.value)


def test_removed_part(tmp_path):
    for part in range(2):
        write_part(tmp_path / f"part-{part}", ofrecord.serialize(good()), count=400)
    job = Read(checks.DataSet([tmp_path / "part-0", tmp_path / "part-1"], FIELDS, None), shuffle=False)
    job.take(1)
    (tmp_path / "part-1").unlink()
    job.take(51)
    for _ in range(50):
        check_batch(job)
    with pytest.raises(UserError, match="^[^:]*/part-1: cannot be read any more: No such file or directory$"):
        check_batch(job)


def write_pretraining_parts(folder, parts):
    """Writes parts of 40 records; record 30 of the last part has an invalid word id."""
    folder.mkdir()
    for part in range(parts):
        generator = np.random.default_rng(part)
        with ofrecord.open_writer(folder / f"part-{part}") as write:
            for index in range(40):
                features = random_pretraining_features(generator, 32, 5, 200)
                if index == 30 and part == parts - 1:
                    features["input_ids"][3] = 777
                write(ofrecord.serialize(features))


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_run_ends(tmp_path, ranks):
    """All ranks end with one line; the saved snapshot predates the bad batch. With two ranks, rank 1 reads it."""
    write_pretraining_parts(tmp_path / "data", ranks)
    flags = {**PRETRAINING, "data_dir": tmp_path / "data", "data_part_num": ranks, "gpu_num_per_node": ranks}
    flags |= {"iter_num": 100, "batch_size_per_device": 4, "model_save_every_n_iter": 1}
    with Launched("run_pretraining.py", tmp_path / "output", environment=WITHOUT_FSYNC, **flags) as training:
        place = f"part-{ranks - 1}: the record at byte "
        training.assert_failed(place, "input_ids holds 777", "--vocab_size=200", status=2, within=60)
        saved = sorted(training.output.glob("snapshot_*"))
        assert 1 <= len(saved) < 10
        for folder in saved:
            assert (folder / layout.DONE_FILE).is_file()
