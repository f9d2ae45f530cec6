"""Tests tools/tfrecord_to_ofrecord.py on files written by TensorFlow."""

import gzip
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfrecord_to_ofrecord
from in_process import full_disk, run_in_process
from launched import children_of
from made_parts import random_pretraining_features
from records import ofrecord, tfrecord
from running import ROOT, assert_fails_with_one_line, run
from system.errors import UserError
from tfrecord_files import serialize_example, write_tfrecord, write_tfrecord_of_part

pytestmark = pytest.mark.slow

SCRIPT = "tools/tfrecord_to_ofrecord.py"
HEAD_BYTES, TAIL_BYTES = 12, 4


def convert(patterns, output_dir, *arguments, part_num=1):
    """Runs the script within this process, without workers."""
    patterns = patterns if isinstance(patterns, list) else [patterns]
    flags = ["--output_dir", output_dir, "--part_num", part_num, "--workers", 1]
    return run_in_process(tfrecord_to_ofrecord.main, SCRIPT, "--input_file", *patterns, *flags, *arguments)


def random_records(count, seed=0):
    generator = np.random.default_rng(seed)
    return [random_pretraining_features(generator, 32, 5, 30522) for _ in range(count)]


def read_parts(folder, part_num):
    return [[features for _, features in ofrecord.read(folder / f"part-{part}")] for part in range(part_num)]


def assert_equal_records(found, expected):
    for record, wanted in zip(found, expected, strict=True):
        assert record.keys() == wanted.keys()
        for name, values in wanted.items():
            assert record[name].dtype == values.dtype
            np.testing.assert_array_equal(record[name], values)


def test_samples_survive_a_round_trip_byte_for_byte(tmp_path):
    part = ROOT / "dataset" / "part-0"
    write_tfrecord_of_part(part, tmp_path / "samples.tfrecord")
    result = run(SCRIPT, input_file=tmp_path / "samples.tfrecord", output_dir=tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "input: 1 files, 40 records",
        "fields: input_ids int32 [128], input_mask int32 [128], masked_lm_ids int32 [20],",
        "  masked_lm_positions int32 [20], masked_lm_weights float32 [20],",
        "  next_sentence_labels int32 [1], segment_ids int32 [128]",
        f"output: 1 parts of 40 records in {tmp_path / 'out'}",
    ]
    assert (tmp_path / "out" / "part-0").read_bytes() == part.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-0"]


@pytest.fixture(scope="module")
def three_files(tmp_path_factory):
    """2500 records in three files, one of them empty and one compressed."""
    folder = tmp_path_factory.mktemp("tfrecord")
    records = random_records(2500)
    serialized = [serialize_example(record) for record in records]
    write_tfrecord(folder / "x.tfrecord-0", serialized[:1300])
    write_tfrecord(folder / "x.tfrecord-1", [])
    write_tfrecord(folder / "x.tfrecord-2", serialized[1300:], "GZIP")
    return folder, records


@pytest.mark.parametrize("workers", [1, 3])
def test_order_is_kept_through_files_parts_and_workers(three_files, tmp_path, workers):
    folder, records = three_files
    result = run(SCRIPT, input_file=folder / "x.tfrecord-*", output_dir=tmp_path / "out", part_num=7, workers=workers)
    assert (result.returncode, result.stderr) == (0, "")
    parts = read_parts(tmp_path / "out", 7)
    assert sorted(map(len, parts)) == [357] * 6 + [358]
    assert_equal_records([record for part in parts for record in part], records)


@pytest.mark.parametrize(("piece_records", "part_num"), [(1, 3), (7, 1), (100, 26), (1300, 2)])
def test_order_is_kept_through_pieces(three_files, tmp_path, monkeypatch, piece_records, part_num):
    folder, records = three_files
    monkeypatch.setattr(tfrecord_to_ofrecord, "PIECE_RECORDS", piece_records)
    assert convert(folder / "x.tfrecord-*", tmp_path / "out", part_num=part_num).returncode == 0
    assert_equal_records(sum(read_parts(tmp_path / "out", part_num), []), records)


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    compressed=st.sets(st.integers(0, 4)),
)
def test_pieces_hold_every_record_once_and_in_order(counts, sizes, compressed):
    counts.append(max(0, sum(sizes) - sum(counts)))
    sizes.append(sum(counts) - sum(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord_to_ofrecord, "PIECE_RECORDS", 8)
        # Each offset is the record's number, so that a piece shows which record it begins with.
        marks = [[0] if file in compressed else [*range(0, max(count, 1), 8)] for file, count in enumerate(counts)]
        scans = list(map(tfrecord_to_ofrecord.FileScan, counts, marks))
        pieces = tfrecord_to_ofrecord.plan_pieces(range(len(counts)), scans, sizes)
    found = [(p.part, p.path, p.offset + p.skip + i) for p in pieces for i in range(p.records)]
    parts = [part for part, size in enumerate(sizes) for _ in range(size)]
    records = [(file, record) for file, count in enumerate(counts) for record in range(count)]
    assert found == [(part, *record) for part, record in zip(parts, records, strict=True)]
    assert all(piece.skip < 8 and piece.records <= 8 for piece in pieces if piece.path not in compressed)


def test_runs_without_tensorflow(three_files, tmp_path):
    program = (
        "import sys; sys.modules['tensorflow'] = None; import runpy; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [SCRIPT, "--input_file", str(three_files[0] / "x.tfrecord-0"), "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--workers", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
    )
    assert result.returncode == 0, result.stderr


def test_input_files_keep_their_order_and_count_once(tmp_path):
    records = random_records(6)
    for index in range(3):
        serialized = [serialize_example(record) for record in records[2 * index : 2 * index + 2]]
        write_tfrecord(tmp_path / f"{index}.tfrecord", serialized)
    first, every = tmp_path / "2.tfrecord", tmp_path / "*.tfrecord"
    for number, patterns in enumerate(([first, every], f"{first},{every}")):
        assert convert(patterns, tmp_path / str(number)).returncode == 0
        assert_equal_records(read_parts(tmp_path / str(number), 1)[0], records[4:] + records[:4])


@pytest.mark.parametrize("is_training", [True, False])
def test_features_of_google_squad(tmp_path, is_training):
    """The fields of FeatureWriter in google-research/bert's run_squad.py."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(20):
        record = {
            "unique_ids": np.int32([1000000000 + index]),
            "input_ids": generator.integers(0, 30522, 384).astype(np.int32),
            "input_mask": np.ones(384, np.int32),
            "segment_ids": np.zeros(384, np.int32),
        }
        if is_training:
            record |= {"start_positions": np.int32([index]), "end_positions": np.int32([383])}
            record |= {"is_impossible": np.int32([-1])}  # not a value that Google writes, but a valid int64
        records.append(record)
    write_tfrecord(tmp_path / "squad.tf_record", map(serialize_example, records))
    assert convert(tmp_path / "squad.tf_record", tmp_path / "out", part_num=2).returncode == 0
    assert_equal_records(sum(read_parts(tmp_path / "out", 2), []), records)


def test_lists_that_are_not_packed(tmp_path):
    """Google's writers pack the numbers of a list, but one tag per number is valid, too."""
    values = b"".join(bytes([0x08, value]) for value in (3, 1, 4))
    feature = b"\x1a" + bytes([len(values)]) + values
    entry = b"\x0a\x01x" + b"\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    write_tfrecord(tmp_path / "in", [b"\x0a" + bytes([len(features)]) + features])
    assert convert(tmp_path / "in", tmp_path / "out").returncode == 0
    assert_equal_records(read_parts(tmp_path / "out", 1)[0], [{"x": np.int32([3, 1, 4])}])


def test_record_that_looks_like_the_start_of_a_gzip_file(tmp_path):
    data = bytes(int.from_bytes(b"\x1f\x8b\x08", "little"))
    write_tfrecord(tmp_path / "in", [data, b"second"])
    assert (tmp_path / "in").read_bytes().startswith(b"\x1f\x8b\x08")
    assert [found for _, found in tfrecord.read(tmp_path / "in")] == [data, b"second"]


@pytest.fixture
def small_file(tmp_path):
    """A file of three records and their offsets."""
    serialized = [serialize_example(record) for record in random_records(3)]
    write_tfrecord(tmp_path / "in.tfrecord", serialized)
    sizes = [HEAD_BYTES + len(record) + TAIL_BYTES for record in serialized]
    return tmp_path / "in.tfrecord", [0, sizes[0], sizes[0] + sizes[1]]


def flip_bit(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_damage_is_found_before_writing(small_file, tmp_path):
    path, offsets = small_file
    original = path.read_bytes()
    end = len(original)
    for position, message in [
        (offsets[1], f"length of the record at byte {offsets[1]} has a wrong checksum"),
        (offsets[1] + 8, f"length of the record at byte {offsets[1]} has a wrong checksum"),
        (offsets[2] + HEAD_BYTES + 5, f"data of the record at byte {offsets[2]} have a wrong checksum"),
        (end - 1, f"data of the record at byte {offsets[2]} have a wrong checksum"),
    ]:
        path.write_bytes(original)
        flip_bit(path, position)
        assert_fails_with_one_line(convert(path, tmp_path / "out"), path, message)
    for length in (offsets[2] + 1, offsets[2] + HEAD_BYTES, offsets[2] + HEAD_BYTES + 10, end - 1):
        path.write_bytes(original[:length])
        assert_fails_with_one_line(convert(path, tmp_path / "out"), path, f"record at byte {offsets[2]}", "truncated")
    path.write_bytes(b"this is some text, not records")
    assert_fails_with_one_line(convert(path, tmp_path / "out"), path, "not a TFRecord file")
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_gzip(small_file, tmp_path):
    path, _ = small_file
    compressed = gzip.compress(path.read_bytes())
    for damaged in (compressed[:-20], compressed[:-1]):
        path.write_bytes(damaged)
        assert_fails_with_one_line(convert(path, tmp_path / "out"), path, "truncated: its gzip data")
    for damaged in (compressed[:40] + b"\xff\xff" + compressed[42:], compressed[:-5] + b"xxxxx"):
        path.write_bytes(damaged)
        assert_fails_with_one_line(convert(path, tmp_path / "out"), path, "damaged")


def test_absurd_length_with_a_correct_checksum(small_file, tmp_path):
    path, _ = small_file
    length = (2**40).to_bytes(8, "little")
    path.write_bytes(length + tfrecord.masked_crc(length).to_bytes(4, "little") + b"data")
    assert_fails_with_one_line(convert(path, tmp_path / "out"), path, "1099511627776 bytes long")


def with_change(**changes):
    """Returns two records; the second one has changed fields (None: removed)."""
    first, second = random_records(2)
    second |= changes
    return [serialize_example(first)], [
        serialize_example({name: values for name, values in second.items() if values is not None})
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_mask": None}, "has the fields input_ids, masked_lm_ids"),
        ({"extra": np.array([1])}, "has the fields extra, input_ids"),
        ({"input_ids": np.zeros(31, np.int32)}, "field input_ids of the record at byte 0 is int64_list [31]"),
        ({"input_ids": np.zeros(32, np.float32)}, "field input_ids of the record at byte 0 is float_list [32]"),
        ({"next_sentence_labels": np.array([2**31])}, "holds 2147483648, which is not an int32"),
        ({"next_sentence_labels": np.array([-(2**63)])}, "holds -9223372036854775808, which is not an int32"),
    ],
)
def test_record_unlike_the_first(tmp_path, changes, message):
    first, second = with_change(**changes)
    write_tfrecord(tmp_path / "a", first)
    write_tfrecord(tmp_path / "b", second)
    result = convert([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert_fails_with_one_line(result, tmp_path / "b", message)
    assert list((tmp_path / "out").iterdir()) == []


def test_error_in_a_worker_is_one_line(tmp_path):
    first, second = with_change(input_ids=np.zeros(31, np.int32))
    write_tfrecord(tmp_path / "in", first * 2000 + second)
    result = run(SCRIPT, input_file=tmp_path / "in", output_dir=tmp_path / "out", workers=2)
    assert_fails_with_one_line(result, "int64_list [31]", "the first record has int64_list [32]")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (tf.train.Example().SerializeToString(), "has no fields"),
        (b"\xff\xff\xff", "not a tf.train.Example"),
        (b"\x0c", "not a tf.train.Example"),
        (
            tf.train.Example(
                features=tf.train.Features(
                    feature={"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"]))}
                )
            ).SerializeToString(),
            "field image of the record at byte 0 holds bytes",
        ),
        (
            tf.train.Example(features=tf.train.Features(feature={"x": tf.train.Feature()})).SerializeToString(),
            "field x of the record at byte 0 holds nothing",
        ),
    ],
)
def test_first_record_without_numbers(tmp_path, record, message):
    write_tfrecord(tmp_path / "in", [record])
    assert_fails_with_one_line(convert(tmp_path / "in", tmp_path / "out"), tmp_path / "in", message)


def test_missing_input(small_file, tmp_path):
    result = convert(tmp_path / "no*.tfrecord", tmp_path / "out")
    assert_fails_with_one_line(result, "there is no such file", "no*.tfrecord")
    assert_fails_with_one_line(convert(small_file[0], tmp_path / "out", part_num=4), "--part_num=4", "only 3 records")
    (tmp_path / "empty").touch()
    assert_fails_with_one_line(convert(tmp_path / "empty", tmp_path / "out"), "only 0 records")


def test_existing_parts_need_overwrite(small_file, tmp_path):
    path, _ = small_file
    out = tmp_path / "out"
    assert convert(path, out, part_num=3).returncode == 0
    (out / "vocab.txt").touch()
    assert_fails_with_one_line(convert(path, out, part_num=2), out, "already has parts", "--overwrite")
    flip_bit(path, 20)
    assert convert(path, out, "--overwrite", part_num=2).returncode == 2
    assert sorted(file.name for file in out.iterdir()) == ["part-0", "part-1", "part-2", "vocab.txt"]
    flip_bit(path, 20)
    assert convert(path, out, "--overwrite", part_num=2).returncode == 0
    assert sorted(file.name for file in out.iterdir()) == ["part-0", "part-1", "vocab.txt"]


def test_full_disk(small_file, tmp_path):
    with full_disk(100):
        result = convert(small_file[0], tmp_path / "out")
    assert_fails_with_one_line(result, "File too large", tmp_path / "out", status=1)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_leaves_no_part(tmp_path, signal_):
    record = serialize_example(random_records(1)[0])
    write_tfrecord(tmp_path / "in", (record for _ in range(100_000)))
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, "--input_file", tmp_path / "in", "--output_dir", out]
    process = subprocess.Popen(
        [*command, "--part_num=4", "--workers=2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # The second part has begun, so the first one is done.
    deadline = time.monotonic() + 60
    while not list(out.glob(".*/part-1")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    if signal_ == signal.SIGINT:
        os.killpg(process.pid, signal_)  # to all processes, like a terminal
    else:
        process.send_signal(signal_)
    _, stderr = process.communicate(timeout=60)
    assert list(out.glob("part-*")) == []
    if signal_ == signal.SIGINT:
        assert process.returncode == 130
        assert stderr.splitlines() == ["tfrecord_to_ofrecord.py: error: ended by SIGINT"]
        assert list(out.iterdir()) == []
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, "a worker process outlived the run"
        time.sleep(0.05)

    # The next run removes what the killed one left.
    write_tfrecord(tmp_path / "in", [record])
    assert convert(tmp_path / "in", out).returncode == 0
    assert [path.name for path in out.iterdir()] == ["part-0"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_succeed_or_fail_with_one_line(small_file, tmp_path, data):
    path, _ = small_file
    content = data.draw(st.sampled_from(["plain", "gzip"]), "form")
    original = path.read_bytes() if content == "plain" else gzip.compress(path.read_bytes(), mtime=0)
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4), "mutations")):
        position = data.draw(st.integers(0, max(0, len(mutated) - 1)), "position")
        new = data.draw(st.binary(max_size=12), "new")
        mutated[position : position + data.draw(st.integers(0, 12), "length")] = new
    (tmp_path / "mutated").write_bytes(mutated)
    result = convert(tmp_path / "mutated", tmp_path / "out", "--overwrite")
    if result.returncode != 0:
        assert_fails_with_one_line(result, "mutated")


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_example_or_a_user_error(data):
    try:
        tfrecord_to_ofrecord.convert_chunk("file", [(0, data)], {})
    except UserError as error:
        assert "byte 0" in str(error)
