"""Exported models in Hugging Face Transformers, against the float64 reference. Run by `make test-transformers`."""

import json
import os
import subprocess

import numpy as np
import pytest

import reference_bert
from running import ROOT, run
from snapshots import layout
from snapshots.variables import ModelSize, encoder_shapes, head_shapes

pytestmark = pytest.mark.skipif(
    "TRANSFORMERS_PYTHON" not in os.environ, reason="needs a Python with transformers: make test-transformers"
)

HEADS = 4
SIZE = ModelSize(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=80,
    max_position_embeddings=24,
    type_vocab_size=2,
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "hello", "un", "##aff", "##able"]
# Class -> (heads in the snapshot, output of the class -> the reference's function for it).
CLASSES = {
    "BertModel": (
        ["pooler"],
        {"last_hidden_state": reference_bert.sequence_output, "pooler_output": reference_bert.pooled_output},
    ),
    "BertForPreTraining": (
        ["pooler", "masked_lm", "next_sentence"],
        {
            "prediction_logits": reference_bert.masked_lm_logits,
            "seq_relationship_logits": reference_bert.next_sentence_logits,
        },
    ),
    "BertForSequenceClassification": (["pooler", "classifier"], {"logits": reference_bert.classifier_logits}),
    "BertForQuestionAnswering": (
        ["squad"],
        {
            "start_logits": lambda *arguments: reference_bert.squad_logits(*arguments)[0],
            "end_logits": lambda *arguments: reference_bert.squad_logits(*arguments)[1],
        },
    ),
}


def random_variables(heads):
    generator = np.random.default_rng(0)
    shapes = encoder_shapes(SIZE)
    for head in heads:
        shapes |= head_shapes(SIZE)[head]
    return {
        name: generator.normal(1.0 if name.endswith("gamma") else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("name", "do_lower_case"),
    [
        ("BertModel", True),
        ("BertForPreTraining", False),
        ("BertForQuestionAnswering", True),
        ("BertForSequenceClassification", True),
    ],
)
def test_exported_model_loads_and_computes_the_same(tmp_path, name, do_lower_case):
    heads, expected = CLASSES[name]
    variables = random_variables(heads)
    with layout.open_writer(tmp_path / "of") as write:
        for variable, array in variables.items():
            write(variable, array)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    result = run(
        "tools/convert_hf.py",
        "export",
        snapshot_dir=tmp_path / "of",
        hf_dump_path=tmp_path / "hf",
        num_attention_heads=HEADS,
        vocab_file=tmp_path / "vocab.txt",
        do_lower_case=do_lower_case,
    )
    assert result.returncode == 0, result.stderr

    generator = np.random.default_rng(1)
    mask = (np.arange(20) < generator.integers(8, 21, (3, 1))).astype(np.int64)
    batch = {
        "input_ids": generator.integers(0, SIZE.vocab_size, (3, 20)) * mask,
        "input_mask": mask,
        "segment_ids": generator.integers(0, 2, (3, 20)) * mask,
        "masked_lm_positions": np.tile(np.arange(20), (3, 1)),
    }
    np.savez(
        tmp_path / "batch.npz",
        input_ids=batch["input_ids"],
        attention_mask=mask,
        token_type_ids=batch["segment_ids"],
    )
    report = json.loads(
        subprocess.run(
            [
                os.environ["TRANSFORMERS_PYTHON"],
                ROOT / "tests" / "helpers" / "transformers_outputs.py",
                name,
                *(tmp_path / file for file in ("hf", "batch.npz", "outputs.npz")),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            timeout=120,
        ).stdout
    )
    assert report["loading"].pop("missing_keys") == []
    assert report["loading"].pop("unexpected_keys") == []
    assert all(found == [] for found in report["loading"].values()), report
    assert report["tokens"] == ["hello" if do_lower_case else "Hello", "un", "##aff", "##able"]
    with np.load(tmp_path / "outputs.npz") as outputs:
        for output, reference in expected.items():
            wanted = np.asarray(reference(variables, batch, HEADS))
            assert outputs[output].shape == wanted.shape
            # The one masks with -10000, the other with the lowest float32: after the softmax that is the same, 0.
            assert np.linalg.norm(outputs[output] - wanted) <= 1e-5 * np.linalg.norm(wanted), output
