"""Ctrl-C in the scripts other than training: one line at once, a clean terminal, and nothing half-written."""

import json
import re
import signal
import string

import numpy as np
import pytest

import small_models
from made_parts import write_squad_parts
from records import prediction_file
from running import ROOT, TINY_MODEL, run
from snapshots import layout
from snapshots.variables import ModelSize, encoder_shapes, head_shapes
from terminals import Terminal
from tf_checkpoints import save_checkpoint

pytestmark = pytest.mark.slow

VOCAB_FILE = ROOT / "dataset" / "vocab.txt"
SIZE = ModelSize(
    vocab_size=1000,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    type_vocab_size=2,
)


def slow_module(folder, module, function):
    """Environment variables of a script in which each call of that function takes a tenth of a second more."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import time\nimport {module} as module\nown = module.{function}\n"
        "def slow(*arguments, **named):\n    time.sleep(0.1)\n    return own(*arguments, **named)\n"
        f"module.{function} = slow\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def random_variables(with_head=False):
    generator = np.random.default_rng(0)
    shapes = encoder_shapes(SIZE) | (head_shapes(SIZE)["squad"] if with_head else {})
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def squad_file_of(number):
    """The text of a SQuAD file with so many questions, about contexts of 400 words."""
    context = "the quick brown fox jumps over the lazy dog " * 45
    answers = [{"text": "quick", "answer_start": 4}]
    qas = [[{"id": f"{index}", "question": "what ?", "answers": answers}] for index in range(number)]
    paragraphs = [{"context": context, "qas": questions} for questions in qas]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def making_answers(folder):
    (folder / "squad.json").write_text(squad_file_of(3000))
    np.save(folder / "results.npy", np.zeros(1, prediction_file.result_dtype(384)))
    return "npy2json.py", {
        "vocab_file": VOCAB_FILE,
        "predict_file": folder / "squad.json",
        "all_results_file": folder / "results.npy",
        "output_dir": folder / "output" / "answers",
    }


def making_squad_records(folder):
    (folder / "squad.json").write_text(squad_file_of(3000))
    return "tools/create_squad_data.py", {
        "input_file": folder / "squad.json",
        "output_dir": folder / "output" / "parts",
        "vocab_file": VOCAB_FILE,
        "is_training": False,
    }


def making_pretraining_records(folder):
    # Not in `output`: the settings stay there, for a run that goes on with the parts.
    return "tools/create_pretraining_data.py", {
        "input_file": ROOT / "dataset" / "corpus.txt",
        "output_dir": folder / "parts",
        "vocab_file": VOCAB_FILE,
        "dupe_factor": 100000,
        "workers": 2,
        "part_num": 2,
    }


def converting_from_tensorflow(folder):
    names = {name: re.sub("/weight$", "/kernel", name.replace("-", "/")) for name in encoder_shapes(SIZE)}
    save_checkpoint(folder / "model.ckpt", {names[name]: value for name, value in random_variables().items()})
    return "convert_tf_ckpt_to_of.py", {
        "tf_checkpoint_path": folder / "model.ckpt",
        "of_dump_path": folder / "output" / "snapshot",
        "environment": slow_module(folder / "slow", "snapshots.layout", "_write_file"),
    }


def exporting(folder):
    with layout.open_writer(folder / "snapshot") as write:
        for name, value in random_variables(with_head=True).items():
            write(name, value)
    return "tools/convert_hf.py", {
        "snapshot_dir": folder / "snapshot",
        "num_attention_heads": 2,
        "hf_dump_path": folder / "output" / "model",
        "environment": slow_module(folder / "slow", "snapshots.layout", "read_variable"),
    }


def importing(folder):
    _, flags = exporting(folder)
    flags = {name: value for name, value in flags.items() if name != "environment"}
    exported = run("tools/convert_hf.py", "export", **flags | {"hf_dump_path": folder / "model"})
    assert exported.returncode == 0, exported.stderr
    return "tools/convert_hf.py", {
        "hf_dir": folder / "model",
        "of_dump_path": folder / "output" / "snapshot",
        "environment": slow_module(folder / "slower", "snapshots.layout", "_write_file"),
    }


def interrupt(work, folder, times, at="| 0/", direction=()):
    (folder / "output").mkdir()
    script, flags = work(folder)
    return script.rpartition("/")[2], Terminal(script, *direction, press_ctrl_c_at=at, times=times, **flags)


def assert_interrupted(script, terminal, times, name="SIGINT"):
    """It has ended at once, with one line below what it had printed, and no bar."""
    assert terminal.status == 128 + signal.Signals[name], terminal.output
    assert "Traceback" not in terminal.output and "Exception" not in terminal.output
    # What the terminal itself shows for a key that is pressed after the end.
    *_, error = (line for line in terminal.lines if line.strip("^C"))
    assert (error if times == 1 else error.removesuffix("^C")) == f"{script}: error: ended by {name}"
    # Only bars that have come to their end.
    assert not re.search(r"(?<!\d)\d?\d%\|", "\n".join(terminal.lines))
    assert times > 1 or terminal.is_left_clean()
    # A machine that is busy gets its time, but not that of the whole work.
    assert terminal.seconds_to_end < 8


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "work, at",
    [
        (making_answers, "tokenising:"),
        (making_squad_records, "tokenising:"),
        (making_pretraining_records, "0.00/"),
        (converting_from_tensorflow, "| 0/"),
    ],
)
def test_ctrl_c(tmp_path, work, at, times):
    script, terminal = interrupt(work, tmp_path, times, at)
    assert_interrupted(script, terminal, times)
    assert list((tmp_path / "output").iterdir()) == []
    assert [path.name for path in tmp_path.glob("parts/*") if path.name not in ("records.json", "vocab.txt")] == []


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("direction, work", [("import", importing), ("export", exporting)])
def test_ctrl_c_in_hugging_face_conversion(tmp_path, direction, work, times):
    script, terminal = interrupt(work, tmp_path, times, direction=(direction,))
    assert_interrupted(script, terminal, times)
    assert list((tmp_path / "output").iterdir()) == []


@pytest.fixture(scope="module")
def prediction(tmp_path_factory):
    """Flags of a prediction that goes on for ever; its results would go to the folder `output`."""
    folder = tmp_path_factory.mktemp("prediction")
    write_squad_parts(folder / "data", 40, is_training=False)
    flags = {**TINY_MODEL, "seq_length": 32, "data_part_num": 1, "batch_size_per_device": 1, "log_dir": folder}
    (folder / "output").mkdir()
    return flags | {
        "data_dir": folder / "data",
        "model_load_dir": small_models.write_tiny_squad_snapshot(folder / "snapshot"),
        "iter_num": 1000000,
        "all_results_file": folder / "output" / "results.npy",
    }


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("at", ["Device:", "CPU:", "Restoring", "| 0/", "batch/s]"])
def test_ctrl_c_in_prediction(prediction, at, times):
    """While the engine is loaded, the model is made, the graph is compiled, and batches are computed."""
    terminal = Terminal("run_squad_predict.py", press_ctrl_c_at=at, times=times, **prediction)
    assert_interrupted("run_squad_predict.py", terminal, times)
    assert list(prediction["all_results_file"].parent.iterdir()) == []


@pytest.mark.parametrize("at", ["Restoring", "batch/s]"])
def test_sigterm_in_prediction(prediction, at):
    terminal = Terminal("run_squad_predict.py", press_ctrl_c_at=at, send=signal.SIGTERM, **prediction)
    assert_interrupted("run_squad_predict.py", terminal, 1, "SIGTERM")
    assert list(prediction["all_results_file"].parent.iterdir()) == []


def test_ctrl_c_in_prediction_of_two_ranks(prediction):
    flags = {**prediction, "gpu_num_per_node": 2, "batch_size_per_device": 1}
    terminal = Terminal("run_squad_predict.py", press_ctrl_c_at="batch/s]", **flags)
    assert_interrupted("run_squad_predict.py", terminal, 1)


@pytest.mark.parametrize(
    "number, times", [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGHUP, 1)]
)
def test_merging_of_pieces(tmp_path, number, times):
    """For which the library keeps the main thread, here for much longer than the test waits."""
    generator = np.random.default_rng(0)
    letters = np.array(list(string.ascii_lowercase))
    words = ["".join(generator.choice(letters, 40)) for _ in range(20000)]
    (tmp_path / "text").write_text("\n".join(words))
    terminal = Terminal(
        "tools/train_vocab.py",
        input_file=tmp_path / "text",
        vocab_file=tmp_path / "vocab",
        vocab_size=1000000,
        min_frequency=1,
        press_ctrl_c_at="merging:",
        times=times,
        send=None if number == signal.SIGINT else number,
    )
    if number == signal.SIGHUP:
        # Who closes the terminal sees no more of it.
        assert terminal.status == 129
    else:
        assert_interrupted("train_vocab.py", terminal, times, number.name)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_script_that_is_told_to_end_cleans_up(tmp_path):
    (tmp_path / "output").mkdir()
    script, flags = making_squad_records(tmp_path)
    terminal = Terminal(script, press_ctrl_c_at="writing:", send=signal.SIGTERM, **flags)
    assert_interrupted("create_squad_data.py", terminal, 1, "SIGTERM")
    assert list((tmp_path / "output").iterdir()) == []
