"""The pre-training job against the independent float64 reference: losses, every gradient, three train steps."""

import argparse

import numpy as np
import pytest

import bert_util
import pretrain
import reference_bert
from config import parse_pretraining_args
from engine.oneflow_loader import flow
from made_parts import write_pretraining_part
from records import checks, loader
from snapshots.variables import variable_name
from training import optimizer
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


def make_model():
    """A model whose biases and LayerNorms, too, are not what they are initialised with."""
    placement = flow.placement("cpu", [0])
    model = pretrain.BertForPretraining(CONFIG, bert_util.Initializer(placement, 7))
    generator = np.random.default_rng(3)
    for parameter in model.parameters():
        values = parameter.numpy() + 0.1 * generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
        parameter.copy_(flow.tensor(values, placement=placement, sbp=flow.sbp.broadcast))
    return model


def make_loader(path):
    args = argparse.Namespace(
        seq_length=SEQ_LENGTH, max_predictions_per_seq=5, vocab_size=CONFIG.vocab_size, type_vocab_size=2
    )
    data_set = checks.DataSet([path], checks.pretraining_fields(args), BATCH)
    return loader.OFRecordLoader(data_set, BATCH, flow.placement("cpu", [0]), shuffle=False, seed=1)


def values_of(model):
    return {variable_name(name): value.numpy().copy() for name, value in model.named_parameters()}


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


def test_another_job_on_the_same_model(batch):
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


def test_three_train_steps_with_loss_scaling(batch):
    """What --use_fp16 does to the optimiser on a GPU, in float32: scaled loss, clipping by the unscaled norm."""
    path, arrays = batch
    model = make_model()
    variables = values_of(model)

    class ScaledJob(pretrain.PretrainJob):
        def __init__(self):
            super().__init__(model, make_loader(path), ARGS)
            self.scales_loss = True
            self.set_grad_scaler(flow.amp.GradScaler(init_scale=2.0**10))

    job = ScaledJob()
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
