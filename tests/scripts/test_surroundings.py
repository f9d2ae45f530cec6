"""Folders, names, streams and limits as hostile users have them: a script works, or says why in one line."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import pytest

import config
import convert_hf
import create_pretraining_data
from in_process import run_in_process
from launched import PRETRAINING, SQUAD, Launched
from made_parts import write_squad_parts
from records import checks
from running import ROOT, assert_fails_with_one_line, run
from snapshots import run_state
from system.errors import UserError
from system.folder_lock import lock_folder
from system.output_files import atomic_folder
from system.signals import Signalled
from training import metrics, run_setup

pytestmark = pytest.mark.slow

FLAGS = {**PRETRAINING, "batch_size_per_device": 4, "save_last_snapshot": True}
# root may read and write everything, but for what it is not capable of.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
# Neither UTF-8 nor of one line; what `os.fsencode` makes of it is bytes that a disk takes.
HARD_NAME = "a\udcff\nß'$(x)"


def check_run(**flags):
    """What a pre-training run checks before it loads OneFlow, as a CompletedProcess."""

    def check():
        args = config.parse_pretraining_args()
        checks.check_data_set(args, checks.pretraining_fields(args), shuffle=True)
        run_setup.check_folders(args)

    return run_in_process(check, "run_pretraining.py", **{**FLAGS, **flags})


@contextlib.contextmanager
def permissions(path, mode):
    """The permissions of a path within the block."""
    before = os.stat(path).st_mode
    os.chmod(path, mode)
    try:
        yield
    finally:
        os.chmod(path, before)


@pytest.fixture
def folders(tiny_data, tmp_path):
    """Flags that name a folder each, among them what looks like a snapshot to load."""
    for name in ("log", "save", "load"):
        (tmp_path / name).mkdir()
    (tmp_path / "load/snapshot_done").touch()
    names = {"data_dir": "data", "log_dir": "log", "model_save_dir": "save", "model_load_dir": "load"}
    return {flag: tmp_path / name for flag, name in names.items()}


@pytest.mark.skipif(bool(POWERLESS) and shutil.which("setpriv") is None, reason="root needs setpriv to be powerless")
@pytest.mark.parametrize(
    ("name", "mode", "place"),
    [
        ("log", 0o555, "--log_dir=.*: cannot be written"),
        ("save", 0o555, "--model_save_dir=.*: cannot be written"),
        ("save", 0o333, "save"),  # where nobody could find a snapshot again
        ("load", 0o111, "load: cannot be read"),
        ("load", 0o444, "load/snapshot_done"),
        ("data", 0o111, "--data_dir=.*: cannot be read"),
        ("data", 0o444, "data/part-0"),
        ("data/part-0", 0o000, "data/part-0: cannot be read"),
    ],
)
def test_folders_that_may_not_be_used(folders, tmp_path, name, mode, place):
    flags = [f"--{flag}={value}" for flag, value in {**FLAGS, **folders}.items()]
    with permissions(tmp_path / name, mode):
        command = [*POWERLESS, sys.executable, str(ROOT / "run_pretraining.py"), *flags]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert_fails_with_one_line(result, "Permission denied")
    assert re.search(place, result.stderr), result.stderr
    assert os.listdir(tmp_path / "log") == os.listdir(tmp_path / "save") == []


def test_a_state_that_may_not_be_read(tmp_path):
    """It is not taken for one that is not there."""
    (tmp_path / "System-Train-TrainStep-PretrainJob").mkdir()
    with (
        mock.patch.object(os, "listdir", side_effect=PermissionError(13, "Permission denied", "step")),
        pytest.raises(UserError, match="cannot be read: step: Permission denied"),
    ):
        run_state.read(tmp_path)


@pytest.mark.parametrize("flag", ["data_dir", "log_dir", "model_save_dir", "model_load_dir"])
def test_names_that_no_file_can_have(folders, flag):
    del folders["model_load_dir"]
    for name in (folders["log_dir"] / ("n" * 300), "loop/x", "data/part-0/x"):
        if name == "loop/x":
            os.symlink("loop", folders["log_dir"].parent / "loop")
        name = folders["log_dir"].parent / name
        assert_fails_with_one_line(check_run(**{**folders, flag: name}), str(name)[:200])
    assert_fails_with_one_line(check_run(**{**folders, flag: ""}), f"--{flag}: '' is not a value")


def test_names_of_any_bytes(folders, tmp_path):
    """In a process that believes to be on a terminal for ASCII."""
    output = tmp_path / HARD_NAME
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    flags = {**FLAGS, "data_dir": folders["data_dir"], "log_dir": output, "model_save_dir": output, "iter_num": 3}
    with mock.patch.dict(os.environ, ascii_only):
        for ranks in (1, 2):
            result = run("run_pretraining.py", **flags, gpu_num_per_node=ranks)
            assert (result.returncode, result.stderr) == (0, ""), result.stdout
        for ranks in (1, 2):
            result = run("run_pretraining.py", **flags, gpu_num_per_node=ranks, model_load_dir=f"{output}/none")
            assert_fails_with_one_line(result, "\\udcc3\\udc9f'$(x)/none: there is no such folder")
    assert (output / "last_snapshot/snapshot_done").is_file()
    assert_fails_with_one_line(check_run(**{**folders, "data_dir": output}), "--data_dir=", "UTF-8")


def test_results_that_could_not_be_written_in_the_end(tmp_path):
    """That is found before hours of prediction."""
    write_squad_parts(tmp_path / "dev", 2, is_training=False)
    (tmp_path / "load").mkdir()
    (tmp_path / "load/snapshot_done").touch()
    (tmp_path / "link.npy").symlink_to("nowhere/results.npy")
    flags = {**SQUAD, "data_dir": tmp_path / "dev", "log_dir": tmp_path, "model_load_dir": tmp_path / "load"}

    def check():
        run_setup.check_folders(config.parse_squad_predict_args())

    for name in ("n" * 251 + ".npy", "link.npy"):
        result = run_in_process(check, "run_squad_predict.py", **flags, all_results_file=tmp_path / name)
        assert_fails_with_one_line(result, f"--all_results_file={tmp_path}/{name}: cannot be written: ")
    assert sorted(os.listdir(tmp_path)) == ["dev", "link.npy", "load"]


class TestNothingIsLost:
    def test_an_empty_name_is_not_this_folder(self, tmp_path, monkeypatch):
        """As of a variable that a shell does not know: what is in the folder would be replaced by the output."""
        (tmp_path / "thesis.txt").touch()
        monkeypatch.chdir(tmp_path)
        for arguments in (["--hf_dump_path="], ["--hf_dump_path", ""]):
            command = ["export", f"--snapshot_dir={tmp_path}", "--num_attention_heads=2", *arguments]
            result = run_in_process(convert_hf.main, "convert_hf.py", *command)
            assert_fails_with_one_line(result, "argument --hf_dump_path: '' is not a value")
        assert os.listdir(tmp_path) == ["thesis.txt"]

    def test_a_folder_by_its_other_names(self, tmp_path, monkeypatch):
        (tmp_path / "folder/sub").mkdir(parents=True)
        (tmp_path / "thesis.txt").touch()
        for place, name in (("folder", "."), ("folder/sub", ".."), ("", "folder/sub/..")):
            monkeypatch.chdir(tmp_path / place)
            with atomic_folder(name) as folder:
                (folder / "sub").mkdir()
            assert os.listdir(tmp_path / "folder") == ["sub"]
            assert sorted(os.listdir(tmp_path)) == ["folder", "thesis.txt"]

    def test_what_a_link_names_stays(self, tmp_path):
        (tmp_path / "snapshot_5").mkdir()
        (tmp_path / "last_snapshot").symlink_to("snapshot_5")
        with atomic_folder(tmp_path / "last_snapshot") as folder:
            (folder / "new").touch()
        assert os.listdir(tmp_path / "snapshot_5") == [] and os.listdir(tmp_path / "last_snapshot") == ["new"]
        assert sorted(os.listdir(tmp_path)) == ["last_snapshot", "snapshot_5"]

    @pytest.mark.parametrize("flag", ["log_dir", "model_save_dir"])
    def test_nothing_is_written_into_a_snapshot(self, folders, flag):
        result = check_run(**{**folders, flag: folders["model_load_dir"]})
        assert_fails_with_one_line(result, f"--{flag}={folders['model_load_dir']}: is a snapshot")
        assert os.listdir(folders["model_load_dir"]) == ["snapshot_done"]

    @pytest.mark.parametrize("is_there", [False, True])
    def test_an_interrupted_script_takes_its_empty_folder_along(self, tmp_path, is_there):
        if is_there:
            (tmp_path / "new").mkdir()
        flags = {"input_file": ROOT / "dataset/corpus.txt", "vocab_file": ROOT / "dataset/vocab.txt", "workers": 1}
        for function in ("scan_input", "make_parts"):
            with mock.patch.object(create_pretraining_data, function, side_effect=Signalled(signal.SIGINT)):
                result = run_in_process(
                    create_pretraining_data.main,
                    "create_pretraining_data.py",
                    **{**flags, "output_dir": tmp_path / "new/parts"},
                )
            assert_fails_with_one_line(result, "ended by SIGINT", status=130)
            assert os.listdir(tmp_path) == (["new"] if is_there else [])
            assert not is_there or os.listdir(tmp_path / "new") == []


class TestTwoRuns:
    def test_in_one_model_save_dir(self, folders, monkeypatch):
        del folders["model_load_dir"]
        flags = {**FLAGS, **folders, "iter_num": 1000000}
        del flags["model_save_dir"], flags["log_dir"]
        save = folders["model_save_dir"]
        with Launched("run_pretraining.py", folders["log_dir"], model_save_dir=save, **flags) as training:
            training.wait_for("iter 2,")
            monkeypatch.setattr(run_setup, "_LONGEST_END_OF_A_KILLED_RUN", 0.2)
            assert_fails_with_one_line(check_run(**folders), save, "another run is writing there")
            training.process.send_signal(signal.SIGKILL)
            # As long as one that is started again waits.
            os.close(lock_folder(save, patience=30))

    def test_that_begin_in_the_same_second(self, tmp_path):
        """Each has lines of its own."""
        with metrics._open_json_file(tmp_path) as first, metrics._open_json_file(tmp_path) as second:
            assert first.name != second.name


class TestStreams:
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize(
        "command", [["run_pretraining.py", "--help"], ["-c", "import util; util.run_script(lambda: print(1))"]]
    )
    def test_no_room_for_what_is_printed(self, command, unbuffered):
        """Python, left to itself, finds out only at exit."""
        with open("/dev/full", "w") as full:
            result = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        line = f"{command[0]}: error: standard output: No space left on device\n"
        assert (result.returncode, result.stderr) == (1, line)

    def test_nobody_reads_what_a_rank_prints(self, folders):
        del folders["model_load_dir"]
        flags = [f"--{flag}={value}" for flag, value in {**FLAGS, **folders, "gpu_num_per_node": 2}.items()]
        command = [sys.executable, str(ROOT / "run_pretraining.py"), *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == "run_pretraining.py: error: rank 0: nobody reads what it prints any more\n"
            assert process.wait(60) == 1


def test_no_room_for_the_libraries(folders):
    """It is not said that they should be installed."""
    del folders["model_load_dir"]
    flags = [f"--{flag}={value}" for flag, value in {**FLAGS, **folders}.items()]
    command = [
        "sh",
        "-c",
        'ulimit -v 1000000; exec "$@"',
        "sh",
        sys.executable,
        str(ROOT / "run_pretraining.py"),
        *flags,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert_fails_with_one_line(result, "out of memory for lib", status=1)
