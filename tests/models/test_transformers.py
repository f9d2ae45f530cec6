"""What Hugging Face Transformers computes, against the suite's models and the float64 reference.

Its outputs for models of random weights are kept in tests/recorded. `make test-transformers` asks Transformers itself:
for these outputs anew, and to load exported models.
"""

import os

import numpy as np
import pytest

import bert_util
import classifier
import pretrain
import recordings
import reference_bert
import squad
import transformers_cases
from engine.oneflow_loader import flow
from hugging_face_folders import CONFIG, as_variables
from running import run
from snapshots import layout
from snapshots.variables import ModelSize, encoder_shapes, head_shapes
from training import job_state

needs_transformers = pytest.mark.skipif(
    "TRANSFORMERS_PYTHON" not in os.environ, reason="needs a Python with transformers: make test-transformers"
)
CASES = transformers_cases.cases()
RECORDED = recordings.read("transformers")

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


def assert_close(found, expected, name):
    """In float32 on both sides."""
    assert found.shape == expected.shape, name
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected), name


def make_model(case):
    """The suite's model of the case, of whatever weights."""
    sizes = {name: CONFIG[name] for name in ModelSize.__dataclass_fields__}
    config = bert_util.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    initializer = bert_util.Initializer(flow.placement("cpu", [0]), seed=0)
    if case.class_name == "BertForPreTraining":
        return pretrain.BertForPretraining(config, initializer)
    if case.class_name == "BertForQuestionAnswering":
        return squad.BertForQuestionAnswering(config, initializer)
    return classifier.BertForSequenceClassification(config, case.config["num_labels"], initializer)


def loss_of(model, batch):
    return model(batch)["total_loss"]


def pretraining_logits(model, batch):
    return model.logits(*(batch[name] for name in ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")))


def logits_of(model, batch):
    return model.logits(batch)


class Computed(flow.nn.Graph):
    """`compute` of the model and the batch, which is called with the arrays that `names` names."""

    def __init__(self, model, compute, names):
        super().__init__()
        self.model = model.eval()
        self.compute = compute
        self.names = names

    def build(self, *arrays):
        return self.compute(self.model, dict(zip(self.names, arrays, strict=True)))


@pytest.mark.engine
@pytest.mark.parametrize("name", CASES)
def test_models_compute_what_transformers_computed(tmp_path, name):
    case, expected = CASES[name], RECORDED[name]
    with layout.open_writer(tmp_path / "of") as write:
        for variable, array in as_variables(transformers_cases.tensors_of(case), case.table).items():
            write(variable, np.ascontiguousarray(array))
    model = make_model(case)
    is_pretraining = case.class_name == "BertForPreTraining"
    # A module is entered once in a graph.
    loss_graph, logits_graph = (
        Computed(model, compute, list(case.batch))
        for compute in (loss_of, pretraining_logits if is_pretraining else logits_of)
    )
    job_state.restore_for_prediction(loss_graph, str(tmp_path / "of"))
    inputs = [
        flow.tensor(
            array.astype(np.int32) if array.dtype == np.int64 else array,
            placement=flow.placement("cpu", [0]),
            sbp=flow.sbp.broadcast,
        )
        for array in case.batch.values()
    ]
    np.testing.assert_allclose(loss_graph(*inputs).numpy(), expected["loss"], rtol=1e-5)
    logits = logits_graph(*inputs)
    if is_pretraining:
        at_positions = np.take_along_axis(
            expected["prediction_logits"], case.batch["masked_lm_positions"][..., np.newaxis], axis=1
        )
        wanted = [at_positions.reshape(-1, at_positions.shape[2]), expected["seq_relationship_logits"]]
    elif case.class_name == "BertForQuestionAnswering":
        wanted = [expected["start_logits"], expected["end_logits"]]
    else:
        logits, wanted = [logits], [expected["logits"]]
    for number, (found, value) in enumerate(zip(logits, wanted, strict=True)):
        assert_close(found.numpy(), value, number)


@needs_transformers
@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_what_it_computed(tmp_path, name):
    outputs, _ = transformers_cases.transformers_output(os.environ["TRANSFORMERS_PYTHON"], CASES[name], tmp_path)
    assert outputs.keys() == RECORDED[name].keys()
    for output, value in RECORDED[name].items():
        assert_close(outputs[output], value, output)


@needs_transformers
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

    batch = transformers_cases.random_batch(SIZE.vocab_size)
    outputs, report = transformers_cases.run_transformers(os.environ["TRANSFORMERS_PYTHON"], name, tmp_path, batch)
    transformers_cases.assert_all_loaded(report)
    assert report["tokens"] == ["hello" if do_lower_case else "Hello", "un", "##aff", "##able"]
    batch["masked_lm_positions"] = np.tile(np.arange(transformers_cases.SEQ_LENGTH), (len(batch["input_ids"]), 1))
    for output, reference in expected.items():
        # The one masks with -10000, the other with the lowest float32: after the softmax that is the same, 0.
        assert_close(outputs[output], np.asarray(reference(variables, batch, HEADS)), output)
