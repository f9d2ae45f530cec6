"""Checks of the reference itself: against a second forward pass in plain NumPy, and that pass's differences."""

import math

import numpy as np
import pytest

import reference_bert

pytestmark = pytest.mark.slow

HIDDEN, HEADS, INTERMEDIATE, LAYERS, VOCABULARY, MAX_POSITIONS = 8, 2, 12, 2, 13, 7
BATCH, SEQUENCE, PREDICTIONS = 3, 6, 2


def make_variables(seed=0):
    """Variables of a tiny model, large enough for attention and GELU to be far from linear."""
    generator = np.random.default_rng(seed)
    shapes = {
        "bert-embeddings-word_embeddings": (VOCABULARY, HIDDEN),
        "bert-embeddings-token_type_embeddings": (2, HIDDEN),
        "bert-embeddings-position_embeddings": (MAX_POSITIONS, HIDDEN),
        "cls-predictions-output_bias": (VOCABULARY,),
        "cls-seq_relationship-output_weights": (2, HIDDEN),
        "cls-seq_relationship-output_bias": (2,),
    }
    layer_norms = ["bert-embeddings-LayerNorm", "cls-predictions-transform-LayerNorm"]
    denses = {
        "bert-pooler-dense": (HIDDEN, HIDDEN),
        "cls-predictions-transform-dense": (HIDDEN, HIDDEN),
        "cls-squad-output": (HIDDEN, 2),
    }
    for layer in range(LAYERS):
        prefix = f"bert-encoder-layer_{layer}"
        for name in ("self-query", "self-key", "self-value", "output-dense"):
            denses[f"{prefix}-attention-{name}"] = (HIDDEN, HIDDEN)
        denses[f"{prefix}-intermediate-dense"] = (HIDDEN, INTERMEDIATE)
        denses[f"{prefix}-output-dense"] = (INTERMEDIATE, HIDDEN)
        layer_norms += [f"{prefix}-attention-output-LayerNorm", f"{prefix}-output-LayerNorm"]
    for name, (inputs, outputs) in denses.items():
        shapes[f"{name}-weight"], shapes[f"{name}-bias"] = (inputs, outputs), (outputs,)
    for name in layer_norms:
        shapes[f"{name}-gamma"] = shapes[f"{name}-beta"] = (HIDDEN,)
    return {name: generator.normal(scale=0.5, size=shape) + name.endswith("gamma") for name, shape in shapes.items()}


def make_batch(seed=1):
    """A batch with repeated ids, padding of different lengths, an unused prediction and both labels."""
    generator = np.random.default_rng(seed)
    input_mask = (np.arange(SEQUENCE) < np.array([[6], [4], [5]])).astype(np.int32)
    return {
        "input_ids": generator.integers(0, VOCABULARY, (BATCH, SEQUENCE), dtype=np.int32),
        "input_mask": input_mask,
        "segment_ids": generator.integers(0, 2, (BATCH, SEQUENCE), dtype=np.int32),
        "masked_lm_positions": np.array([[1, 4], [2, 0], [3, 3]], np.int32),
        "masked_lm_ids": generator.integers(0, VOCABULARY, (BATCH, PREDICTIONS), dtype=np.int32),
        "masked_lm_weights": np.array([[1, 1], [1, 0], [1, 1]], np.float32),
        "next_sentence_labels": np.array([[0], [1], [1]], np.int32),
        "start_positions": np.array([1, 0, 2], np.int32),
        "end_positions": np.array([[5], [3], [2]], np.int32),
    }


# The second forward pass: NumPy, one sequence, one head and one token at a time.


def numpy_layer_norm(variables, prefix, vector):
    centred = vector - vector.mean()
    normalised = centred / math.sqrt(centred.dot(centred) / len(vector) + 1e-12)
    return normalised * variables[f"{prefix}-gamma"] + variables[f"{prefix}-beta"]


def numpy_dense(variables, prefix, vector):
    return vector @ variables[f"{prefix}-weight"] + variables[f"{prefix}-bias"]


def numpy_gelu(vector):
    return np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in vector])


def numpy_log_softmax(scores):
    return scores - np.max(scores) - math.log(np.exp(scores - np.max(scores)).sum())


def numpy_attention(variables, prefix, states, mask):
    query, key, value = (
        np.stack([numpy_dense(variables, f"{prefix}-{name}", state) for state in states])
        for name in ("query", "key", "value")
    )
    context = np.zeros_like(states)
    size = HIDDEN // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for position in range(SEQUENCE):
            scores = key[:, part] @ query[position, part] / math.sqrt(size) - 10000 * (1 - mask)
            context[position, part] = np.exp(numpy_log_softmax(scores)) @ value[:, part]
    return context


def numpy_sequence_output(variables, input_ids, input_mask, segment_ids):
    """[S] each -> [S, H]."""
    states = [
        numpy_layer_norm(
            variables,
            "bert-embeddings-LayerNorm",
            variables["bert-embeddings-word_embeddings"][token]
            + variables["bert-embeddings-token_type_embeddings"][segment]
            + variables["bert-embeddings-position_embeddings"][position],
        )
        for position, (token, segment) in enumerate(zip(input_ids, segment_ids, strict=True))
    ]
    for layer in range(LAYERS):
        prefix = f"bert-encoder-layer_{layer}"
        contexts = numpy_attention(variables, f"{prefix}-attention-self", np.stack(states), input_mask)
        for position, context in enumerate(contexts):
            attention = numpy_dense(variables, f"{prefix}-attention-output-dense", context) + states[position]
            attention = numpy_layer_norm(variables, f"{prefix}-attention-output-LayerNorm", attention)
            intermediate = numpy_gelu(numpy_dense(variables, f"{prefix}-intermediate-dense", attention))
            output = numpy_dense(variables, f"{prefix}-output-dense", intermediate) + attention
            states[position] = numpy_layer_norm(variables, f"{prefix}-output-LayerNorm", output)
    return np.stack(states)


def numpy_sequence_outputs(variables, batch):
    return np.stack(
        [
            numpy_sequence_output(variables, *arrays)
            for arrays in zip(batch["input_ids"], batch["input_mask"], batch["segment_ids"], strict=True)
        ]
    )


def numpy_pretraining_losses(variables, batch):
    """(total, masked LM, next sentence)."""
    mlm_sum = nsp_sum = 0.0
    for index, states in enumerate(numpy_sequence_outputs(variables, batch)):
        predictions = (batch[f"masked_lm_{field}"][index] for field in ("positions", "ids", "weights"))
        for position, token, weight in zip(*predictions, strict=True):
            state = numpy_gelu(numpy_dense(variables, "cls-predictions-transform-dense", states[position]))
            state = numpy_layer_norm(variables, "cls-predictions-transform-LayerNorm", state)
            logits = variables["bert-embeddings-word_embeddings"] @ state + variables["cls-predictions-output_bias"]
            mlm_sum -= weight * numpy_log_softmax(logits)[token]
        pooled = np.tanh(numpy_dense(variables, "bert-pooler-dense", states[0]))
        logits = variables["cls-seq_relationship-output_weights"] @ pooled
        logits = logits + variables["cls-seq_relationship-output_bias"]
        nsp_sum -= numpy_log_softmax(logits)[batch["next_sentence_labels"][index, 0]]
    mlm, nsp = mlm_sum / (batch["masked_lm_weights"].sum(dtype=np.float64) + 1e-5), nsp_sum / BATCH
    return mlm + nsp, mlm, nsp


def numpy_squad_loss(variables, batch):
    loss = 0.0
    for index, states in enumerate(numpy_sequence_outputs(variables, batch)):
        logits = numpy_dense(variables, "cls-squad-output", states)
        loss -= numpy_log_softmax(logits[:, 0])[batch["start_positions"][index]]
        loss -= numpy_log_softmax(logits[:, 1])[np.ravel(batch["end_positions"])[index]]
    return loss / (2 * BATCH)


@pytest.fixture(scope="module")
def variables():
    return make_variables()


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def test_forward_agrees_with_numpy(variables, batch):
    states = reference_bert.sequence_output(variables, batch, HEADS)
    np.testing.assert_allclose(states, numpy_sequence_outputs(variables, batch), rtol=1e-10, atol=1e-12)


def test_losses_agree_with_numpy(variables, batch):
    losses = reference_bert.pretraining_losses(variables, batch, HEADS)
    np.testing.assert_allclose(losses, numpy_pretraining_losses(variables, batch), rtol=1e-12)
    loss = reference_bert.squad_loss(variables, batch, HEADS)
    np.testing.assert_allclose(loss, numpy_squad_loss(variables, batch), rtol=1e-12)


def test_outputs_have_the_documented_shapes(variables, batch):
    assert reference_bert.pooled_output(variables, batch, HEADS).shape == (BATCH, HIDDEN)
    assert reference_bert.masked_lm_logits(variables, batch, HEADS).shape == (BATCH, PREDICTIONS, VOCABULARY)
    assert reference_bert.next_sentence_logits(variables, batch, HEADS).shape == (BATCH, 2)
    assert [logits.shape for logits in reference_bert.squad_logits(variables, batch, HEADS)] == [(BATCH, SEQUENCE)] * 2


def central_difference(loss, variables, name, direction, step=1e-5):
    """The derivative of `loss(variables)` along `direction` in the variable `name`."""
    ahead = loss(variables | {name: variables[name] + step * direction})
    behind = loss(variables | {name: variables[name] - step * direction})
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize(
    "gradients_of, loss",
    [
        (reference_bert.pretraining_gradients, lambda variables: numpy_pretraining_losses(variables, make_batch())[0]),
        (reference_bert.squad_gradients, lambda variables: numpy_squad_loss(variables, make_batch())),
    ],
    ids=["pretraining", "squad"],
)
def test_gradients_agree_with_differences_of_numpy(variables, batch, gradients_of, loss):
    losses, gradients = gradients_of(variables, batch, HEADS)
    assert losses[0] == pytest.approx(loss(variables), rel=1e-12)
    generator = np.random.default_rng(2)
    for name, value in variables.items():
        if name not in gradients:
            continue
        assert gradients[name].shape == value.shape and gradients[name].dtype == np.float64
        for _ in range(2):
            direction = generator.normal(size=value.shape)
            expected = central_difference(loss, variables, name, direction)
            assert np.sum(gradients[name] * direction) == pytest.approx(expected, rel=1e-6, abs=1e-9), name


def test_every_variable_of_the_loss_has_a_gradient(variables, batch):
    _, gradients = reference_bert.pretraining_gradients(variables, batch, HEADS)
    assert set(variables) - set(gradients) == {"cls-squad-output-weight", "cls-squad-output-bias"}
    _, gradients = reference_bert.squad_gradients(variables, batch, HEADS)
    assert {name for name in variables if not name.startswith(("cls-p", "cls-seq", "bert-pooler"))} == set(gradients)


def test_masked_positions_reach_no_other_position(variables, batch):
    changed = batch | {"input_ids": np.where(batch["input_mask"] == 1, batch["input_ids"], 0)}
    assert not np.array_equal(changed["input_ids"], batch["input_ids"])
    before, after = (reference_bert.sequence_output(variables, b, HEADS).numpy() for b in (batch, changed))
    np.testing.assert_array_equal(before[batch["input_mask"] == 1], after[batch["input_mask"] == 1])


def test_adam_step_by_hand():
    """Two steps of one number each in a decayed weight and a spared bias.

    First gradients 3 and 4 have the norm 5 and become 0.6 and 0.8; the second ones, 0.3 and 0.4, stay.
    """
    variables = {"x-weight": np.array([2.0]), "x-bias": np.array([2.0])}
    first = reference_bert.adam_step(
        variables, {"x-weight": np.array([3.0]), "x-bias": np.array([4.0])}, {}, {}, 0.1, 0.01
    )
    second = reference_bert.adam_step(
        first[0], {"x-weight": np.array([0.3]), "x-bias": np.array([0.4])}, first[1], first[2], 0.05, 0.01
    )

    weight = 2.0 - 0.1 * (0.06 / (math.sqrt(0.00036) + 1e-6) + 0.01 * 2.0)
    bias = 2.0 - 0.1 * (0.08 / (math.sqrt(0.00064) + 1e-6))
    assert first[0]["x-weight"] == pytest.approx(weight, rel=1e-14)
    assert first[0]["x-bias"] == pytest.approx(bias, rel=1e-14)
    # m: 0.9 x 0.06 + 0.1 x 0.3, 0.9 x 0.08 + 0.1 x 0.4; v: 0.999 x 0.00036 + 0.001 x 0.09, and so on.
    assert second[1] == {"x-weight": pytest.approx(0.084, rel=1e-14), "x-bias": pytest.approx(0.112, rel=1e-14)}
    assert second[2] == {"x-weight": pytest.approx(0.00044964, rel=1e-13), "x-bias": pytest.approx(0.00079936)}
    weight -= 0.05 * (0.084 / (math.sqrt(0.00044964) + 1e-6) + 0.01 * weight)
    bias -= 0.05 * (0.112 / (math.sqrt(0.00079936) + 1e-6))
    assert second[0]["x-weight"] == pytest.approx(weight, rel=1e-14)
    assert second[0]["x-bias"] == pytest.approx(bias, rel=1e-14)
    assert variables["x-weight"] == 2.0, "the input is left as it is"


@pytest.mark.parametrize(
    "name, decays",
    [
        ("bert-embeddings-word_embeddings", True),
        ("bert-encoder-layer_0-output-dense-weight", True),
        ("cls-seq_relationship-output_weights", True),
        ("bert-encoder-layer_0-output-dense-bias", False),
        ("bert-encoder-layer_0-output-LayerNorm-gamma", False),
        ("bert-embeddings-LayerNorm-beta", False),
        ("cls-predictions-output_bias", False),
        ("cls-seq_relationship-output_bias", False),
    ],
)
def test_adam_step_decays_weights_only(name, decays):
    variables, gradients = {name: np.array([3.0])}, {name: np.array([0.0])}
    new_variables, _, _ = reference_bert.adam_step(variables, gradients, {}, {}, 0.1, 0.01)
    assert new_variables[name] == pytest.approx(3.0 - (0.1 * 0.01 * 3.0 if decays else 0.0), rel=1e-15)


@pytest.mark.parametrize(
    "step, expected", [(0, 0.0), (1, 0.2), (3, 0.6), (4, 0.48), (5, 0.4), (9, 0.08), (10, 0.0), (11, 0.0)]
)
def test_learning_rate(step, expected):
    """Warmed up from 0 to 0.8 over the first 4 steps, then on the line from 0.8 at step 0 to 0 at step 10."""
    assert reference_bert.learning_rate_at(step, 0.8, 10, 4) == pytest.approx(expected)


def test_learning_rate_without_warm_up_starts_at_the_full_rate():
    assert reference_bert.learning_rate_at(0, 3e-5, 20, 0) == 3e-5
