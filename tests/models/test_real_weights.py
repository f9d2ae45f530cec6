"""A published model, converted and computed here, against a float64 forward pass in NumPy.

Run by `make test-real-weights`. The forward pass reads the Hugging Face folder itself and
shares nothing with the suite.
"""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors import safe_open

import bert_util
from engine.oneflow_loader import flow
from running import ROOT, run
from training import job_state

pytestmark = pytest.mark.skipif(
    "REAL_WEIGHTS" not in os.environ, reason="needs the weights of a published model: make test-real-weights"
)

SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone performs music with a stringed instrument.",
    "The stock market fell sharply after the announcement of new tariffs.",
    "Mitochondria, the powerhouses of the cell, have their own DNA (about 16,500 base pairs in humans).",
    "No.",
]


erf = np.vectorize(math.erf)


def forward_pass(folder, ids, mask):
    """Hidden states [B, S, H] and pooled output [B, H] of the BERT in `folder`, float64. `ids`, `mask`: [B, S]."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        tensors = {key: file.get_tensor(key).astype(np.float64) for key in file.keys() if "position_ids" not in key}

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def layer_norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def by_head(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        query, key, value = (by_head(linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        context = (weights @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = layer_norm(x + linear(context, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        wide = linear(x, f"{name}.intermediate.dense")
        wide = wide * (1 + erf(wide / math.sqrt(2))) / 2
        x = layer_norm(x + linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x, np.tanh(linear(x[:, 0], "pooler.dense"))


class Encoder(flow.nn.Module):
    """The backbone under the name that its variables have in a snapshot."""

    def __init__(self, config):
        super().__init__()
        self.bert = bert_util.BertBackbone(
            config, bert_util.Initializer(flow.placement("cpu", [0]), seed=0), with_pooler=True
        )


class Outputs(flow.nn.Graph):
    """The hidden states and the pooled output."""

    def __init__(self, config):
        super().__init__()
        self.model = Encoder(config)

    def build(self, input_ids, input_mask, segment_ids):
        hidden = self.model.bert(input_ids, input_mask, segment_ids)
        return hidden, self.model.bert.pooler(hidden)


def test_hidden_states_of_english_sentences(tmp_path):
    folder = Path(os.environ["REAL_WEIGHTS"])
    result = run("tools/convert_hf.py", "import", hf_dir=folder, of_dump_path=tmp_path / "of")
    assert result.returncode == 0, result.stderr
    # The flags that the converter prints are the ones that the model is built by.
    flags = dict(flag.lstrip("-").split("=") for flag in result.stdout.splitlines()[-1].split(": ")[1].split())
    flags = {name: int(value) for name, value in flags.items()}
    assert flags == {"num_hidden_layers": 6, "num_attention_heads": 12, "hidden_size_per_head": 32}
    config = bert_util.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=flags["num_hidden_layers"],
        num_attention_heads=flags["num_attention_heads"],
        intermediate_size=4 * 384,
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    graph = Outputs(config)
    job_state.restore_for_prediction(graph, str(tmp_path / "of"))

    tokenizer = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    tokenizer.enable_padding(length=40)
    encodings = tokenizer.encode_batch(SENTENCES)
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int32)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int32)
    assert 0 < mask.sum(axis=1).min() < mask.sum(axis=1).max() < 40

    placement = flow.placement("cpu", [0])
    inputs = [flow.tensor(values, placement=placement, sbp=flow.sbp.broadcast) for values in (ids, mask, 0 * ids)]
    hidden, pooled = (output.numpy() for output in graph(*inputs))
    expected_hidden, expected_pooled = forward_pass(folder, ids, mask)
    # What stands at padding is nobody's: its normalisation divides by next to nothing, so float32 tells little of it.
    at_tokens = mask == 1
    np.testing.assert_allclose(hidden[at_tokens], expected_hidden[at_tokens], rtol=0, atol=2e-5)
    np.testing.assert_allclose(pooled, expected_pooled, rtol=0, atol=2e-5)

    # And it is a model of English: of these sentences, the second means nearly what the first one does.
    sentences = (hidden * mask[..., None]).sum(axis=1)
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    similarity = sentences @ sentences[0]
    print("similarity to the first sentence:", similarity)
    assert similarity[1] > 0.4 > similarity[2:].max()


def test_sentence_vectors(tmp_path):
    """Cosine similarities by tools/extract_features.py, the forward pass and, where there is one, Transformers."""
    folder = Path(os.environ["REAL_WEIGHTS"])
    result = run("tools/convert_hf.py", "import", hf_dir=folder, of_dump_path=tmp_path / "of")
    assert result.returncode == 0, result.stderr
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES) + "\n")
    flags = {
        "model_load_dir": tmp_path / "of",
        "input_file": tmp_path / "text.txt",
        "output_file": tmp_path / "ours.npy",
    }
    result = run("tools/extract_features.py", "--normalize", pooling="mean", **flags)
    assert result.returncode == 0, result.stderr
    ours = np.load(tmp_path / "ours.npy", allow_pickle=False)

    tokenizer = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    expected = []
    for encoding in tokenizer.encode_batch(SENTENCES):
        hidden, _ = forward_pass(folder, np.array([encoding.ids]), np.array([encoding.attention_mask]))
        expected.append(hidden[0].mean(axis=0) / np.linalg.norm(hidden[0].mean(axis=0)))
    expected = np.array(expected)
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, rtol=0, atol=1e-5)
    python = os.environ.get("TRANSFORMERS_PYTHON")
    if python:
        side = [python, ROOT / "benchmarks/sentence_vectors_side.py", "transformers", folder, tmp_path / "text.txt"]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        subprocess.run([*side, tmp_path / "theirs.npy"], env=environment, input="\n", text=True, check=True)
        theirs = np.load(tmp_path / "theirs.npy", allow_pickle=False)
        np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-5)
