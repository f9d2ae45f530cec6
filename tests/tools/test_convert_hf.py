"""Tests tools/convert_hf.py. tests/models/test_transformers.py loads exported folders with transformers itself."""

import json
import os
import stat
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import convert_hf
from hugging_face_folders import (
    CONFIG,
    ENCODER,
    HEADS,
    HIDDEN,
    MASKED_LM,
    MODELS,
    POOLER,
    POSITIONS,
    SQUAD,
    VOCAB,
    as_variables,
    random_tensors,
    write_hf_folder,
    write_shards,
)
from in_process import full_disk, run_in_process
from running import assert_fails_with_one_line, run
from snapshots import layout
from snapshots.variables import read_config
from system.errors import UserError
from text.hugging_face_tokenizer import read_tokenizer

pytestmark = pytest.mark.slow

SCRIPT = "tools/convert_hf.py"
FLAGS_LINE = (
    "flags for this model: --num_hidden_layers=2 --num_attention_heads=4 --hidden_size_per_head=4 "
    "--vocab_size=50 --max_position_embeddings=24"
)


def write_snapshot(folder, variables):
    with layout.open_writer(folder) as write:
        for name, array in variables.items():
            write(name, np.asarray(array))
    return folder


def assert_snapshot_holds(folder, variables):
    assert layout.variable_names(folder) == sorted(variables)
    for name, expected in variables.items():
        found = layout.read_variable(folder, name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=name)


def import_hf(folder, target, *arguments, **flags):
    return run_in_process(convert_hf.main, SCRIPT, "import", *arguments, hf_dir=folder, of_dump_path=target, **flags)


def export_hf(folder, target, *arguments, **flags):
    return run_in_process(
        convert_hf.main, SCRIPT, "export", *arguments, snapshot_dir=folder, hf_dump_path=target, **flags
    )


def read_safetensors(path):
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


@pytest.mark.parametrize("model", MODELS)
def test_import_of_each_class(tmp_path, model):
    tensors = random_tensors(MODELS[model])
    result = import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of")
    assert result.returncode == 0, result.stderr
    assert_snapshot_holds(tmp_path / "of", as_variables(tensors, MODELS[model]))
    assert result.stdout.splitlines()[-1] == FLAGS_LINE


def test_both_directions_as_processes(tmp_path):
    tensors = random_tensors(MODELS["BertForPreTraining"])
    write_hf_folder(tmp_path / "hf", tensors)
    result = run(SCRIPT, "import", hf_dir=tmp_path / "hf", of_dump_path=tmp_path / "of")
    assert (result.returncode, result.stderr) == (0, "")
    names = sorted(as_variables(tensors, MODELS["BertForPreTraining"]))
    parameters = sum(tensor.size for tensor in tensors.values())
    assert result.stdout.splitlines() == [
        f"converted {len(names)} variables: {parameters:,} parameters, {4 * parameters:,} bytes, in {tmp_path / 'of'}",
        "the snapshot has no vocabulary: scripts that read text need --vocab_file",
        FLAGS_LINE,
    ]
    result = run(SCRIPT, "export", snapshot_dir=tmp_path / "of", hf_dump_path=tmp_path / "hf2", num_attention_heads=4)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"converted {len(names)} variables: {parameters:,} parameters, {4 * parameters:,} bytes, in "
        f"{tmp_path / 'hf2'}, for BertForPreTraining"
    ]
    exported = read_safetensors(tmp_path / "hf2" / "model.safetensors")
    assert exported.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(exported[key], tensor)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "0.auto_model.", "module._orig_mod."])
@pytest.mark.parametrize("model", ["BertForPreTraining", "BertModel"])
def test_names_within_a_wrapper(tmp_path, prefix, model):
    tensors = random_tensors(MODELS[model])
    wrapped = {prefix + key: tensor for key, tensor in tensors.items()}
    result = import_hf(write_hf_folder(tmp_path / "hf", wrapped), tmp_path / "of")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"stripped {prefix} from the names of the tensors"
    assert_snapshot_holds(tmp_path / "of", as_variables(tensors, MODELS[model]))


def test_file_without_a_bert_lists_its_names(tmp_path):
    tensors = {f"decoder.{letter}": np.zeros(2, np.float32) for letter in "fedcba"}
    result = import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of")
    names = "6 names: decoder.a, decoder.b, decoder.c, decoder.d, decoder.e, ..."
    assert_fails_with_one_line(result, "hf: not a BERT: it has no tensor bert.embeddings.word_embeddings.weight", names)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    tensors = random_tensors(MODELS["BertModel"])
    tensors["pooler.dense.bias"][3] = value
    result = import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of")
    assert_fails_with_one_line(result, "model.safetensors: pooler.dense.bias holds NaN or infinity")
    assert not (tmp_path / "of").exists()
    write_snapshot(tmp_path / "of", as_variables(tensors, MODELS["BertModel"]))
    result = export_hf(tmp_path / "of", tmp_path / "hf2", num_attention_heads=HEADS)
    assert_fails_with_one_line(result, f"{tmp_path / 'of/bert-pooler-dense-bias'} holds NaN or infinity")


def test_padded_vocabulary(tmp_path):
    tensors = random_tensors(MODELS["BertModel"])
    tensors["embeddings.word_embeddings.weight"] = np.zeros((56, HIDDEN), np.float32)
    result = import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of")
    assert_fails_with_one_line(result, "config.json: has vocab_size 50, but the weights have 56", "multiple of 8")


BERT_TOKENIZER: dict[str, Any] = {
    "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "unk_token": "[UNK]", "vocab": {}},
    "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, "handle_chinese_chars": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}


@pytest.mark.parametrize(
    "config, tokenizer, do_lower_case, differences",
    [
        ({}, {}, None, []),
        ({"do_lower_case": True, "tokenizer_class": "BertTokenizer"}, BERT_TOKENIZER, True, []),
        ({"do_lower_case": False, "tokenizer_class": "BertTokenizerFast"}, {}, False, []),
        ({}, BERT_TOKENIZER | {"normalizer": BERT_TOKENIZER["normalizer"] | {"lowercase": False}}, False, []),
        ({"do_lower_case": True, "strip_accents": False}, {}, True, ["strip_accents is false"]),
        ({"do_lower_case": False, "strip_accents": True}, {}, False, ["strip_accents is true"]),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, None, ["its tokeniser is a BertJapaneseTokenizer"]),
        ({"tokenize_chinese_chars": False}, {}, None, ["tokenize_chinese_chars is false"]),
        ({"do_basic_tokenize": False}, {}, None, ["do_basic_tokenize is false"]),
        ({}, BERT_TOKENIZER | {"normalizer": {"type": "NFKC"}}, None, ["it normalises by NFKC"]),
        ({}, BERT_TOKENIZER | {"pre_tokenizer": None}, True, ["it splits text by nothing"]),
        ({}, BERT_TOKENIZER | {"model": {"type": "Unigram"}}, True, ["its pieces are Unigram"]),
        ({"subword_tokenizer_type": "character"}, {}, None, ["its pieces are character"]),
    ],
)
def test_differences_between_tokenisers(tmp_path, config, tokenizer, do_lower_case, differences):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer:
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = read_tokenizer(tmp_path)
    assert found.do_lower_case == do_lower_case
    assert len(found.differences) == len(differences)
    assert all(text in difference for text, difference in zip(differences, found.differences, strict=True))


def test_import_reports_the_tokeniser(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(MODELS["BertModel"]))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": true}')
    result = import_hf(folder, tmp_path / "of")
    assert result.stdout.splitlines()[-1] == "a cased model: give --do_lower_case=False to scripts that read text"
    assert "warning: " in result.stderr and "strip_accents is true" in result.stderr


def test_vocabulary_that_is_not_wordpiece(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(MODELS["BertModel"]))
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(
        str(folder / "tokenizer.json")
    )
    result = import_hf(folder, tmp_path / "of", vocab_dump_path=tmp_path / "vocab.txt")
    assert_fails_with_one_line(result, "its pieces are BPE", "leave out --vocab_dump_path")
    assert not (tmp_path / "of").exists()


def test_empty_lines_of_a_vocabulary(tmp_path):
    """Empty lines take an id, except at the end of the file."""
    snapshot = write_snapshot(tmp_path / "of", as_variables(random_tensors(MODELS["BertModel"]), MODELS["BertModel"]))
    pieces = ["[UNK]", "", "[unused0]", *(f"a{index}" for index in range(VOCAB - 3))]
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join([*pieces, "", "", ""]).encode())
    flags = {"num_attention_heads": HEADS, "vocab_file": tmp_path / "vocab.txt"}
    result = export_hf(snapshot, tmp_path / "hf", do_lower_case=False, **flags)
    assert "vocab.txt: no piece has a capital letter" in result.stderr
    assert result.returncode == 0
    assert (tmp_path / "hf/vocab.txt").read_text().splitlines() == ["[UNK]", "[unused1]", *pieces[2:]]


def test_import_from_early_transformers(tmp_path):
    """LayerNorm.gamma and .beta, a stored constant, a second copy of the tied tensors, no pooler."""
    table = ENCODER | MASKED_LM
    tensors = random_tensors(table)
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(POSITIONS)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    result = import_hf(write_hf_folder(tmp_path / "hf", old), tmp_path / "of")
    assert result.returncode == 0, result.stderr
    assert_snapshot_holds(tmp_path / "of", as_variables(tensors, table))
    assert "skipped bert.embeddings.position_ids: a constant" in result.stdout


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tied_output_weights_may_be_stored_twice(tmp_path, dtype):
    tensors = {key: tensor.astype(dtype) for key, tensor in random_tensors(ENCODER | MASKED_LM).items()}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    assert import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of").returncode == 0


def test_untied_output_weights_are_rejected(tmp_path):
    tensors = random_tensors(ENCODER | MASKED_LM)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    result = import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of")
    assert_fails_with_one_line(result, "cls.predictions.decoder.weight differs from")


def test_head_of_another_task_is_skipped_by_name(tmp_path):
    tensors = random_tensors(ENCODER | POOLER)
    folder = write_hf_folder(tmp_path / "hf", tensors | {"span_head.weight": np.ones((3, HIDDEN), np.float32)})
    result = import_hf(folder, tmp_path / "of")
    assert_snapshot_holds(tmp_path / "of", as_variables(tensors, ENCODER | POOLER))
    assert "skipped span_head.weight: of a head" in result.stdout


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
    tensors = {key: tensor.astype(dtype) for key, tensor in random_tensors(ENCODER).items()}
    result = import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "of")
    assert result.returncode == 0, result.stderr
    widened = {key: tensor.astype(np.float32) for key, tensor in tensors.items()}
    assert_snapshot_holds(tmp_path / "of", as_variables(widened, ENCODER))
    assert f"stored as float32: {len(tensors)} variables of " in result.stdout


def test_import_of_shards(tmp_path):
    tensors = random_tensors(ENCODER | POOLER)
    result = import_hf(write_shards(tmp_path / "hf", tensors), tmp_path / "of")
    assert result.returncode == 0, result.stderr
    assert_snapshot_holds(tmp_path / "of", as_variables(tensors, ENCODER | POOLER))


@pytest.mark.parametrize(
    "weight_map",
    ['{"weight_map": {"a": "../elsewhere.safetensors"}}', '{"weight_map": {"a": 1}}', '{"weight_map": 3}', "[", "{}"],
)
def test_invalid_index_of_shards(tmp_path, weight_map):
    folder = write_shards(tmp_path / "hf", random_tensors(ENCODER))
    (folder / "model.safetensors.index.json").write_text(weight_map)
    assert_fails_with_one_line(import_hf(folder, tmp_path / "of"), "model.safetensors.index.json")


@pytest.mark.parametrize("model", MODELS)
def test_export_has_exactly_the_tensors_of_the_class(tmp_path, model):
    tensors = random_tensors(MODELS[model])
    write_snapshot(tmp_path / "of", as_variables(tensors, MODELS[model]))
    result = export_hf(tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS)
    assert result.returncode == 0, result.stderr
    exported = read_safetensors(tmp_path / "hf" / "model.safetensors")
    assert exported.keys() == MODELS[model].keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(exported[key], tensor)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [model]
    assert {name: config[name] for name in CONFIG} == CONFIG


LABELS = {"0": "contradiction", "1": "neutral", "2": "entailment"}


def test_names_of_labels_survive_a_round_trip(tmp_path):
    tensors = random_tensors(MODELS["BertForSequenceClassification"])
    write_hf_folder(tmp_path / "hf", tensors, id2label=LABELS, architectures=["BertForSequenceClassification"])
    assert import_hf(tmp_path / "hf", tmp_path / "of").returncode == 0
    # In the model's order, which is not alphabetical.
    labels_file = tmp_path / "of/bert-embeddings-word_embeddings/labels.txt"
    assert labels_file.read_text() == "contradiction\nneutral\nentailment\n"
    result = export_hf(tmp_path / "of", tmp_path / "hf2")
    assert result.returncode == 0 and "for BertForSequenceClassification" in result.stdout, result.stderr
    config = json.loads((tmp_path / "hf2/config.json").read_text())
    assert config["id2label"] == LABELS and config["label2id"] == {name: int(index) for index, name in LABELS.items()}
    assert config["problem_type"] == "single_label_classification"
    labels_file.write_text("a\nb\n")
    result = export_hf(tmp_path / "of", tmp_path / "hf3")
    assert_fails_with_one_line(result, "labels.txt: names 2 labels, but the weights have 3")
    labels_file.unlink()
    assert export_hf(tmp_path / "of", tmp_path / "hf3").returncode == 0
    config = json.loads((tmp_path / "hf3/config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert import_hf(tmp_path / "hf3", tmp_path / "unnamed").returncode == 0
    assert not (tmp_path / "unnamed/bert-embeddings-word_embeddings/labels.txt").exists()


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "id2label does not name the 3 labels"),
        ({"id2label": {"0": "a", "1": "b", "2": "c\nd"}}, "not one line of text"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification, which is not supported"),
    ],
)
def test_unsupported_labels(tmp_path, config, fragment):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(MODELS["BertForSequenceClassification"]), **config)
    assert_fails_with_one_line(import_hf(folder, tmp_path / "of"), "config.json: ", fragment)


def test_token_classifier_is_skipped(tmp_path):
    tensors = random_tensors(MODELS["BertForSequenceClassification"])
    folder = write_hf_folder(tmp_path / "hf", tensors, architectures=["BertForTokenClassification"], id2label=LABELS)
    result = import_hf(folder, tmp_path / "of")
    assert "skipped classifier.weight: of a head that this suite does not have" in result.stdout
    assert "output_weights" not in layout.variable_names(tmp_path / "of")


@pytest.mark.parametrize("model", MODELS)
def test_round_trip_is_byte_for_byte(tmp_path, model):
    variables = as_variables(random_tensors(MODELS[model]), MODELS[model])
    extreme = np.float32([-0.0, 1e-45, 3.4e38])
    variables["bert-embeddings-LayerNorm-beta"][: len(extreme)] = extreme
    moments = {f"{name}-{moment}": np.ones_like(array) for name, array in variables.items() for moment in "mv"}
    step = {"System-Train-TrainStep-PretrainJob": np.int64([20])}
    write_snapshot(tmp_path / "of", variables | moments | step)
    result = export_hf(tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS)
    assert f"left out {len(moments) + 1} variables: training state" in result.stdout
    assert import_hf(tmp_path / "hf", tmp_path / "again").returncode == 0
    assert layout.variable_names(tmp_path / "again") == sorted(variables)
    for name in variables:
        for file in ("out", "meta"):
            assert (tmp_path / "again" / name / file).read_bytes() == (tmp_path / "of" / name / file).read_bytes(), name


def test_export_of_a_merged_squad_model_lists_what_it_skips(tmp_path):
    table = MODELS["BertForPreTraining"] | SQUAD
    write_snapshot(tmp_path / "of", as_variables(random_tensors(table), table))
    result = export_hf(tmp_path / "of", tmp_path / "squad", num_attention_heads=HEADS)
    assert read_safetensors(tmp_path / "squad" / "model.safetensors").keys() == (ENCODER | SQUAD).keys()
    assert "left out bert-pooler-dense-bias, bert-pooler-dense-weight, cls-predictions-output_bias" in result.stdout
    assert "not part of BertForQuestionAnswering" in result.stdout

    result = export_hf(tmp_path / "of", tmp_path / "mlm", num_attention_heads=HEADS, architecture="BertForPreTraining")
    exported = read_safetensors(tmp_path / "mlm" / "model.safetensors")
    assert exported.keys() == MODELS["BertForPreTraining"].keys()


def test_export_of_an_encoder_alone(tmp_path):
    write_snapshot(tmp_path / "of", as_variables(random_tensors(ENCODER), ENCODER))
    result = export_hf(tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS)
    exported = read_safetensors(tmp_path / "hf" / "model.safetensors")
    assert exported.keys() == {key.removeprefix("bert.") for key in ENCODER}
    assert "add_pooling_layer=False" in result.stdout


def test_export_by_a_configuration_file_needs_no_meta(tmp_path):
    variables = as_variables(random_tensors(MODELS["BertModel"]), MODELS["BertModel"])
    write_snapshot(tmp_path / "of", variables)
    for name in variables:
        (tmp_path / "of" / name / "meta").unlink()
    assert_fails_with_one_line(export_hf(tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS), "meta")
    given = CONFIG | {"hidden_dropout_prob": 0.25, "pad_token_id": 3}
    (tmp_path / "bert_config.json").write_text(json.dumps(given))
    result = export_hf(tmp_path / "of", tmp_path / "hf", bert_config_file=tmp_path / "bert_config.json")
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["hidden_dropout_prob"], config["pad_token_id"]) == (0.25, 3)


def test_export_of_legacy_position_embeddings(tmp_path):
    table = ENCODER | POOLER
    tensors = random_tensors(table)
    variables = as_variables(tensors, table)
    variables["bert-embeddings-position_embeddings"] = variables["bert-embeddings-position_embeddings"][None]
    write_snapshot(tmp_path / "of", variables)
    result = export_hf(tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS)
    assert result.returncode == 0, result.stderr
    exported = read_safetensors(tmp_path / "hf" / "model.safetensors")
    assert exported["embeddings.position_embeddings.weight"].shape == (POSITIONS, HIDDEN)


def test_vocabulary_is_exported(tmp_path):
    write_snapshot(tmp_path / "of", as_variables(random_tensors(MODELS["BertModel"]), MODELS["BertModel"]))
    vocabulary = tmp_path / "my-vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\nwörd\n", encoding="utf-8")
    result = export_hf(
        tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS, vocab_file=vocabulary, do_lower_case=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "hf" / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config == {"do_lower_case": False, "model_max_length": POSITIONS, "tokenizer_class": "BertTokenizer"}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "hf").iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, modes

    vocabulary.write_text("\n".join(map(str, range(VOCAB + 1))))
    result = export_hf(tmp_path / "of", tmp_path / "hf2", num_attention_heads=HEADS, vocab_file=vocabulary)
    assert_fails_with_one_line(result, vocabulary, "has 51 pieces, but the model 50")


def test_configuration_vocabulary_and_case_are_kept(tmp_path):
    """Import stores them in the snapshot; export reads them, so flags are optional but must not differ."""
    folder = write_hf_folder(tmp_path / "hf", random_tensors(ENCODER), hidden_dropout_prob=0.25)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nW\u00f6rd\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert import_hf(folder, tmp_path / "of").returncode == 0
    files = tmp_path / "of" / "bert-embeddings-word_embeddings"
    config = json.loads((files / "bert_config.json").read_text())
    assert (config["num_attention_heads"], config["hidden_dropout_prob"], config["hidden_act"]) == (HEADS, 0.25, "gelu")
    assert (files / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert json.loads((files / "tokenizer_config.json").read_text()) == {"do_lower_case": False}

    result = export_hf(tmp_path / "of", tmp_path / "again")
    assert (result.returncode, result.stderr) == (0, "")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["num_attention_heads"], config["hidden_dropout_prob"]) == (HEADS, 0.25)
    assert (tmp_path / "again" / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["do_lower_case"] is False

    (tmp_path / "other.txt").write_text("[PAD]\n[UNK]\nother\n")
    for flags, message in (
        ({"num_attention_heads": 2}, "--num_attention_heads=2, but the model has 4"),
        ({"do_lower_case": True}, "--do_lower_case=True, but the model has False"),
        ({"vocab_file": tmp_path / "other.txt"}, "not the model's vocabulary"),
    ):
        assert_fails_with_one_line(export_hf(tmp_path / "of", tmp_path / "no", **flags), message)


def test_a_vocabulary_from_a_pipe(tmp_path):
    """A pipe, as in `--vocab_file=<(command)`, can be read only once."""
    write_snapshot(tmp_path / "of", as_variables(random_tensors(MODELS["BertModel"]), MODELS["BertModel"]))
    read_end, write_end = os.pipe()
    os.write(write_end, "[PAD]\n[UNK]\nwörd\n".encode())
    os.close(write_end)
    pipe = f"/dev/fd/{read_end}"
    result = export_hf(tmp_path / "of", tmp_path / "hf", num_attention_heads=HEADS, vocab_file=pipe)
    os.close(read_end)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "hf" / "vocab.txt").read_text(encoding="utf-8") == "[PAD]\n[UNK]\nwörd\n"


def test_vocabulary_of_an_imported_model(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(ENCODER))
    tokens = ["[PAD]", "[UNK]", "wörd", "##s"]
    result = import_hf(folder, tmp_path / "of", vocab_dump_path=tmp_path / "vocab.txt")
    assert_fails_with_one_line(result, "neither vocab.txt nor tokenizer.json")

    model = tokenizers.models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    assert import_hf(folder, tmp_path / "of", vocab_dump_path=tmp_path / "vocab.txt").returncode == 0
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines() == tokens
    result = import_hf(folder, tmp_path / "of2", vocab_dump_path=tmp_path / "vocab.txt")
    assert_fails_with_one_line(result, tmp_path / "vocab.txt", "exists already")

    (folder / "vocab.txt").write_text("first\nsecond\n")
    result = import_hf(folder, tmp_path / "of", "--overwrite", vocab_dump_path=tmp_path / "vocab.txt")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "vocab.txt").read_text() == "first\nsecond\n"
    result = import_hf(folder, tmp_path / "of", "--overwrite", vocab_dump_path=tmp_path / "of" / "vocab.txt")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "of" / "vocab.txt").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("name", ["nowhere/vocab.txt", "."])
def test_unwritable_vocabulary_fails_before_the_snapshot_is_made(tmp_path, name):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(ENCODER))
    (folder / "vocab.txt").write_text("first\nsecond\n")
    result = import_hf(folder, tmp_path / "of", "--overwrite", vocab_dump_path=tmp_path / name)
    assert_fails_with_one_line(result, f"--vocab_dump_path={tmp_path / name}: ")
    assert os.listdir(tmp_path) == ["hf"]


def test_full_disk(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(ENCODER))
    write_snapshot(tmp_path / "of", as_variables(random_tensors(ENCODER), ENCODER))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model"
    with full_disk(1000):
        assert_fails_with_one_line(import_hf(folder, target), "File too large", target, status=1)
        result = export_hf(tmp_path / "of", target, num_attention_heads=HEADS)
        assert_fails_with_one_line(result, "File too large", target, status=1)
    assert list((tmp_path / "out").iterdir()) == []


def header(**tensors):
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**63).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        (2).to_bytes(8, "little") + b"[]",
        header(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}),  # no data
        header(a={"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}) + bytes(16),
        header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 16]}) + bytes(16),
        header(a={"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}) + bytes(16),
        header(
            a={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            b={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
        )
        + bytes(24),
    ],
)
def test_damaged_safetensors(tmp_path, content):
    folder = write_hf_folder(tmp_path / "hf", {})
    (folder / "model.safetensors").write_bytes(content)
    assert_fails_with_one_line(import_hf(folder, tmp_path / "of"), folder / "model.safetensors", "damaged")
    assert not (tmp_path / "of").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({WORDS: None}, "not a BERT: it has no tensor bert.embeddings.word_embeddings.weight"),
        (
            {"bert.pooler.dense.weight": None, "bert.embeddings.LayerNorm.bias": None},
            "has no variable bert-embeddings-L",
        ),
        ({WORDS: np.zeros((HIDDEN, VOCAB), np.float32)}, "bert-embeddings-word_embeddings has shape [16, 50]"),
        ({WORDS: np.zeros((VOCAB, HIDDEN), np.int8)}, "of type I8"),
        ({"embeddings.word_embeddings.weight": np.zeros((VOCAB, HIDDEN), np.float32)}, "are the same variable"),
        ({"bert.encoder.layer.2.output.dense.bias": np.zeros(HIDDEN, np.float32)}, "is not part of a BERT of 2 layers"),
        ({"bert.encoder.layer.0.crossattention.self.key.bias": np.zeros(1, np.float32)}, "is not part of a BERT"),
        ({"qa_outputs.weight": np.zeros((3, HIDDEN), np.float32)}, "cls-squad-output-weight has shape [16, 3]"),
    ],
)
def test_tensors_that_are_not_the_model(tmp_path, change, message):
    tensors = random_tensors(ENCODER) | change
    folder = write_hf_folder(tmp_path / "hf", {key: tensor for key, tensor in tensors.items() if tensor is not None})
    assert_fails_with_one_line(import_hf(folder, tmp_path / "of"), tmp_path / "hf", message)
    assert not (tmp_path / "of").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "of type 'roberta'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"num_attention_heads": 5}, "is not a multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 3}, "has no variable bert-encoder-layer_2"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1'; it must be a number"),
        ({"vocab_size": 2**70}, "vocab_size is"),
    ],
)
def test_config_of_another_network(tmp_path, change, message):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(ENCODER), **change)
    assert_fails_with_one_line(import_hf(folder, tmp_path / "of"), tmp_path / "hf", message)


def test_missing_folder(tmp_path):
    result = import_hf("bert-base-uncased", tmp_path / "of")
    assert_fails_with_one_line(result, "bert-base-uncased: there is no such folder", "nothing is downloaded")
    (tmp_path / "hf").mkdir()
    result = import_hf(tmp_path / "hf", tmp_path / "of")
    assert_fails_with_one_line(result, f"{tmp_path / 'hf/config.json'}: there is no such file")
    for text in ("{", "[]", "[" * 100000):
        (tmp_path / "hf" / "config.json").write_text(text)
        assert_fails_with_one_line(import_hf(tmp_path / "hf", tmp_path / "of"), tmp_path / "hf/config.json", "JSON")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    assert_fails_with_one_line(import_hf(tmp_path / "hf", tmp_path / "of"), "has no file model.safetensors")
    (tmp_path / "hf" / "pytorch_model.bin").touch()
    assert_fails_with_one_line(import_hf(tmp_path / "hf", tmp_path / "of"), "pytorch_model.bin", "save_pretrained()")


def test_export_of_a_mismatched_model(tmp_path):
    table = ENCODER | POOLER
    variables = as_variables(random_tensors(table), table)
    folder = write_snapshot(tmp_path / "of", variables)
    result = export_hf(tmp_path / "missing", tmp_path / "hf", num_attention_heads=HEADS)
    assert_fails_with_one_line(result, "there is no such folder")
    assert_fails_with_one_line(export_hf(folder, tmp_path / "hf"), "--bert_config_file", "--num_attention_heads")
    result = export_hf(folder, tmp_path / "hf", num_attention_heads=3)
    assert_fails_with_one_line(result, "hidden_size 16 is not a multiple of num_attention_heads 3")
    result = export_hf(folder, tmp_path / "hf", num_attention_heads=HEADS, architecture="BertForQuestionAnswering")
    assert_fails_with_one_line(result, "has no variable cls-squad-output-weight")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 60}))
    result = export_hf(folder, tmp_path / "hf", bert_config_file=tmp_path / "config.json")
    assert_fails_with_one_line(result, "bert-embeddings-word_embeddings", "[50, 16]", "[60, 16]")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1}))
    result = export_hf(folder, tmp_path / "hf", bert_config_file=tmp_path / "config.json")
    assert_fails_with_one_line(result, "has the variable bert-encoder-layer_1-", "that configuration")
    (folder / "bert-pooler-dense-bias" / "out").write_bytes(b"123")
    result = export_hf(folder, tmp_path / "hf", num_attention_heads=HEADS)
    assert_fails_with_one_line(result, "bert-pooler-dense-bias", "has 3 bytes")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    "name, advice",
    [
        ("snapshot_done", "it is a snapshot of this suite, which needs no conversion"),
        ("bert_model.ckpt.index", "it is a TensorFlow checkpoint; convert it with convert_tf_ckpt_to_of.py"),
    ],
)
def test_a_model_of_another_kind(tmp_path, name, advice):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).touch()
    assert_fails_with_one_line(import_hf(tmp_path / "model", tmp_path / "of"), f"{tmp_path / 'model'}: {advice}")


def test_existing_outputs_need_overwrite(tmp_path):
    tensors = random_tensors(ENCODER | POOLER)
    folder = write_hf_folder(tmp_path / "hf", tensors)
    assert import_hf(folder, tmp_path / "of").returncode == 0
    assert_fails_with_one_line(import_hf(folder, tmp_path / "of"), tmp_path / "of", "exists already")
    assert import_hf(folder, tmp_path / "of", "--overwrite").returncode == 0
    result = export_hf(tmp_path / "of", folder, num_attention_heads=HEADS)
    assert_fails_with_one_line(result, folder, "exists already")
    result = export_hf(tmp_path / "of", tmp_path / "of", "--overwrite", num_attention_heads=HEADS)
    assert_fails_with_one_line(result, tmp_path / "of", "has no file config.json")
    assert export_hf(tmp_path / "of", folder, "--overwrite", num_attention_heads=HEADS).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def fuzzed_folder(tmp_path_factory):
    """A Hugging Face folder and the bytes of its model.safetensors."""
    folder = write_hf_folder(tmp_path_factory.mktemp("fuzz") / "hf", random_tensors(ENCODER))
    return folder, (folder / "model.safetensors").read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_headers_succeed_or_fail_with_one_line(fuzzed_folder, data):
    folder, original = fuzzed_folder
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3), "mutations")):
        position = data.draw(st.integers(0, header_bytes - 1), "position")
        new = data.draw(st.one_of(st.binary(max_size=8), st.integers(0, 2**64).map(lambda n: str(n).encode())), "new")
        mutated[position : position + data.draw(st.integers(0, 8), "length")] = new
    (folder / "model.safetensors").write_bytes(mutated)
    result = import_hf(folder, folder.parent / "of", "--overwrite")
    if result.returncode != 0:
        assert_fails_with_one_line(result, folder)
    assert {path.name for path in folder.parent.iterdir()} <= {"hf", "of"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=json_values
    | st.dictionaries(st.sampled_from([*CONFIG, "is_decoder", "pad_token_id"]), json_values).map(CONFIG.__or__)
)
def test_any_config_is_valid_or_a_user_error(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        size, _ = read_config(tmp_path / "config.json")
    except UserError as error:
        assert str(error).startswith(str(tmp_path / "config.json"))
    else:
        assert size.hidden_size % size.num_attention_heads == 0
