"""Where outputs go: never over what they are made of, never in place of a device, through links to what they name."""

import errno
import itertools
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

import npy2json
import show_squad
import squad_pages
import tfrecord_to_ofrecord
import train_vocab
from in_process import run_in_process
from made_parts import write_pretraining_part
from records import prediction_file
from running import ROOT, assert_fails_with_one_line
from system import input_files, output_files
from system.errors import UserError
from system.output_files import atomic_file, atomic_folder, remove_abandoned
from tfrecord_files import serialize_example, write_tfrecord


def test_a_device_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: exists and is not a file"):
        with atomic_file(tmp_path / "pipe"):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and os.listdir(tmp_path) == ["pipe"]
    flags = {"input_file": ROOT / "dataset/corpus.txt", "vocab_file": "/dev/null", "vocab_size": 300}
    assert_fails_with_one_line(run_in_process(train_vocab.main, "train_vocab.py", **flags), "/dev/null: exists")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    for text in ("first", "second"):
        with atomic_file(tmp_path / "link", "w") as file:
            file.write(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere/file").read_text() == text
        assert os.listdir(tmp_path / "elsewhere") == ["file"]


def test_what_killed_processes_have_left_goes(tmp_path):
    left = [tmp_path / name for name in (".a[1].xyz_0.tmp", ".a[1].b.xyz_1.tmp", ".a1.xyz_2.tmp", ".a[1].tmp")]
    for folder in left:
        folder.mkdir()
    with atomic_folder(tmp_path / "a[1]"):
        filled = set(tmp_path.iterdir()) - set(left)  # by a process that lives
        remove_abandoned(tmp_path, lambda name: True)
        assert set(tmp_path.iterdir()) == {*filled, left[3]}
        for folder in left[:3]:
            folder.mkdir()
    with atomic_folder(tmp_path / "a[1]"):
        pass
    assert set(tmp_path.iterdir()) == {*left[1:], tmp_path / "a[1]"}
    remove_abandoned(tmp_path / "none", lambda name: True)


def write_file(path):
    with atomic_file(path, "w") as file:
        file.write("whole")


def write_folder(path):
    with atomic_folder(path) as folder:
        (folder / "one").write_text("whole")


class Interruption(BaseException):
    """Comes at any moment, as a signal does."""


def interrupt_at(number, function, *arguments):
    """Calls the function, with an Interruption before the line `number` of system/output_files.py that runs meanwhile.

    Returns whether there was such a line.
    """
    lines = itertools.count()

    def trace(frame, event, argument):
        if frame.f_code.co_filename != output_files.__file__:
            return None
        if event == "line" and next(lines) == number:
            raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    except Interruption:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_interruption_leaves_nothing_half_made(tmp_path, write):
    number = 0
    while interrupt_at(number, write, tmp_path / "output"):
        assert os.listdir(tmp_path) in ([], ["output"]), number
        for path in tmp_path.rglob("output"):
            assert (path / "one" if path.is_dir() else path).read_text() == "whole"
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        number += 1
    assert number > 15


class OldSystem:
    """libc where renameat2 does not exist."""


def test_a_folder_reaches_the_disk_before_its_place(tmp_path, monkeypatch):
    """And if it cannot, the old one stays."""
    synced, own = [], output_files.sync

    def sync(path):
        synced.append((Path(path).name, (tmp_path / "output").exists()))
        own(path)

    monkeypatch.setattr(output_files, "sync", sync)
    with atomic_folder(tmp_path / "output") as folder:
        (folder / "variable").mkdir()
        (folder / "variable/out").write_bytes(b"1")
        (folder / "done").write_bytes(b"")
    names = [name for name, _ in synced]
    assert sorted(names[:-1]) == sorted([folder.name, "variable", "out", "done"]) and names[-1] == tmp_path.name
    assert [exists for _, exists in synced] == [False] * 4 + [True]

    def fails(path):
        if Path(path).name == "out":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(output_files, "sync", fails)
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(tmp_path / "output") as folder:
        (folder / "out").write_bytes(b"2")
    assert (tmp_path / "output/variable/out").read_bytes() == b"1" and os.listdir(tmp_path) == ["output"]


def test_folders_change_places_on_a_system_that_cannot_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(output_files.ctypes, "CDLL", lambda *arguments, **named: OldSystem())
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "output") as folder:
            (folder / "one").write_text(text)
        assert (os.listdir(tmp_path), (tmp_path / "output" / "one").read_text()) == (["output"], text)


def test_the_old_folder_stays_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write_folder(tmp_path / "output")
    monkeypatch.setattr(output_files.ctypes, "CDLL", lambda *arguments, **named: OldSystem())
    rename = os.rename
    calls = itertools.count()

    def fail_once(source, target):
        if next(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError):
        with atomic_folder(tmp_path / "output") as folder:
            (folder / "one").write_text("second")
    assert (os.listdir(tmp_path), (tmp_path / "output" / "one").read_text()) == (["output"], "whole")


@pytest.mark.parametrize("name", ["text", "./text", "link"])
def test_a_vocabulary_over_its_text(tmp_path, name):
    shutil.copy(ROOT / "dataset/corpus.txt", tmp_path / "text")
    (tmp_path / "link").symlink_to("text")
    flags = {"input_file": tmp_path / "text", "vocab_file": f"{tmp_path}/{name}", "vocab_size": 300}
    result = run_in_process(train_vocab.main, "train_vocab.py", **flags)
    assert_fails_with_one_line(result, "would replace its own input")
    assert (tmp_path / "text").read_bytes() == (ROOT / "dataset/corpus.txt").read_bytes()


def test_a_page_over_its_data(tmp_path):
    content = squad_pages.squad(squad_pages.CONTEXT, squad_pages.QUESTIONS)
    squad_pages.show(tmp_path, content, squad_pages.PREDICTIONS)
    flags = {"input_file": tmp_path / "data.json", "prediction_file": tmp_path / "predictions.json"}
    for path in flags.values():
        before = path.read_bytes()
        result = run_in_process(show_squad.main, "show_squad.py", "-o", path, **flags)
        assert_fails_with_one_line(result, path, "would replace its own input")
        assert path.read_bytes() == before


def test_answers_over_their_questions(tmp_path):
    shutil.copy(ROOT / "dataset/squad/dev-v1.1.json", tmp_path / "predictions.json")
    flags = {"predict_file": tmp_path / "predictions.json", "vocab_file": ROOT / "dataset/vocab.txt"}
    flags |= {"all_results_file": tmp_path / "all_results.npy", "output_dir": tmp_path}
    result = run_in_process(npy2json.main, "npy2json.py", **flags)
    assert_fails_with_one_line(result, tmp_path / "predictions.json", "would replace its own input")


def test_parts_over_the_files_they_are_made_of(tmp_path):
    features = write_pretraining_part(tmp_path / "made-up", 4)
    write_tfrecord(tmp_path / "part-0", map(serialize_example, features))
    before = (tmp_path / "part-0").read_bytes()
    arguments = ("--input_file", tmp_path / "part-0", "--output_dir", tmp_path, "--overwrite", "--workers", "1")
    result = run_in_process(tfrecord_to_ofrecord.main, "tfrecord_to_ofrecord.py", *arguments)
    assert_fails_with_one_line(result, tmp_path / "part-0", "would replace its own input")
    assert (tmp_path / "part-0").read_bytes() == before


def test_results_replace_results_only(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "PIPE_SECONDS", 0.1)
    write_pretraining_part(tmp_path / "part-0", 1)
    os.mkfifo(tmp_path / "pipe")
    for name in ("part-0", "pipe"):
        with pytest.raises(UserError, match=f"--all_results_file=.*/{name}: exists and is not a NumPy file"):
            prediction_file.check_replaceable(tmp_path / name)
    prediction_file.write(tmp_path / "all_results.npy", np.zeros(0, prediction_file.result_dtype(8)))
    prediction_file.check_replaceable(tmp_path / "all_results.npy")
    prediction_file.check_replaceable(tmp_path / "new.npy")


def test_one_wording_for_what_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()

    def message(kind, write):
        with pytest.raises(UserError) as error, output_files.writing("--flag=x", kind):
            write()
        return str(error.value)

    assert message("file", lambda: open(tmp_path, "w")) == "--flag=x: is a folder; give a file"
    assert (
        message("folder", lambda: os.makedirs(tmp_path / "file", exist_ok=True)) == "--flag=x: is a file; give a folder"
    )
    text = "--flag=x: cannot be written: No such file or directory; give another file"
    assert message("file", lambda: open(tmp_path / "none/file", "w")) == text
