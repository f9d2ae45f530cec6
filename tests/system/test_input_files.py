"""system/input_files.py: files, pipes, and what is neither."""

import os
import socket
import subprocess
import sys

import pytest

from running import ROOT
from system import input_files
from system.errors import UserError
from system.input_files import find_files, open_input, reading


def test_a_file(tmp_path):
    (tmp_path / "file").write_text("text\n", encoding="utf-8")
    with open_input(tmp_path / "file", encoding="utf-8") as file:
        assert file.read() == "text\n"
    with open_input(tmp_path / "file", "rb") as file:
        assert file.read() == b"text\n"


def test_text_with_a_byte_order_mark(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbftext\xef\xbb\xbf")
    with open_input(tmp_path / "file") as file:
        assert file.read() == "text\ufeff"


def test_one_wording_for_what_cannot_be_read(tmp_path):
    (tmp_path / "file").write_bytes(b"ab\xff")

    def message(kind, read):
        with pytest.raises(UserError) as error, reading("--flag=x", kind):
            read()
        return str(error.value)

    assert message("file", lambda: open_input(tmp_path / "none")) == "--flag=x: there is no such file"
    assert message("file", lambda: open_input(tmp_path / "file/none")) == "--flag=x: there is no such file"
    assert message("file", lambda: open_input(tmp_path)) == "--flag=x: is a folder; give a file"
    assert message("folder", lambda: os.listdir(tmp_path / "none")) == "--flag=x: there is no such folder"
    assert message("folder", lambda: os.listdir(tmp_path / "file")) == "--flag=x: is a file; give a folder"
    assert message("file", lambda: open_input("/dev/zero")) == "--flag=x: cannot be read: neither a file nor a pipe"
    assert message("file", lambda: open_input(tmp_path / "file").read()) == "--flag=x: not UTF-8: byte 2 is 0xff"


def test_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_input(tmp_path)


def test_devices_and_sockets(tmp_path):
    with pytest.raises(OSError, match="neither a file nor a pipe"):
        open_input("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError):
            open_input(tmp_path / "socket")


def test_a_pipe_without_a_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "PIPE_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="nothing has come through this pipe for 0.1 seconds"):
        open_input(tmp_path / "pipe")
    assert os.listdir("/proc/self/fd") == before


def test_a_pipe_with_a_writer_that_takes_its_time():
    """As `script <(command)` of a shell makes one, and `command | script /dev/stdin`."""
    read = "from system.input_files import open_input; print(len(open_input('/dev/stdin').read()))"
    write = "import sys, time; time.sleep(1); print('x' * 99999, flush=True); time.sleep(1); print('x' * 99999)"
    with subprocess.Popen([sys.executable, "-c", write], stdout=subprocess.PIPE) as writer:
        result = subprocess.run(
            [sys.executable, "-c", read], cwd=ROOT, stdin=writer.stdout, capture_output=True, text=True
        )
    assert (result.stdout, result.stderr) == ("200000\n", "")


def test_names_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "c.text", "[x].txt", "d,e"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.txt").mkdir()
    assert find_files("--input", ["*.txt"]) == ["[x].txt", "a.txt", "b.txt"]
    assert find_files("--input", ["c.text,?.txt", "a.txt,"]) == ["c.text", "a.txt", "b.txt"]
    assert find_files("--input", ["[x].txt"]) == ["[x].txt"]
    for patterns, fragment in [
        ("", "names no file"),
        (",", "names no file"),
        ("none.txt", "--input=none.txt: there is no such file"),
        ("a.txt,*.md", "--input=*.md: there is no such file"),
        ("folder.txt", "--input=folder.txt: is a folder; give files"),
    ]:
        with pytest.raises(UserError) as error:
            find_files("--input", [patterns])
        assert fragment in str(error.value)
