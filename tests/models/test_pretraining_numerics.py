"""The pre-training job against the independent float64 reference: losses, every gradient, three train steps.

Also without padding, where dropout is compared with the padded batch, and SQuAD has another loss.
"""

import argparse
import dataclasses
import sys

import numpy as np
import pytest

import bert_util
import pretrain
import reference_bert
import squad
from config import parse_pretraining_args
from engine import native, operators
from engine.oneflow_loader import flow
from engine.operators import for_each_batch
from made_parts import write_pretraining_part
from records import checks, loader, ofrecord
from running import needs_kernels
from snapshots.variables import variable_name
from training import optimizer, scoring
from training.job import TrainJob

pytestmark = [pytest.mark.slow, pytest.mark.engine]

SEQ_LENGTH = 32
NUM_HEADS = 2
BATCH = 6
CONFIG = bert_util.BertConfig(
    vocab_size=197,  # on CUDA padded to a multiple of 8
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=NUM_HEADS,
    intermediate_size=192,
    max_position_embeddings=40,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
# Warm-up, peak and decay within three steps, with gradients well beyond the clipping norm.
ARGS = parse_pretraining_args(
    ["--data_dir=x", "--learning_rate=0.01", "--weight_decay_rate=0.1", "--iter_num=5", "--warmup_batches=2"]
)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """A part of exactly one batch: (its path, the batch as NumPy arrays)."""
    path = tmp_path_factory.mktemp("data") / "part-0"
    features = write_pretraining_part(path, BATCH, SEQ_LENGTH, 5, CONFIG.vocab_size)
    return path, {name: np.stack([record[name] for record in features]) for name in features[0]}


@pytest.fixture
def one_layer(monkeypatch):
    """For what is the same with more, whose graphs take as many times as long to compile."""
    monkeypatch.setattr(sys.modules[__name__], "CONFIG", dataclasses.replace(CONFIG, num_hidden_layers=1))


def make_model():
    """A model whose biases and LayerNorms, too, are not what they are initialised with."""
    placement = flow.placement("cpu", [0])
    model = pretrain.BertForPretraining(CONFIG, bert_util.Initializer(placement, 7))
    generator = np.random.default_rng(3)
    for parameter in model.parameters():
        values = parameter.numpy() + 0.1 * generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
        parameter.copy_(flow.tensor(values, placement=placement, sbp=flow.sbp.broadcast))
    return model


def make_loader(path, batch_size=BATCH):
    args = argparse.Namespace(
        seq_length=SEQ_LENGTH, max_predictions_per_seq=5, vocab_size=CONFIG.vocab_size, type_vocab_size=2
    )
    data_set = checks.DataSet([path], checks.pretraining_fields(args), BATCH)
    return loader.OFRecordLoader(data_set, batch_size, flow.placement("cpu", [0]), shuffle=False, seed=1)


def values_of(model):
    return {variable_name(name): value.numpy().copy() for name, value in model.named_parameters()}


def test_initial_values_are_those_of_the_seed():
    """A run with a seed of an earlier version begins with the same model, to the byte."""
    initializer, generator = bert_util.Initializer(flow.placement("cpu", [0]), 7), np.random.default_rng(7)
    for shape in ((300, 40), (1,), (2, 3)):
        expected = generator.standard_normal(shape, dtype=np.float32)
        while (np.abs(expected) > 2).any():
            # In the order of the array, whatever has been redrawn before.
            beyond = np.abs(expected) > 2
            expected[beyond] = generator.standard_normal(np.count_nonzero(beyond), dtype=np.float32)
        values = initializer.truncated_normal(shape, 0.02).numpy()
        np.testing.assert_array_equal(values, expected * np.float32(0.02))


def test_losses_and_gradients(batch):
    path, arrays = batch
    model = make_model()
    parameters = dict(model.named_parameters())

    class Gradients(TrainJob):
        def build(self):
            losses = self.model(self.loader())
            losses["total_loss"].backward()
            return losses, {name: parameter.grad for name, parameter in parameters.items()}

    variables = values_of(model)
    losses, gradients = Gradients(model, make_loader(path), ARGS)()
    expected_losses, expected = reference_bert.pretraining_gradients(variables, arrays, NUM_HEADS)
    np.testing.assert_allclose([loss.numpy() for loss in losses.values()], expected_losses, rtol=1e-5)
    assert {variable_name(name) for name in gradients} == set(expected)
    for name, gradient in gradients.items():
        reference = expected[variable_name(name)]
        difference = np.linalg.norm(gradient.numpy() - reference)
        # The gradient of the keys' biases is zero in exact arithmetic; then only the scale of the others counts.
        scale = max(np.linalg.norm(reference), 1e-4)
        assert difference <= 1e-4 * scale, (name, difference / scale)


def assert_parameters_are(model, variables):
    """The model's parameters are `variables` (snapshot's name -> array), each to 1e-5 of its norm."""
    flow._oneflow_internal.eager.Sync()
    for name, value in values_of(model).items():
        difference = np.linalg.norm(value - variables[name])
        assert difference <= 1e-5 * np.linalg.norm(variables[name]), name


def assert_moments_are(job, moments):
    """Adam's means of gradients are `moments` (snapshot's name -> array). Unlike its steps they show a wrong scale."""
    flow._oneflow_internal.eager.Sync()
    scale = np.sqrt(sum(np.sum(np.square(moment)) for moment in moments.values()))
    state = {name: value for name, value in job.state_dict().items() if name.endswith("-m")}
    assert len(state) == len(moments)
    for name, value in state.items():
        expected = moments[variable_name(name.removeprefix("model.").removesuffix("-m"))]
        assert np.linalg.norm(value.numpy() - expected) <= 1e-5 * scale, name


def test_three_train_steps(batch):
    path, arrays = batch
    model = make_model()
    variables = values_of(model)
    job = pretrain.PretrainJob(model, make_loader(path), ARGS)
    moments_m = {name: np.zeros(value.shape) for name, value in variables.items()}
    moments_v = {name: np.zeros(value.shape) for name, value in variables.items()}
    for step in range(3):
        metrics = job()
        expected_losses, gradients = reference_bert.pretraining_gradients(variables, arrays, NUM_HEADS)
        norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients.values()))
        assert norm > 2 * ARGS.max_grad_norm
        np.testing.assert_allclose(metrics["total_loss"].numpy(), expected_losses[0], rtol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"].numpy(), norm, rtol=1e-5)
        rate = reference_bert.learning_rate_at(step, ARGS.learning_rate, ARGS.iter_num, ARGS.warmup_batches)
        assert optimizer.learning_rate_at(step, ARGS) == pytest.approx(rate, rel=1e-12)
        variables, moments_m, moments_v = reference_bert.adam_step(
            variables, gradients, moments_m, moments_v, rate, ARGS.weight_decay_rate
        )
    assert_parameters_are(model, variables)


def make_job(path, batch_size, accumulation_steps, job_class=pretrain.PretrainJob, args=ARGS):
    """A job with a model of its own that reads batches of `batch_size` sequences, and accumulates so many of them."""
    args = argparse.Namespace(**{**vars(args), "num_accumulation_steps": accumulation_steps})
    return job_class(make_model(), make_loader(path, batch_size), args)


class GradientsOfJob(pretrain.PretrainJob):
    """A job whose outputs include the gradients that the optimiser gets."""

    def build(self):
        outputs = super().build()
        for name, parameter in self.model.to(flow.nn.Module).named_parameters():
            gradient = parameter.grad
            outputs[name] = gradient if self.batches_per_iteration == 1 else for_each_batch(gradient)
        return outputs


def test_accumulated_gradients_are_those_of_one_larger_batch(batch, one_layer, tmp_path):
    _, arrays = batch
    with ofrecord.open_writer(tmp_path / "part-0") as write:
        # All records have the same number of predictions.
        for record in ofrecord.serialize_batch({**arrays, "masked_lm_weights": np.ones((BATCH, 5), np.float32)}):
            write(record)
    args = argparse.Namespace(**{**vars(ARGS), "max_grad_norm": 0.0})
    whole = make_job(tmp_path / "part-0", BATCH, 1, GradientsOfJob, args)()
    parts = make_job(tmp_path / "part-0", BATCH // 3, 3, GradientsOfJob, args)()
    for name in ("total_loss", "mlm_loss", "nsp_loss", "gradient_norm"):
        assert parts[name].numpy().shape == (3,)
        np.testing.assert_allclose(parts[name].numpy().mean(), whole[name].numpy(), rtol=1e-5)
    assert parts["total_loss"].numpy().std() > 1e-3
    norm = whole["gradient_norm"].numpy()
    squares = 0.0
    for name, gradient in whole.items():
        if name in dict(make_model().named_parameters()):
            # OneFlow divides the sum when the optimiser takes it.
            mean = np.split(parts[name].numpy(), 3)[0].reshape(gradient.shape) / 3
            squares += float(np.square(mean - gradient.numpy()).sum())
    assert 0 < np.sqrt(squares) <= 1e-5 * norm


@pytest.mark.parametrize("scales_loss", [False, True])
def test_train_steps_with_accumulation(batch, one_layer, scales_loss):
    """Adam on the mean of the batches' gradients, clipped after it is taken; also where the loss is scaled."""
    path, arrays = batch
    job = make_job(path, BATCH // 2, 2)
    if scales_loss:
        job.scale_loss(2.0**10)
    variables = values_of(job.model.to(flow.nn.Module))
    moments_m = moments_v = {}
    halves = [{name: array[half] for name, array in arrays.items()} for half in (slice(0, 3), slice(3, 6))]
    for step in range(3):
        metrics = job()
        losses, gradients = zip(
            *(reference_bert.pretraining_gradients(variables, half, NUM_HEADS) for half in halves), strict=True
        )
        gradients = {name: (gradients[0][name] + gradients[1][name]) / 2 for name in gradients[0]}
        norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients.values()))
        np.testing.assert_allclose(metrics["total_loss"].numpy(), [loss[0] for loss in losses], rtol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"].numpy(), [norm, norm], rtol=1e-5)
        variables, moments_m, moments_v = reference_bert.adam_step(
            variables, gradients, moments_m, moments_v, optimizer.learning_rate_at(step, ARGS), ARGS.weight_decay_rate
        )
    assert_parameters_are(job.model.to(flow.nn.Module), variables)
    assert_moments_are(job, moments_m)


@needs_kernels
def test_dropout_draws_the_same_masks_for_the_backward_pass(batch, monkeypatch):
    """With activation checkpointing the gradient agrees with the difference of losses along it.

    All jobs draw the same masks in their first step.
    """
    path, _ = batch
    config = dataclasses.replace(CONFIG, num_hidden_layers=1, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    monkeypatch.setattr(sys.modules[__name__], "CONFIG", config)
    args = argparse.Namespace(**{**vars(ARGS), "activation_checkpointing": True, "max_grad_norm": 0.0})

    def first_outputs(shifts):
        job = make_job(path, BATCH, 1, GradientsOfJob, args)
        for name, parameter in job.model.to(flow.nn.Module).named_parameters():
            if name in shifts:
                shift = flow.tensor(shifts[name], placement=parameter.placement, sbp=flow.sbp.broadcast)
                parameter.copy_(parameter + shift)
        outputs = {name: value.numpy() for name, value in job().items()}
        assert "Sys-Checkpointing-Fake-Fw-Op_" in str(job._full_graph_proto)
        return outputs

    outputs = first_outputs({})
    norm = outputs["gradient_norm"]
    gradients = {name: value for name, value in outputs.items() if value.shape}
    step = 1e-2
    above = first_outputs({name: step / norm * gradient for name, gradient in gradients.items()})
    below = first_outputs({name: -step / norm * gradient for name, gradient in gradients.items()})
    assert (above["total_loss"] - below["total_loss"]) / (2 * step) == pytest.approx(norm, rel=0.02)


def test_another_job_on_the_same_model(batch, one_layer):
    """It trains the model as it would train one of these values that no job has had before."""
    path, _ = batch
    model, fresh = make_model(), make_model()

    def train(trained):
        """Two steps, as the first is one at a learning rate of 0."""
        job = pretrain.PretrainJob(trained, make_loader(path), ARGS)
        outputs = [output.numpy() for _ in range(2) for output in job().values()]
        flow._oneflow_internal.eager.Sync()
        return outputs

    train(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter, trained in zip(fresh.parameters(), model.parameters(), strict=True):
        parameter.copy_(trained)
    np.testing.assert_array_equal(train(model), train(fresh))
    for name, value in values_of(fresh).items():
        np.testing.assert_array_equal(values_of(model)[name], value, err_msg=name)
    # Eagerly too.
    sum((parameter * parameter).sum() for parameter in model.parameters()).backward()


def test_three_train_steps_with_loss_scaling(batch, one_layer):
    """What --use_fp16 does to the optimiser on a GPU, in float32: scaled loss, clipping by the unscaled norm."""
    path, arrays = batch
    model = make_model()
    variables = values_of(model)

    job = pretrain.PretrainJob(model, make_loader(path), ARGS)
    job.scale_loss(2.0**10)
    moments_m = moments_v = {}
    for step in range(3):
        metrics = job()
        _, gradients = reference_bert.pretraining_gradients(variables, arrays, NUM_HEADS)
        norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients.values()))
        np.testing.assert_allclose(metrics["gradient_norm"].numpy(), norm, rtol=1e-5)
        rate = optimizer.learning_rate_at(step, ARGS)
        variables, moments_m, moments_v = reference_bert.adam_step(
            variables, gradients, moments_m, moments_v, rate, ARGS.weight_decay_rate
        )
    assert_parameters_are(model, variables)
    assert_moments_are(job, moments_m)


@pytest.mark.parametrize("size", [30_000_000])
def test_gradient_norm_of_many_values(size):
    """Squares added up one after the other in float32 would stop growing at 2^24 terms."""
    parameter = flow.nn.Parameter(
        flow.zeros(size // 1000, 1000, placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)
    )

    class Norm(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = flow.nn.ParameterList([parameter])
            self.add_optimizer(flow.optim.SGD([parameter], lr=0.0))

        def build(self):
            (parameter + 1e-3).sum().backward()
            return optimizer.clip_by_global_norm([parameter], [parameter.grad], 1.0)

    np.testing.assert_allclose(Norm()().numpy(), np.sqrt(size), rtol=1e-5)


# Tokens of the sequences: all, an odd number, one, two, more with a hole, and another odd number. (What is computed for
# a sequence without any is mostly rounding.)
LENGTHS = [SEQ_LENGTH, 17, 1, 2, 20, 5]
WITH_DROPOUT = dataclasses.replace(
    CONFIG, num_hidden_layers=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
)


@pytest.fixture
def skips_padding():
    """Makes graphs skip padding."""
    if not operators.has_native_operators():
        pytest.skip("no native kernels for it: make kernels builds them")
    operators.skip_padding(True)
    yield
    operators.skip_padding(False)


@pytest.fixture(scope="module")
def short_batch(batch, tmp_path_factory):
    """A part of one batch of LENGTHS: (its path, the batch as NumPy arrays)."""
    path = tmp_path_factory.mktemp("data") / "part-0"
    arrays = dict(batch[1])
    arrays["input_mask"] = (np.arange(SEQ_LENGTH) < np.array(LENGTHS)[:, None]).astype(np.int32)
    arrays["input_mask"][4, 3] = 0
    # Predictions are at tokens.
    arrays["masked_lm_positions"] %= np.array(LENGTHS, np.int32)[:, None]
    with ofrecord.open_writer(path) as write:
        for record in ofrecord.serialize_batch(arrays):
            write(record)
    return path, arrays


def test_losses_and_gradients_without_padding(short_batch, skips_padding):
    test_losses_and_gradients(short_batch)


def losses_of(path, packed, batches=1, **flags):
    """Losses and gradient norms of three steps with dropout."""
    operators.skip_padding(packed)
    native.set_seed(5)
    args = argparse.Namespace(**{**vars(ARGS), **flags})
    job = make_job(path, BATCH // batches, batches, args=args)
    steps = [job() for _ in range(3)]
    return [[step[name].numpy().mean() for name in ("total_loss", "gradient_norm")] for step in steps]


@pytest.mark.parametrize("flags", [{}, {"activation_checkpointing": True, "batches": 2}])
def test_dropout_is_that_of_the_padded_batch(short_batch, skips_padding, monkeypatch, flags):
    path, _ = short_batch
    monkeypatch.setattr(sys.modules[__name__], "CONFIG", WITH_DROPOUT)
    np.testing.assert_allclose(losses_of(path, True, **flags), losses_of(path, False, **flags), rtol=1e-5)


def test_squad_without_padding(short_batch, skips_padding):
    """The loss and its gradients where the softmax is over what precedes the padding; logits of padding are -10000."""
    _, arrays = short_batch
    labels = {"start_positions": [[3], [16], [0], [1], [7], [1]], "end_positions": [[30], [16], [0], [1], [9], [4]]}
    arrays = {name: arrays[name] for name in ("input_ids", "input_mask", "segment_ids")}
    arrays |= {name: np.array(values, np.int32) for name, values in labels.items()}
    placement = flow.placement("cpu", [0])
    model = squad.BertForQuestionAnswering(CONFIG, bert_util.Initializer(placement, 7))
    parameters = dict(model.named_parameters())

    class Batch(flow.nn.Module):
        def forward(self):
            return {
                name: flow.tensor(array, placement=placement, sbp=flow.sbp.broadcast) for name, array in arrays.items()
            }

    class Gradients(TrainJob):
        def build(self):
            losses = self.model(self.loader())
            losses["total_loss"].backward()
            return losses["total_loss"], {name: parameter.grad for name, parameter in parameters.items()}

    loss, gradients = Gradients(model, Batch(), ARGS)()
    stored = np.arange(SEQ_LENGTH) < np.array(LENGTHS)[:, None]
    expected_loss, expected = reference_bert.squad_gradients(values_of(model), arrays, NUM_HEADS, (stored - 1.0) * 1e6)
    np.testing.assert_allclose(loss.numpy(), expected_loss, rtol=1e-5)
    for name, gradient in gradients.items():
        reference = expected[variable_name(name)]
        difference = np.linalg.norm(gradient.numpy() - reference)
        assert difference <= 1e-4 * max(np.linalg.norm(reference), 1e-3), name
    inputs = {name: arrays[name] for name in scoring.SEQUENCE}
    for logits in scoring.Scorer(model, placement).score(inputs, SEQ_LENGTH):
        np.testing.assert_array_equal(logits == -10000, ~stored)
