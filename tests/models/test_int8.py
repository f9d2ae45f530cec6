"""Prediction in int8, as --use_int8 switches it on, against the float64 reference with rounded linear layers."""

import numpy as np
import pytest

import bert_util
import int8_reference
import reference_bert
import squad
from engine import operators
from engine.oneflow_loader import flow
from running import needs_kernels
from snapshots.variables import variable_name
from training import scoring

pytestmark = [pytest.mark.slow, needs_kernels]

HEADS = 2
CONFIG = bert_util.BertConfig(
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=HEADS,
    intermediate_size=56,
    max_position_embeddings=8,
    type_vocab_size=2,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
LENGTH = 8
# Of a model whose activations are far from ties: in float32 they would be rounded otherwise than in float64.
SEED = 52


@pytest.fixture(params=[False, True])
def graphs_in_int8(request):
    """Graphs with int8, which skip padding or do not."""
    operators.skip_padding(request.param)
    operators.use_int8(True)
    yield
    operators.use_int8(False)
    operators.skip_padding(False)


def make_model(seed):
    """A model of random parameters, and these by name."""
    placement = flow.placement("cpu", [0])
    model = squad.BertForQuestionAnswering(CONFIG, bert_util.ZeroInitializer(placement))
    generator = np.random.default_rng(seed)
    for parameter in model.parameters():
        values = generator.standard_normal(tuple(parameter.shape), dtype=np.float32) * 0.3
        parameter.copy_(flow.tensor(values, placement=placement, sbp=flow.sbp.broadcast))
    return model, {variable_name(name): value.numpy().copy() for name, value in model.named_parameters()}


def make_batch():
    mask = (np.arange(LENGTH) < [[LENGTH], [3], [6]]).astype(np.int32)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, mask.shape).astype(np.int32)
    return {"input_ids": ids, "input_mask": mask, "segment_ids": (np.arange(LENGTH) > 2).astype(np.int32) * mask}


def expected_logits(monkeypatch, variables, batch):
    """The reference's start and end logits with the encoder's linear layers in int8, and how near the next tie is."""
    nearness = []
    dense = reference_bert.dense

    def rounded_dense(variables, prefix, inputs):
        if not prefix.startswith("bert-encoder-"):
            return dense(variables, prefix, inputs)
        weight, bias = (np.float32(variables[f"{prefix}-{name}"]) for name in ("weight", "bias"))
        rows = np.float32(inputs).reshape(-1, len(weight))
        of_tokens = rows[batch["input_mask"].ravel() == 1]
        nearness.append(int8_reference.nearness_to_ties(of_tokens, int8_reference.scale_of_rows(of_tokens)).min())
        nearness.append(int8_reference.nearness_to_ties(weight, int8_reference.scale_of_columns(weight)).min())
        y = int8_reference.linear(rows, weight, bias)
        return y.reshape(*inputs.shape[:-1], -1)

    with monkeypatch.context() as patched:
        patched.setattr(reference_bert, "dense", rounded_dense)
        logits = [np.asarray(each) for each in reference_bert.squad_logits(variables, batch, HEADS)]
    assert len(nearness) == 2 * 6
    return logits, min(nearness)


def test_logits(graphs_in_int8, monkeypatch):
    model, variables = make_model(SEED)
    batch = make_batch()
    expected, nearness = expected_logits(monkeypatch, variables, batch)
    assert nearness > 4e-4
    scorer = scoring.Scorer(model, flow.placement("cpu", [0]))
    in_float32 = reference_bert.squad_logits(variables, batch, HEADS)
    is_token = batch["input_mask"] == 1
    # The second graph shares the rounded weights of the first.
    for rows in (slice(0, 3), slice(1, 2)):
        found = scorer.score({name: array[rows] for name, array in batch.items()}, LENGTH)
        for logits, wanted, exact in zip(found, expected, in_float32, strict=True):
            tokens = is_token[rows]
            np.testing.assert_allclose(logits[tokens], wanted[rows][tokens], rtol=1e-5, atol=1e-5)
            assert np.abs(logits[tokens] - np.asarray(exact)[rows][tokens]).max() > 1e-3
