"""run_pretraining.py as its users run it: the form of its output, snapshots, resumption, and one line for bad input."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

import config
from engine import oneflow_loader
from made_parts import write_pretraining_part
from pretraining_runs import LOSS_LINE, SCRIPT, logged, pretrain
from records import ofrecord
from running import ROOT, TINY_MODEL, assert_fails_with_one_line, run
from snapshots import layout

pytestmark = pytest.mark.slow

NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


def loss_lines(result):
    assert result.returncode == 0, result.stderr
    return [LOSS_LINE.fullmatch(line).groups() for line in result.stdout.splitlines() if line.startswith("iter ")]


def expected_variables(vocab_size=200, hidden=32, layers=2, positions=40, intermediate=128):
    """name -> shape of all that a pre-training model has, as docs/snapshot-format.md lists it."""
    shapes = {
        "bert-embeddings-word_embeddings": (vocab_size, hidden),
        "bert-embeddings-token_type_embeddings": (2, hidden),
        "bert-embeddings-position_embeddings": (positions, hidden),
        "bert-pooler-dense-weight": (hidden, hidden),
        "bert-pooler-dense-bias": (hidden,),
        "cls-predictions-transform-dense-weight": (hidden, hidden),
        "cls-predictions-transform-dense-bias": (hidden,),
        "cls-predictions-output_bias": (vocab_size,),
        "cls-seq_relationship-output_weights": (2, hidden),
        "cls-seq_relationship-output_bias": (2,),
    }
    normalised = ["bert-embeddings", "cls-predictions-transform"]
    for index in range(layers):
        layer = f"bert-encoder-layer_{index}"
        for name in ("query", "key", "value"):
            shapes[f"{layer}-attention-self-{name}-weight"] = (hidden, hidden)
            shapes[f"{layer}-attention-self-{name}-bias"] = (hidden,)
        for name, inputs, outputs in (
            ("attention-output", hidden, hidden),
            ("intermediate", hidden, intermediate),
            ("output", intermediate, hidden),
        ):
            shapes[f"{layer}-{name}-dense-weight"] = (inputs, outputs)
            shapes[f"{layer}-{name}-dense-bias"] = (outputs,)
        normalised += [f"{layer}-attention-output", f"{layer}-output"]
    for name in normalised:
        shapes[f"{name}-LayerNorm-gamma"] = shapes[f"{name}-LayerNorm-beta"] = (hidden,)
    return shapes


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A run of 30 iterations over 12 samples: (the finished process, its output folder)."""
    folder = tmp_path_factory.mktemp("first_run")
    (folder / "data").mkdir()
    write_pretraining_part(folder / "data" / "part-0", 12)
    result = pretrain(
        folder / "data",
        folder / "output",
        iter_num=30,
        loss_print_every_n_iter=5,
        save_last_snapshot=True,
        model_save_every_n_iter=12,
    )
    return result, folder / "output"


@pytest.mark.engine
def test_output_has_the_tutorials_form(first_run):
    result, output = first_run
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[:3] == ["=" * 66, "Running bert: num_gpu_per_node = 1, num_nodes = 1.", "=" * 66]
    names = (
        "gpu_num_per_node node_num node_list learning_rate weight_decay_rate batch_size_per_device iter_num "
        "warmup_batches log_every_n_iter data_dir data_part_num use_fp16 use_boxing_v2 loss_print_every_n_iter "
        "model_save_every_n_iter model_save_dir save_last_snapshot model_load_dir log_dir seq_length "
        "max_predictions_per_seq num_hidden_layers num_attention_heads max_position_embeddings type_vocab_size "
        "vocab_size attention_probs_dropout_prob hidden_dropout_prob hidden_size_per_head"
    ).split()
    assert [line.split(" = ")[0] for line in lines[3 : 3 + len(names)]] == names
    assert "node_list = None" in lines and "use_fp16 = None" in lines and "save_last_snapshot = True" in lines
    rule = lines.index("-" * 66)
    assert re.fullmatch(r"Time stamp: \d{4}-\d\d-\d\d-\d\d:\d\d:\d\d", lines[rule + 1])
    assert lines[rule + 2].startswith("Device: ")
    rule += lines[rule + 2].startswith("Device: cpu")  # which says more: whether the native kernels are there
    assert lines[rule + 3] == "Init model on demand"
    rest = [re.sub(r"^iter (\d+), .*", r"iter \1", line) for line in lines[rule + 4 :]]
    rest = [re.sub(r"[\d.]+\(sentences/sec\)", "N(sentences/sec)", line) for line in rest]
    assert rest == [
        "iter 4",
        "iter 9",
        f"Saving model to {output}/snapshot_12.",
        "iter 14",
        "iter 19",
        f"Saving model to {output}/snapshot_24.",
        "iter 24",
        "iter 29",
        f"Saving model to {output}/last_snapshot.",
        "-" * 66,
        "average speed: N(sentences/sec)",
        "-" * 66,
    ]
    assert len(loss_lines(result)) == 6


@pytest.mark.engine
def test_printed_losses_are_means_of_the_logged_ones(first_run):
    result, output = first_run
    log = logged(output)
    assert [line["iter"] for line in log] == list(range(30))
    for line in loss_lines(result):
        last = int(line[0])
        for name, printed in zip(("total_loss", "mlm_loss", "nsp_loss"), line[1:], strict=True):
            mean = np.mean([entry[name] for entry in log[last - 4 : last + 1]])
            assert printed == f"{mean:.3f}"
    rates = [entry["learning_rate"] for entry in log]
    assert rates[:4] == pytest.approx([0, 0.5e-3, 1e-3 * 28 / 30, 1e-3 * 27 / 30])


@pytest.mark.engine
def test_loss_falls(first_run):
    losses = [float(line[1]) for line in loss_lines(first_run[0])]
    assert losses[-1] < losses[0] - 0.3


def test_start_up_noise_is_in_the_log_file_only(first_run):
    assert "libibverbs" in (first_run[1] / "oneflow.log").read_text()


@pytest.mark.engine
def test_snapshot_layout(first_run):
    folder = first_run[1] / "last_snapshot"
    shapes = expected_variables()
    variables = layout.variable_names(folder)
    step = "System-Train-TrainStep-PretrainJob"
    assert set(variables) == {name + suffix for name in shapes for suffix in ("", "-m", "-v")} | {step}
    assert sorted(os.listdir(folder)) == sorted([*variables, "snapshot_done"])
    for name, shape in shapes.items():
        for suffix in ("", "-m", "-v"):
            assert layout.read_meta(folder / (name + suffix)) == (shape, np.float32)
            assert (folder / (name + suffix) / "out").stat().st_size == 4 * np.prod(shape)
    described = json.loads((folder / "bert-embeddings-word_embeddings" / "bert_config.json").read_text())
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert {name: described[name] for name in sizes} == sizes
    assert (folder / step / "out").read_bytes() == (30).to_bytes(8, "little")
    assert (first_run[1] / "snapshot_12" / step / "out").read_bytes() == (12).to_bytes(8, "little")


@pytest.mark.engine
def test_oneflow_reads_the_snapshot(first_run):
    folder = first_run[1] / "last_snapshot"
    loaded = oneflow_loader.load().load(str(folder))
    assert set(loaded) == set(layout.variable_names(folder))
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy(), layout.read_variable(folder, name))


@pytest.mark.engine
def test_equal_seeds_give_equal_losses(first_run, tiny_data, tmp_path):
    """The first run had these records too, and for three steps the same learning rates."""
    losses = []
    for seed in (12345, 5):
        result = pretrain(tiny_data, tmp_path / str(seed), seed=seed)
        assert result.returncode == 0, result.stderr
        losses.append([line["total_loss"] for line in logged(tmp_path / str(seed))])
    same = [line["total_loss"] for line in logged(first_run[1])]
    assert losses[0][:3] == same[:3]
    assert losses[0] != losses[1]


def read_all(folder):
    return {name: (folder / name / "out").read_bytes() for name in layout.variable_names(folder)}


@pytest.mark.engine
def test_restored_step_equals_the_uninterrupted_one(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_pretraining_part(data / "part-0", 1)  # so that every batch is the same
    flags = {**NO_DROPOUT, "iter_num": 6, "save_last_snapshot": True, "batch_size_per_device": 2}
    whole = pretrain(data, tmp_path / "whole", **flags, model_save_every_n_iter=1)
    assert whole.returncode == 0, whole.stderr
    restored = pretrain(
        data,
        tmp_path / "restored",
        **flags,
        model_save_every_n_iter=1,
        model_load_dir=tmp_path / "whole" / "snapshot_3",
    )
    assert f"Restoring model from {tmp_path}/whole/snapshot_3." in restored.stdout.splitlines(), restored.stderr
    assert "train step of the snapshot is 3, so the learning rate is 0 after 3 of 6 iterations" in restored.stdout
    before = read_all(tmp_path / "whole" / "snapshot_3")
    expected = read_all(tmp_path / "whole" / "snapshot_4")
    assert expected["bert-pooler-dense-weight"] != before["bert-pooler-dense-weight"]
    assert read_all(tmp_path / "restored" / "snapshot_1") == expected
    assert read_all(tmp_path / "restored" / "snapshot_3") == read_all(tmp_path / "whole" / "last_snapshot")


def test_zeroed_train_step_restarts_the_schedule(first_run, tiny_data, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(first_run[1] / "last_snapshot", model)
    (model / "System-Train-TrainStep-PretrainJob" / "out").write_bytes(bytes(8))
    result = pretrain(tiny_data, tmp_path / "zeroed", model_load_dir=model)
    assert result.returncode == 0, result.stderr
    assert "learning rate is 0" not in result.stdout
    assert [line["train_step"] for line in logged(tmp_path / "zeroed")] == [0, 1, 2, 3]
    assert [line["learning_rate"] for line in logged(tmp_path / "zeroed")][:2] == [0, 0.5e-3]

    # The same without touching the file, and without the flags of the model's shape.
    flags = {name: None for name in TINY_MODEL}
    again = pretrain(
        tiny_data, tmp_path / "reset", model_load_dir=first_run[1] / "last_snapshot", reset_train_step=True, **flags
    )
    assert again.returncode == 0, again.stderr
    losses = [[line["total_loss"] for line in logged(tmp_path / name)] for name in ("zeroed", "reset")]
    assert losses[0] == losses[1]


def test_restoring_without_meta_and_with_other_variables(first_run, tiny_data, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(first_run[1] / "last_snapshot", model)
    for meta in model.glob("*/meta"):
        meta.unlink()
    shutil.rmtree(model / "cls-seq_relationship-output_bias")
    shutil.rmtree(model / "cls-seq_relationship-output_weights")
    shutil.copytree(model / "bert-pooler-dense-bias", model / "cls-squad-output-bias")
    result = pretrain(tiny_data, tmp_path / "output", model_load_dir=model)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    missing = "cls-seq_relationship-output_weights, cls-seq_relationship-output_bias"
    assert f"Initialised, as the snapshot lacks them: {missing}." in lines
    assert "Ignored other variables of the snapshot: 1." in lines
    assert [line["train_step"] for line in logged(tmp_path / "output")] == [30, 31, 32, 33]


def test_no_space_leaves_the_old_snapshot(first_run, tiny_data, tmp_path):
    flags = {"save_last_snapshot": True, "vocab_size": 20000, "iter_num": 1}
    shutil.copytree(first_run[1] / "last_snapshot", tmp_path / "last_snapshot")
    before = read_all(tmp_path / "last_snapshot")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # the word embeddings need more
    try:
        result = pretrain(tiny_data, tmp_path, **flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_fails_with_one_line(result, "File too large", tmp_path / "last_snapshot", status=1)
    assert read_all(tmp_path / "last_snapshot") == before
    assert not list(tmp_path.glob(".last_snapshot.*"))


def test_no_memory_for_the_graph(tiny_data, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, limits[1]))
    try:
        result = pretrain(tiny_data, tmp_path, batch_size_per_device=10_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert result.returncode == 1
    # OneFlow has its own say before.
    assert "Traceback" not in result.stderr
    assert "error: out of memory" in result.stderr.splitlines()[-1]


def test_booleans_and_repeated_flags():
    flags = ["--save_last_snapshot", "False", "--use_boxing_v2", "--iter_num=99", "--iter_num", "1", "--data_dir=x"]
    args = config.parse_pretraining_args(flags)
    assert (args.save_last_snapshot, args.use_boxing_v2, args.iter_num) == (False, True, 1)


def test_help_reads_well():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for text in ("--warmup_batches N", "(default: 1144000)", "devices:", "model:", "--device {auto,cuda,cpu}"):
        assert text in result.stdout


class TestBadInput:
    """Each ends with status 2 and one line, before anything is trained."""

    def check(self, tiny_data, tmp_path, *fragments, status=2, **flags):
        data_dir = flags.pop("data_dir", tiny_data)
        assert_fails_with_one_line(pretrain(data_dir, tmp_path / "output", **flags), *fragments, status=status)

    def test_data_dir_missing(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "--data_dir", "no such folder", data_dir=tmp_path / "nothing")

    def test_no_part(self, tiny_data, tmp_path):
        (tmp_path / "empty").mkdir()
        self.check(tiny_data, tmp_path, "part-0", tmp_path / "empty", data_dir=tmp_path / "empty")

    def test_too_few_parts(self, tiny_data, tmp_path):
        for number in (3, 2**31 - 1):
            self.check(tiny_data, tmp_path, "has only 1 of these parts: part-1 is missing", data_part_num=number)

    def test_truncated_part(self, tiny_data, tmp_path):
        part = tiny_data / "part-0"
        part.write_bytes(part.read_bytes()[:-7])
        self.check(tiny_data, tmp_path, part, "truncated")

    def test_garbage_part(self, tiny_data, tmp_path):
        (tiny_data / "part-0").write_bytes(np.random.default_rng(0).bytes(5000))
        self.check(tiny_data, tmp_path, tiny_data / "part-0")

    def test_empty_part(self, tiny_data, tmp_path):
        (tiny_data / "part-0").write_bytes(b"")
        self.check(tiny_data, tmp_path, tiny_data / "part-0", "empty")

    def test_missing_field(self, tiny_data, tmp_path):
        _rewrite(tiny_data / "part-0", lambda index, features: features.pop("segment_ids"))
        self.check(tiny_data, tmp_path, "record 0: has no field segment_ids")

    def test_other_seq_length(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "holds 32 numbers, but --seq_length is 30", seq_length=30)

    def test_other_max_predictions(self, tiny_data, tmp_path):
        self.check(
            tiny_data, tmp_path, "holds 5 numbers, but --max_predictions_per_seq is 9", max_predictions_per_seq=9
        )

    def test_ids_beyond_the_vocabulary(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "input_ids", "--vocab_size=20", vocab_size=20)

    @pytest.mark.parametrize("kernels", ["", "none"])
    def test_later_record(self, tiny_data, tmp_path, monkeypatch, kernels):
        """The native reader would find it in mid-run, OneFlow's own never."""
        monkeypatch.setenv("BERT_KERNELS", kernels)

        def spoil(index, features):
            if index == 9:
                features["input_ids"][3] = 5000

        _rewrite(tiny_data / "part-0", spoil)
        self.check(tiny_data, tmp_path, "record 9", "5000", check_data=kernels != "none")

    def test_sequence_longer_than_positions(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "--max_position_embeddings=40", seq_length=64)

    def test_model_load_dir_missing(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "no such folder", model_load_dir=tmp_path / "nothing")
        # It is found out before the engine is loaded, which for a large model takes minutes.
        assert not (tmp_path / "output").exists()

    def test_model_load_dir_is_no_snapshot(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "snapshot_done", model_load_dir=tiny_data)

    def test_snapshot_of_another_size(self, first_run, tiny_data, tmp_path):
        self.check(
            tiny_data,
            tmp_path,
            "--vocab_size=300, but the model has 200",
            "bert_config.json",
            model_load_dir=first_run[1] / "last_snapshot",
            vocab_size=300,
        )

    def test_truncated_variable(self, first_run, tiny_data, tmp_path):
        model = tmp_path / "model"
        shutil.copytree(first_run[1] / "last_snapshot", model)
        out = model / "bert-pooler-dense-bias" / "out"
        out.write_bytes(out.read_bytes()[:-1])
        self.check(tiny_data, tmp_path, out, "127 bytes", "128", model_load_dir=model)

    def test_unwritable_model_save_dir(self, tiny_data, tmp_path):
        (tmp_path / "file").touch()
        self.check(
            tiny_data, tmp_path, "--model_save_dir", model_save_dir=tmp_path / "file" / "x", save_last_snapshot=True
        )

    def test_a_snapshot_replaces_nothing_else(self, tiny_data, tmp_path):
        (tmp_path / "save" / "last_snapshot").mkdir(parents=True)
        (tmp_path / "save" / "last_snapshot" / "thesis.txt").touch()
        self.check(
            tiny_data,
            tmp_path,
            "last_snapshot is not a snapshot",
            model_save_dir=tmp_path / "save",
            save_last_snapshot=True,
        )
        assert (tmp_path / "save" / "last_snapshot" / "thesis.txt").exists()

    def test_huge_number(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "--iter_num", "below 2^31", iter_num=10**30)

    def test_huge_warmup(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "--warmup_batches", "below 2^31", warmup_batches=10**30)

    @pytest.mark.parametrize("flag", ["iter_num", "batch_size_per_device"])
    def test_zero(self, tiny_data, tmp_path, flag):
        self.check(tiny_data, tmp_path, flag, "at least 1", **{flag: 0})

    def test_cuda_without_a_gpu(self, tiny_data, tmp_path):
        if shutil.which("nvidia-smi"):
            pytest.skip("this machine may have a GPU")
        self.check(tiny_data, tmp_path, "--device=cuda", "--device=cpu", device="cuda")

    def test_unknown_flag_and_missing_data_dir(self):
        assert_fails_with_one_line(run(SCRIPT), "--data_dir")
        assert_fails_with_one_line(run(SCRIPT, "--no_such_flag"), "--no_such_flag")
        assert_fails_with_one_line(run(SCRIPT, data_dir="x", no_such_flag=1), "--no_such_flag")

    def test_not_a_boolean(self, tiny_data, tmp_path):
        self.check(tiny_data, tmp_path, "--save_last_snapshot", "'maybe'", save_last_snapshot="maybe")


def _rewrite(path, change):
    """Changes the features of every record of a part in place: change(index, features)."""
    records = [features for _, features in ofrecord.read(path)]
    with ofrecord.open_writer(path) as write:
        for index, features in enumerate(records):
            change(index, features)
            write(ofrecord.serialize(features))
