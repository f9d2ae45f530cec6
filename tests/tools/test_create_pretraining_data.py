"""Tests tools/create_pretraining_data.py: reproducible parts, resuming, and one-line errors for bad input."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import create_pretraining_data
import reference_squad
from in_process import run_in_process
from launched import children_of, ignores
from records import ofrecord
from running import ROOT, assert_fails_with_one_line, run
from system.errors import RunError
from text.tokenization import read_vocab

pytestmark = pytest.mark.slow

SCRIPT = "tools/create_pretraining_data.py"
VOCAB_FILE = ROOT / "dataset/vocab.txt"
FIELDS = {
    "input_ids": np.int32,
    "input_mask": np.int32,
    "segment_ids": np.int32,
    "masked_lm_positions": np.int32,
    "masked_lm_ids": np.int32,
    "masked_lm_weights": np.float32,
    "next_sentence_labels": np.int32,
}


def write_corpus(path, documents, seed=0):
    """Writes random documents of words from the vocabulary and returns them as lists of sentences."""
    rng = random.Random(seed)
    words = [piece for piece in VOCAB_FILE.read_text().split() if piece.isalpha()]
    corpus = [
        [" ".join(rng.choices(words, k=rng.randint(3, 25))) + "." for _ in range(rng.randint(1, 20))]
        for _ in range(documents)
    ]
    path.write_text("\n\n".join("\n".join(document) for document in corpus) + "\n")
    return corpus


@pytest.fixture
def corpus(tmp_path):
    """The --input_file for two files of 40 and 25 documents."""
    write_corpus(tmp_path / "one.txt", 40, seed=1)
    write_corpus(tmp_path / "two.txt", 25, seed=2)
    return tmp_path / "*.txt"


def create(input_file, output_dir, *arguments, **flags):
    """Runs the script, by default in one process for 3 parts."""
    flags = {"workers": 1, "part_num": 3, "dupe_factor": 2} | flags
    return run(SCRIPT, *arguments, input_file=input_file, output_dir=output_dir, **{"vocab_file": VOCAB_FILE} | flags)


def contents(folder):
    """Returns name -> bytes of all files in a folder, including hidden ones."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_part(path):
    return [features for _, features in ofrecord.read(path)]


def test_parts_do_not_depend_on_the_number_of_processes(corpus, tmp_path):
    one = create(corpus, tmp_path / "one", workers=1)
    assert one.returncode == 0, one.stderr
    assert one.stderr == ""
    assert sorted(contents(tmp_path / "one")) == ["part-0", "part-1", "part-2", "records.json", "vocab.txt"]
    two = create(corpus, tmp_path / "two", workers=2)
    assert two.returncode == 0, two.stderr
    assert two.stderr == ""
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    other_seed = create(corpus, tmp_path / "other", random_seed=1)
    assert other_seed.returncode == 0
    same = {name for name, data in contents(tmp_path / "one").items() if contents(tmp_path / "other")[name] == data}
    assert same == {"vocab.txt"}


def test_records_hold_the_sentences_of_the_text(tmp_path):
    documents = write_corpus(tmp_path / "text", 30)
    result = create(tmp_path / "text", tmp_path / "out", max_seq_length=64, max_predictions_per_seq=9, part_num=2)
    assert result.returncode == 0, result.stderr
    vocab = read_vocab(VOCAB_FILE)
    texts = []
    for document in documents:
        pieces = [piece for line in document for piece in reference_squad.tokenize(line, vocab, True)]
        texts.append(" ".join(str(vocab[piece]) for piece in pieces) + " ")
    lengths = {name: 64 for name in list(FIELDS)[:3]} | {name: 9 for name in list(FIELDS)[3:6]}
    seen = {}
    for part in range(2):
        records = read_part(tmp_path / f"out/part-{part}")
        assert f"part-{part} ({part + 1} of 2): {len(records)} instances" in result.stdout
        assert len(records) > 30
        for features in records:
            assert {name: values.dtype for name, values in features.items()} == FIELDS
            assert all(len(values) == lengths.get(name, 1) for name, values in features.items())
            tokens = features["input_ids"].copy()
            predicted = features["masked_lm_weights"] == 1
            tokens[features["masked_lm_positions"][predicted]] = features["masked_lm_ids"][predicted]
            sources = []
            for segment in (0, 1):
                is_segment = (features["segment_ids"] == segment) & (features["input_mask"] == 1)
                ids = tokens[is_segment][1 - segment : -1]
                text = " ".join(map(str, ids)) + " "
                sources.append({index for index, document in enumerate(texts) if (" " + text) in (" " + document)})
                assert sources[segment], "a segment that is not in the text"
            if len(sources[0]) == 1:
                # Each document is in one part.
                assert seen.setdefault(*sources[0], part) == part
            if features["next_sentence_labels"] == [0]:
                assert sources[0] & sources[1]
            elif len(sources[1]) == 1:
                assert sources[0] != sources[1]
    assert set(seen) == set(range(30)), "a document without an instance"


def test_only_missing_parts_are_made(corpus, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    assert create(corpus, whole).returncode == 0
    first = create(corpus, folder, parts="1")
    assert first.returncode == 0, first.stderr
    assert {name for name in contents(folder) if name.startswith("part")} == {"part-1"}
    (folder / ".part-2.abandoned.tmp").write_bytes(b"the beginning of a part")
    again = create(corpus, folder, parts="0-1")
    assert again.returncode == 0, again.stderr
    assert (folder / ".part-2.abandoned.tmp").exists(), "it may be another machine's, at work"
    (folder / "part-0").unlink()
    made = (folder / "part-1").stat()
    # The input is identified by its checksum, so it may be moved.
    (tmp_path / "moved").mkdir()
    (tmp_path / "one.txt").rename(tmp_path / "moved/1.txt")
    (tmp_path / "two.txt").rename(tmp_path / "moved/2.txt")
    rest = create(tmp_path / "moved/*.txt", folder, workers=2)
    assert rest.returncode == 0, rest.stderr
    assert "1 of 3 parts are there, made with the same settings; 2 to make" in rest.stdout
    assert contents(folder) == contents(whole)
    assert (folder / "part-1").stat() == made
    nothing = create(tmp_path / "moved/*.txt", folder)
    assert nothing.returncode == 0
    assert "3 of 3 parts are there, made with the same settings; 0 to make" in nothing.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_resumes(tmp_path, workers):
    write_corpus(tmp_path / "text", 600)
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    flags = {"part_num": 6, "dupe_factor": 20}
    assert create(tmp_path / "text", whole, **flags).returncode == 0
    command = [sys.executable, ROOT / SCRIPT, f"--input_file={tmp_path / 'text'}", f"--output_dir={folder}"]
    command += [f"--vocab_file={VOCAB_FILE}", f"--workers={workers}", *(f"--{k}={v}" for k, v in flags.items())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        # Kill the run as soon as two parts exist, while it makes others.
        for line in process.stdout:
            if "(2 of 6)" in line:
                break
        children = children_of(process.pid)
        process.kill()
    assert_ended(children)
    there = {name: content for name, content in contents(folder).items() if name.startswith("part-")}
    assert 2 <= len(there) < 6
    assert all(content == (whole / name).read_bytes() for name, content in there.items())
    result = create(tmp_path / "text", folder, workers=workers, **flags)
    assert result.returncode == 0, result.stderr
    assert f"{len(there)} of 6 parts are there" in result.stdout
    assert contents(folder) == contents(whole), "leftovers of the killed run, or other parts"


def assert_ended(pids):
    """Asserts that the processes end within ten seconds."""
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process outlives its run"
        time.sleep(0.02)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("how", ["worker killed", "interrupted"])
def test_interrupted_run_prints_one_line_and_leaves_nothing(tmp_path, how):
    write_corpus(tmp_path / "text", 400)
    command = [sys.executable, ROOT / SCRIPT, f"--input_file={tmp_path / 'text'}", f"--output_dir={tmp_path / 'out'}"]
    command += [f"--vocab_file={VOCAB_FILE}", "--workers=2", "--part_num=2", "--dupe_factor=1000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout.readline().startswith("files: 1, documents: 400")
        deadline = time.monotonic() + 60
        while len(workers := worker_pids(process.pid)) < 2 or not all(ignores(pid, signal.SIGINT) for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = children_of(process.pid)
        if how == "worker killed":
            os.kill(workers[0], signal.SIGKILL)
        else:
            # Like Ctrl-C, to all processes of the run.
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == {"worker killed": 1, "interrupted": 130}[how]
    assert errors.splitlines() == [
        "create_pretraining_data.py: error: "
        + {"worker killed": "a worker process was killed, perhaps for lack of memory; run the same command again"}.get(
            how, "ended by SIGINT"
        )
    ]
    assert_ended(children)
    assert os.listdir(tmp_path) == ["text"], "without a part the folder that it has made goes"


def test_unfinished_parts_are_removed_when_a_run_fails(tmp_path, monkeypatch):
    def fail(*_):
        (tmp_path / ".part-0.abandoned.tmp").write_bytes(b"a process was stopped while it wrote this")
        raise RunError("stopped")
        yield

    monkeypatch.setattr(create_pretraining_data, "run_tasks", fail)
    arguments = SimpleNamespace(dupe_factor=1, workers=2, output_dir=tmp_path)
    with pytest.raises(RunError, match="stopped"):
        create_pretraining_data.make_parts([0], [[]], [], arguments)
    assert contents(tmp_path) == {}


def worker_pids(pid):
    """Returns the ids of the processes that a run started for its parts (not multiprocessing's resource tracker)."""
    found = []
    for child in children_of(pid):
        with open(f"/proc/{child}/cmdline") as file:
            if "spawn_main" in file.read():
                found.append(child)
    return found


@pytest.mark.parametrize(
    "change, difference",
    [
        ({"random_seed": 7}, "random_seed 12345, not 7"),
        ({"part_num": 4}, "part_num 3, not 4"),
        ({"do_whole_word_mask": True}, "do_whole_word_mask False, not True"),
        ({"do_lower_case": False}, "do_lower_case True, not False"),
        ({"max_seq_length": 64}, "max_seq_length 128, not 64"),
        ({"max_predictions_per_seq": 10}, "max_predictions_per_seq 20, not 10"),
        ({"masked_lm_prob": 0.2}, "masked_lm_prob 0.15, not 0.2"),
        ({"short_seq_prob": 0}, "short_seq_prob 0.1, not 0.0"),
        ({"dupe_factor": 3}, "dupe_factor 2, not 3"),
    ],
)
def test_parts_of_other_settings_are_not_mixed(finished, change, difference):
    input_file, folder = finished
    before = contents(folder)
    result = create(input_file, folder, **change)
    assert_fails_with_one_line(result, folder, f"made with {difference}; give another --output_dir, or delete this one")
    assert contents(folder) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An --input_file and a folder with two of three parts made from it."""
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder / "text", 20)
    assert create(folder / "text", folder / "out", parts="0-1").returncode == 0
    return folder / "text", folder / "out"


def test_parts_of_other_input_or_vocabulary_are_not_mixed(finished, tmp_path):
    input_file, folder = finished
    before = contents(folder)
    (tmp_path / "text").write_text(input_file.read_text() + "One more.\n")
    assert_fails_with_one_line(create(tmp_path / "text", folder), "made with other input")
    pieces = VOCAB_FILE.read_text().splitlines()
    for others, message in (
        ([*pieces, "more"], "made with vocab_size 1200, not 1201"),
        ([*pieces[:-1], "other"], "made with other vocab"),
    ):
        (tmp_path / "vocab").write_text("\n".join(others))
        assert_fails_with_one_line(create(input_file, folder, vocab_file=tmp_path / "vocab"), message)
    assert contents(folder) == before


def test_parts_of_unknown_origin_are_not_mixed(finished, tmp_path):
    input_file, _ = finished
    (tmp_path / "part-0").write_bytes(b"")
    assert_fails_with_one_line(create(input_file, tmp_path), "part-0", "no records.json")
    for damaged in ("", "{", "[1]", "3", "[" * 100000):
        (tmp_path / "records.json").write_text(damaged)
        assert_fails_with_one_line(create(input_file, tmp_path), "records.json: ", "delete this one")
    (tmp_path / "part-0").unlink()
    assert create(input_file, tmp_path).returncode == 0, "settings without parts are replaced"


def test_two_runs_cannot_write_to_one_folder(finished):
    input_file, folder = finished
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert_fails_with_one_line(create(input_file, folder), folder, "another run is writing there")
    finally:
        os.close(descriptor)


def test_settings_describe_the_parts(finished):
    _, folder = finished
    settings = json.loads((folder / "records.json").read_text())
    assert settings["part_num"] == 3 and settings["random_seed"] == 12345
    assert str(folder.parent) not in json.dumps(settings), "a path of this machine"


@pytest.mark.parametrize(
    "content, fragment",
    [
        (b"", "contains no text"),
        (b"\n \n\t\n", "contains no text"),
        (b"One.\nTwo.\nThree.\n", "one document"),
        (b"One.\n\nTw\xffo.\n", "not UTF-8: byte 8 is 0xff"),
        (b"One.\n\nTwo.\n\nThree.\n", "3 documents are too few"),
        ("One.\nOne.\n\n\u200b\n\u200b\n".encode(), "all but one of its documents have no text"),
        ("\u200b\n\u200b\n\n\u200b\n\u200b\n".encode(), "have no text"),
    ],
)
def test_text_without_instances(tmp_path, content, fragment):
    path = tmp_path / "text"
    path.write_bytes(content)
    part_num = 1 if "no text" in fragment else 3
    result = create(path, tmp_path / "out", part_num=part_num)
    assert_fails_with_one_line(result, fragment)
    assert not list((tmp_path / "out").glob("*part*"))


@pytest.mark.parametrize(
    "flags, fragment",
    [
        ({"input_file": "none*.txt"}, "--input_file=none*.txt: there is no such file"),
        ({"vocab_file": "none.txt"}, "none.txt"),
        ({"max_seq_length": 4}, "--max_seq_length=4"),
        ({"max_seq_length": "x"}, "--max_seq_length"),
        ({"max_predictions_per_seq": 0}, "--max_predictions_per_seq"),
        ({"masked_lm_prob": 1.5}, "--masked_lm_prob"),
        ({"short_seq_prob": -0.1}, "--short_seq_prob"),
        ({"short_seq_prob": "nan"}, "--short_seq_prob"),
        ({"dupe_factor": 0}, "--dupe_factor"),
        ({"part_num": 0}, "--part_num"),
        ({"workers": 0}, "--workers"),
        ({"random_seed": -1}, "--random_seed"),
        ({"parts": "2-1"}, "--parts"),
        ({"parts": "3"}, "--parts"),
        ({"parts": "a-b"}, "--parts"),
        ({"parts": "1-"}, "--parts"),
        ({"parts": ""}, "--parts"),
        ({"do_lower_case": "maybe"}, "--do_lower_case"),
        ({"output_dir": "/dev/null/out"}, "--output_dir"),
        ({"output_dir": VOCAB_FILE}, "--output_dir"),
        ({"output_file": "x"}, "--output_file"),
    ],
)
def test_bad_flags(finished, tmp_path, flags, fragment):
    input_file, _ = finished
    flags = {"input_file": input_file, "output_dir": tmp_path / "out"} | flags
    assert_fails_with_one_line(create(flags.pop("input_file"), flags.pop("output_dir"), **flags), fragment)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
def test_vocabulary_without_a_special_piece(finished, tmp_path, missing):
    input_file, _ = finished
    path = tmp_path / "vocab"
    path.write_text(VOCAB_FILE.read_text().replace(missing + "\n", ""))
    assert_fails_with_one_line(create(input_file, tmp_path / "out", vocab_file=path), path, f"no {missing}")


def test_full_disk_leaves_no_part(tmp_path):
    write_corpus(tmp_path / "text", 100)
    # Limits files to 200 KiB.
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", sys.executable, ROOT / SCRIPT]
    flags = [f"--input_file={tmp_path / 'text'}", f"--vocab_file={VOCAB_FILE}", f"--output_dir={tmp_path / 'out'}"]
    for workers in (1, 2):
        command = [*limited, *flags, "--part_num=2", f"--workers={workers}"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert_fails_with_one_line(result, "File too large", status=1)
        assert os.listdir(tmp_path) == ["text"], "without a part the folder that it has made goes"


def test_memory_does_not_grow_with_the_input(tmp_path):
    # With small blocks and buckets, a few megabytes are a large corpus.
    program = """
import resource, sys
import create_pretraining_data
from text import pretraining_text
pretraining_text.BLOCK_BYTES = pretraining_text.EXTENT_BYTES = 1 << 17
create_pretraining_data.BUCKET_BYTES = 1 << 19
create_pretraining_data.main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for documents in (300, 6000):
        write_corpus(tmp_path / "text", documents)
        command = [sys.executable, "-c", program, f"--input_file={tmp_path / 'text'}", f"--vocab_file={VOCAB_FILE}"]
        command += [f"--output_dir={tmp_path / str(documents)}", "--workers=1", "--dupe_factor=1"]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.splitlines()[-1]) / 1024)
    size = (tmp_path / "6000/part-0").stat().st_size / 2**20
    assert size > 10, "too small to show anything"
    assert peaks[1] - peaks[0] < size / 4, f"peak memory {peaks} MiB for a part of {size} MiB"


def test_dataset_is_reproducible(tmp_path):
    variables = [f"PYTHON={sys.executable}", f"BUILT_DATASET={tmp_path / 'set'}"]
    command = ["make", "-f", "make/dataset.mk", "dataset-check", *variables]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    records = read_part(ROOT / "dataset/part-0")
    assert len(records) == 40
    vocab = read_vocab(VOCAB_FILE)
    config = json.loads((ROOT / "dataset/bert_config.json").read_text())
    assert len(vocab) <= config["vocab_size"] == 30522
    for features in records:
        assert len(features["input_ids"]) == 128 and len(features["masked_lm_ids"]) == 20
        assert 0 <= features["input_ids"].min() and features["input_ids"].max() < len(vocab)
        assert vocab["[UNK]"] not in features["input_ids"]


def test_batches_serialize_like_protobuf():
    generator = np.random.default_rng(0)
    for number in (0, 1, 300):
        features = {
            "small": generator.integers(0, 128, (number, 40)).astype(np.int32),
            "ids": generator.integers(0, 30522, (number, 40)).astype(np.int32),
            "negative": generator.integers(-(2**31), 2**31, (number, 3)).astype(np.int32),
            "wide": generator.integers(-(2**63), 2**63 - 1, (number, 130)),
            "edges": np.tile(np.array([0, 127, 128, 16383, 16384, 2**31 - 1], dtype=np.int32), (number, 1)),
            "floats": generator.normal(size=(number, 7)).astype(np.float32),
            "doubles": generator.normal(size=(number, 20)),
            "empty": np.zeros((number, 0), dtype=np.int32),
            "größe": np.ones((number, 1), dtype=np.int32),
        }
        expected = [
            ofrecord.serialize({name: values[row] for name, values in features.items()}) for row in range(number)
        ]
        assert ofrecord.serialize_batch(features) == expected


def create_here(tmp_path, text, pieces, **flags):
    """Runs the script within this process on `text`, with a vocabulary of `pieces` and the special pieces."""
    (tmp_path / "text").write_text(text, encoding="utf-8")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *pieces]) + "\n", encoding="utf-8")
    flags = {"workers": 1, "dupe_factor": 2, "vocab_file": tmp_path / "vocab.txt"} | flags
    flags |= {"input_file": tmp_path / "text", "output_dir": tmp_path / "out"}
    result = run_in_process(create_pretraining_data.main, SCRIPT, **flags)
    assert result.returncode == 0, result.stderr
    return result


SENTENCES = "a b a\nb a a b\na a\n\nb b a\na b b\n\n"


def test_good_input_gives_no_warning(tmp_path):
    result = create_here(tmp_path, SENTENCES, ["a", "b"])
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "[UNK]: 0.00% of 15 pieces"


def test_empty_lines_of_the_vocabulary_are_never_drawn(tmp_path):
    create_here(tmp_path, SENTENCES, ["a", "", "b", "", ""], dupe_factor=300, masked_lm_prob=1.0)
    ids = np.concatenate([features["input_ids"] for features in read_part(tmp_path / "out/part-0")])
    assert set(ids.tolist()) == {0, 1, 2, 3, 4, 5, 7}


def test_warning_lists_characters_missing_from_the_vocabulary(tmp_path):
    result = create_here(tmp_path, "a ก ข a\nกก a\n\nb a\nb a\n", ["a", "b"])
    assert result.stdout.splitlines()[-1] == "[UNK]: 30.00% of 10 pieces"
    assert "vocab.txt: 30% of the pieces of the text are [UNK], most often because of ก ข;" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_documents_of_one_sentence_are_counted(tmp_path):
    result = create_here(tmp_path, SENTENCES.replace("\n", "\n\n"), ["a", "b"])
    assert "warning: 5 of 5 documents are one sentence, which is always paired" in result.stderr
    assert [features["next_sentence_labels"][0] for features in read_part(tmp_path / "out/part-0")] == [1] * 10


def test_too_few_predictions_for_the_length(tmp_path):
    result = create_here(tmp_path, SENTENCES, ["a", "b"], max_seq_length=512)
    assert "--max_predictions_per_seq=20 masks 3.9% of a sequence of 512 tokens, not" in result.stderr
    assert "give --max_predictions_per_seq=76" in result.stderr


@pytest.mark.parametrize("separator", ["", " "])
def test_whole_words_of_several_characters(tmp_path, separator):
    """Masks two-character words as a whole if spaces separate them; without spaces each character is a word."""
    words = ["天地", "玄黄", "宇宙", "洪荒"]
    rng = random.Random(0)
    lines = [separator.join(rng.choices(words, k=30)) for _ in range(40)]
    text = "\n\n".join("\n".join(lines[start : start + 4]) for start in range(0, 40, 4))
    pieces = sorted({character for word in words for character in word})
    result = create_here(tmp_path, text, pieces, do_whole_word_mask=True)
    has_blanks = separator == " "
    assert ("--do_whole_word_mask has almost no effect: 0 of 2,400 pieces" in result.stderr) == (not has_blanks)
    first = {["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces].index(word[0]) for word in words}
    halves = 0
    for features in read_part(tmp_path / "out/part-0"):
        ids, number = features["input_ids"].copy(), int(features["masked_lm_weights"].sum())
        masked = features["masked_lm_positions"][:number].tolist()
        ids[masked] = features["masked_lm_ids"][:number]
        # The end of a segment may split a word.
        whole = [p for p in masked if ids[p - 1] not in (2, 3) and ids[p + 1] != 3]
        halves += sum((p + 1 if ids[p] in first else p - 1) not in masked for p in whole)
    assert (halves == 0) == has_blanks
