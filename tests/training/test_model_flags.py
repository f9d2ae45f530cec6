"""The flags of the model's shape: left out, as the model has them; given, they must agree."""

import json

import numpy as np
import pytest

import config
from records import description
from records.checks import DataSet
from running import TINY_MODEL
from snapshots import layout, model_files, variables
from system.errors import UserError
from training import model_flags

SIZE = variables.ModelSize(200, 32, 2, 2, 128, 40, 2)
VOCAB = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def write_model(folder, files, size=SIZE, left_out=()):
    """A snapshot of zeros of that size, described by `files`."""
    shapes = variables.encoder_shapes(size) | variables.head_shapes(size)["squad"]
    with layout.open_writer(folder) as write:
        for name, shape in shapes.items():
            if name not in left_out:
                of_model = files if name == variables.WORD_EMBEDDINGS else None
                write(name, np.zeros(shape, np.float32), of_model)
    return folder


def settled(tmp_path, *flags, model=None):
    """The flags that are in force for that command line."""
    load = [f"--model_load_dir={model}"] if model else []
    args = config.parse_squad_args([f"--data_dir={tmp_path}", "--seq_length=32", *load, *flags])
    model_flags.settle(args)
    return args


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", model_files.encode(model_files.config_of(SIZE), VOCAB, True))


def test_left_out_they_are_those_of_the_model(tmp_path, model):
    args = settled(tmp_path, model=model)
    assert {name: getattr(args, name) for name in TINY_MODEL} == TINY_MODEL
    assert (args.intermediate_size, args.type_vocab_size) == (128, 2)
    # Dropout is a setting of training: the file has 0.1.
    assert settled(tmp_path, "--hidden_dropout_prob=0.0", model=model).hidden_dropout_prob == 0.0


def test_without_a_model_they_are_the_tutorials(tmp_path):
    args = settled(tmp_path)
    assert {name: getattr(args, name) for name in config.SHAPE_DEFAULTS} == config.SHAPE_DEFAULTS | {
        "intermediate_size": 4096
    }


def test_a_new_models_vocabulary_is_that_of_its_records(tmp_path):
    described = description.describe(description.PRETRAINING, {"[PAD]": 0, "a": 6}, VOCAB, True, 32)
    description.write(tmp_path, described, VOCAB)
    assert settled(tmp_path).vocab_size == 7


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("num_hidden_layers=4", 2), ("num_attention_heads=4", 2), ("hidden_size_per_head=8", 16),
        ("intermediate_size=64", 128), ("max_position_embeddings=64", 40), ("vocab_size=300", 200),
        ("type_vocab_size=3", 2),
    ],
)  # fmt: skip
def test_given_they_must_agree(tmp_path, model, flag, found):
    with pytest.raises(UserError, match=rf"--{flag}, but the model has {found} \(.*bert_config.json\)"):
        settled(tmp_path, f"--{flag}", model=model)


class TestOldSnapshots:
    """Without a bert_config.json the weights tell all but the heads."""

    @pytest.fixture
    def old(self, tmp_path):
        return write_model(tmp_path / "old", {})

    @pytest.mark.parametrize("flags", [["--num_attention_heads=2"], ["--hidden_size_per_head=16"]])
    def test_heads_are_enough(self, tmp_path, old, flags):
        args = settled(tmp_path, *flags, model=old)
        assert {name: getattr(args, name) for name in TINY_MODEL} == TINY_MODEL

    def test_heads_are_needed(self, tmp_path, old):
        with pytest.raises(UserError, match="does not tell the number of attention heads; give --num_attention_heads"):
            settled(tmp_path, model=old)

    def test_a_configuration_is_as_good(self, tmp_path, old):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(model_files.config_of(SIZE)))
        assert settled(tmp_path, f"--bert_config_file={path}", model=old).num_attention_heads == 2

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--num_attention_heads=2", "--num_hidden_layers=4"], "--num_hidden_layers=4, but the model has 2"),
            (["--num_attention_heads=4", "--hidden_size_per_head=16"], "4 x --hidden_size_per_head=16 is not .* 32"),
        ],
    )
    def test_the_rest_must_agree(self, tmp_path, old, flags, message):
        with pytest.raises(UserError, match=message):
            settled(tmp_path, *flags, model=old)

    def test_a_missing_layer_is_named(self, tmp_path):
        left_out = [name for name in variables.encoder_shapes(SIZE) if "layer_0-attention-output-dense" in name]
        model = write_model(tmp_path / "broken", {}, left_out=left_out)
        with pytest.raises(UserError, match="has no variable bert-encoder-layer_0-attention-output-dense-weight"):
            settled(tmp_path, "--num_attention_heads=2", model=model)


def test_a_configuration_of_other_weights_is_refused(tmp_path):
    other = model_files.config_of(variables.ModelSize(200, 32, 3, 2, 128, 40, 2))
    model = write_model(tmp_path / "model", model_files.encode(other))
    with pytest.raises(UserError, match="has num_hidden_layers 3, but the weights are of a model with 2"):
        settled(tmp_path, model=model)


def records_of(vocab_data=VOCAB, do_lower_case=True, vocab_size=200):
    described = description.describe(description.SQUAD_TRAINING, {"x": vocab_size - 1}, vocab_data, do_lower_case, 32)
    return DataSet([], {}, None, description=described)


def test_records_of_the_models_vocabulary_and_case(tmp_path, model, capsys):
    args = settled(tmp_path, model=model)
    model_flags.check_records(args, records_of())
    assert capsys.readouterr().out == ""
    model_flags.check_records(args, records_of(vocab_size=150))
    assert "the vocabulary of the records has 150 pieces, the model 200" in capsys.readouterr().out


def test_records_with_too_few_masks(tmp_path, capsys):
    described = description.describe(
        description.PRETRAINING, {"x": 30521}, VOCAB, True, 512, max_predictions_per_seq=20, masked_lm_prob=0.15
    )
    model_flags.check_records(settled(tmp_path), DataSet([], {}, None, description=described))
    assert "mask at most 20 pieces of a sequence, where 15% of 512 are 77" in capsys.readouterr().out
    described["max_predictions_per_seq"] = 77
    model_flags.check_records(settled(tmp_path), DataSet([], {}, None, description=described))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (records_of(b"[PAD]\n[UNK]\n[SEP]\n[CLS]\n[MASK]\n"), "made with another vocabulary"),
        (records_of(do_lower_case=False), "made with --do_lower_case=False, the model of .* has True"),
        (records_of(vocab_size=300), "a vocabulary of 300 pieces, --vocab_size=200 is too small"),
    ],
)
def test_records_of_another_vocabulary_or_case_are_refused(tmp_path, model, records, message):
    with pytest.raises(UserError, match=message):
        model_flags.check_records(settled(tmp_path, model=model), records)


def test_files_of_a_snapshot(tmp_path, model):
    """Vocabulary and case are those of the model, or else of the records; the dropout is the run's."""
    files = model_flags.files_of_model(
        settled(tmp_path, "--hidden_dropout_prob=0.0", model=model), DataSet([], {}, None)
    )
    assert files["vocab.txt"] == VOCAB
    assert json.loads(files["tokenizer_config.json"]) == {"do_lower_case": True}
    expected = model_files.config_of(SIZE, hidden_dropout_prob=0.0)
    assert json.loads(files["bert_config.json"]) == expected
    assert expected["hidden_act"] == "gelu" and expected["num_attention_heads"] == 2
    args = settled(tmp_path, "--num_hidden_layers=2")
    assert set(model_flags.files_of_model(args, DataSet([], {}, None))) == {"bert_config.json"}
    description.write(tmp_path, records_of().description, VOCAB)
    assert model_flags.files_of_model(args, records_of())["vocab.txt"] == VOCAB
