"""tools/extract_features.py: against google-research/bert's script, the float64 reference and a published model."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import extract_features
import google_features
import recordings
import reference_bert
import small_models
from running import assert_fails_with_one_line

SCRIPT = "extract_features.py"
BERT_REPO = os.environ.get("BERT_REPO")


def extract(snapshot, *arguments, **flags):
    return small_models.run_tool(extract_features.main, SCRIPT, snapshot, *arguments, **flags)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return small_models.write_snapshot(tmp_path_factory.mktemp("model") / "of", small_models.values())


@pytest.fixture(scope="module")
def bare_snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "of"
    return small_models.write_snapshot(folder, small_models.values(), vocab=None, do_lower_case=None, config=False)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The old house.\nlight ||| a house\n\n" + "old " * 60 + "\n")
    return path


def read_lines(data):
    """(the JSON lines without values, the values) of an output file."""
    lines = [json.loads(line) for line in data.splitlines()]
    layers = [layer for line in lines for feature in line["features"] for layer in feature["layers"]]
    return lines, np.array([layer.pop("values") for layer in layers])


@pytest.mark.engine
def test_writes_what_googles_script_writes(tmp_path, snapshot, bare_snapshot):
    """Of a snapshot that does not describe its model, which the flags do."""
    (tmp_path / "text.txt").write_bytes(google_features.text())
    described = snapshot / "bert-embeddings-word_embeddings"
    files = {"bert_config_file": described / "bert_config.json", "vocab_file": described / "vocab.txt"}
    output = tmp_path / "features.jsonl"
    result = extract(
        bare_snapshot, input_file=tmp_path / "text.txt", output_file=output, **google_features.FLAGS, **files
    )
    assert result.returncode == 0, result.stderr
    lines, values = read_lines(output.read_bytes())
    expected_lines, expected_values = read_lines(recordings.read("google_features")["model"]["features.jsonl"])
    assert lines == expected_lines
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=1e-5)
    assert len(lines) > 40 and np.abs(values).max() > 1


@pytest.mark.skipif(not BERT_REPO, reason="BERT_REPO names no checkout of google-research/bert")
def test_googles_script_writes_what_it_wrote(tmp_path):
    lines, values = read_lines(google_features.google_output(BERT_REPO, tmp_path))
    expected_lines, expected_values = read_lines(recordings.read("google_features")["model"]["features.jsonl"])
    assert lines == expected_lines
    # A checkout of 2019 or later approximates GELU.
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=1e-5)


@pytest.mark.engine
@pytest.mark.parametrize(("pooling", "layer"), [("mean", None), ("cls", -2)])
def test_pooled_vectors_are_those_of_the_reference(tmp_path, snapshot, text, pooling, layer):
    output = tmp_path / "vectors.npy"
    more = {"layers": layer} if layer else {}
    result = extract(snapshot, "--normalize", input_file=text, output_file=output, pooling=pooling, **more)
    assert result.returncode == 0, result.stderr
    assert "1 of 4 lines are cut to --max_seq_length=48" in result.stdout
    assert "1 of 4 lines have no visible character" in result.stdout
    found = np.load(output, allow_pickle=False)
    assert found.dtype == np.float32
    index = small_models.VOCAB.index
    first, end, old, house = (index(piece) for piece in ("[CLS]", "[SEP]", "old", "house"))
    ids = [
        [first, index("the"), old, house, index("."), end],
        [first, index("light"), end, index("a"), house, end],
        [first, end],
        [first, *[old] * 46, end],
    ]
    variables = small_models.values()
    if layer:
        variables = {name: array for name, array in variables.items() if "layer_2" not in name}
    for number, row in enumerate(ids):
        batch = {
            "input_ids": np.array([row]),
            "input_mask": np.ones((1, len(row)), int),
            "segment_ids": np.array([[0] * len(row)]) if number != 1 else np.array([[0, 0, 0, 1, 1, 1]]),
        }
        hidden = reference_bert.sequence_output(variables, batch, small_models.HEADS).numpy()[0]
        expected = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(found[number], expected / np.linalg.norm(expected), rtol=0, atol=1e-5)


def test_bad_flags_and_files_give_one_line(tmp_path, snapshot, bare_snapshot, text):
    """All before the engine is loaded."""
    files = {"input_file": text, "output_file": tmp_path / "out", "layers": "-1"}
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "small.txt").write_text("\n".join(small_models.VOCAB[:60]) + "\n")
    (tmp_path / "large.txt").write_text("\n".join([*small_models.VOCAB, "new"]) + "\n")
    config = {"bert_config_file": tmp_path / "bert_config.json"}
    shutil.copy(snapshot / "bert-embeddings-word_embeddings/bert_config.json", tmp_path)
    for folder, flags, fragments in [
        (snapshot, {"input_file": tmp_path / "none"}, ["none: there is no such file"]),
        (snapshot, {"input_file": tmp_path / "empty"}, ["empty: is empty"]),
        (snapshot, {"input_file": tmp_path / "latin"}, ["latin: not UTF-8: byte 3 is 0xe9"]),
        (snapshot, {"output_file": tmp_path / "no" / "out"}, ["--output_file", "cannot be written"]),
        (snapshot, {"output_file": text}, ["would replace its own input"]),
        (snapshot, {**config, "output_file": config["bert_config_file"]}, ["would replace its own input"]),
        (snapshot, {"layers": "3"}, ["--layers=3: the model has 3 layers; give numbers from -3 to 2"]),
        (snapshot, {"layers": "x"}, ["--layers: 'x' is not whole numbers separated by commas"]),
        (snapshot, {"normalize": True}, ["--normalize is for the vectors of --pooling"]),
        (snapshot, {"pooling": "cls", "layers": "-1,-2"}, ["--pooling takes one of the --layers"]),
        (snapshot, {"max_seq_length": 49}, ["--max_seq_length=49 is more than the 48 positions"]),
        (snapshot, {"max_seq_length": 4}, ["--max_seq_length=4 is too small; give at least 5"]),
        (snapshot, {"vocab_file": tmp_path / "small.txt"}, ["small.txt: is not the vocabulary in"]),
        (snapshot, {"do_lower_case": False}, ["--do_lower_case=False, but the model in", "has True"]),
        (snapshot, {"cpu_threads": 10**6}, ["too many threads"]),
        (tmp_path, {}, ["not a complete snapshot"]),
        (
            bare_snapshot,
            {},
            ["does not tell the shape of its model; give the model's bert_config.json by --bert_config_file"],
        ),
        (bare_snapshot, config, ["holds no vocabulary; give the model's by --vocab_file"]),
        (
            bare_snapshot,
            {**config, "vocab_file": tmp_path / "large.txt"},
            ["does not tell whether its model is uncased"],
        ),
        (
            bare_snapshot,
            {**config, "vocab_file": tmp_path / "large.txt", "do_lower_case": True},
            [f"has {len(small_models.VOCAB) + 1} pieces, but the model in", f"for {len(small_models.VOCAB)}"],
        ),
    ]:
        assert_fails_with_one_line(extract(folder, **{**files, **flags}), *fragments)
    assert_fails_with_one_line(extract(snapshot, input_file=text, output_file=tmp_path / "out"), "has 3 layers")
    assert not (tmp_path / "out").exists()


@pytest.mark.engine
def test_numbers_that_are_not_finite_end_it(tmp_path, text):
    arrays = small_models.values()
    arrays["bert-encoder-layer_0-output-dense-bias"][3] = np.nan
    folder = small_models.write_snapshot(tmp_path / "of", arrays)
    result = extract(folder, input_file=text, output_file=tmp_path / "out", layers="-1")
    assert result.returncode == 1
    assert "the model gives NaN or infinity" in result.stderr.splitlines()[-1]
    assert not Path(tmp_path / "out").exists()
