"""The classifier's job against the independent float64 reference: the loss and every gradient."""

import argparse

import numpy as np
import pytest

import bert_util
import classifier
import reference_bert
from config import parse_pretraining_args
from engine.oneflow_loader import flow
from made_parts import write_classifier_part
from records import checks, loader
from snapshots.variables import variable_name

pytestmark = pytest.mark.slow

PLACEMENT = flow.placement("cpu", [0])
CONFIG = bert_util.BertConfig(200, 48, 2, 2, 192, 40, 2, 0.0, 0.0)
ARGS = parse_pretraining_args(
    ["--data_dir=x", "--learning_rate=0.01", "--weight_decay_rate=0.1", "--iter_num=5", "--warmup_batches=2"]
)


@pytest.mark.parametrize("labels", [[2, 0, 1, 2, 1], [0.5, -1.25, 3.0, 0.0, 2.0]], ids=["classes", "scores"])
def test_loss_and_gradients(tmp_path, labels):
    records = write_classifier_part(tmp_path / "data" / "part-0", labels)
    num_labels = 3 if isinstance(labels[0], int) else 1
    fields = checks.classifier_fields(
        argparse.Namespace(seq_length=32, vocab_size=200, type_vocab_size=2, num_labels=num_labels)
    )
    data_set = checks.DataSet([tmp_path / "data" / "part-0"], fields, len(labels))
    data = loader.OFRecordLoader(data_set, len(labels), PLACEMENT, shuffle=False, seed=1)
    model = classifier.BertForSequenceClassification(CONFIG, num_labels, bert_util.Initializer(PLACEMENT, 7))
    generator = np.random.default_rng(3)
    for parameter in model.parameters():
        values = parameter.numpy() + 0.1 * generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
        parameter.copy_(flow.tensor(values, placement=PLACEMENT, sbp=flow.sbp.broadcast))
    parameters = dict(model.named_parameters())
    assert {"output_weights", "output_bias"} <= {variable_name(name) for name in parameters}

    class Gradients(classifier.ClassifierJob):
        def build(self):
            losses = self.model(self.loader())
            losses["total_loss"].backward()
            return losses, {name: parameter.grad for name, parameter in parameters.items()}

    variables = {variable_name(name): value.numpy().copy() for name, value in parameters.items()}
    losses, gradients = Gradients(model, data, ARGS)()
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    (expected_loss,), expected = reference_bert.classifier_gradients(variables, batch, 2)
    np.testing.assert_allclose(losses["total_loss"].numpy(), expected_loss, rtol=1e-5)
    assert {variable_name(name) for name in gradients} == set(expected)
    for name, gradient in gradients.items():
        reference = expected[variable_name(name)]
        assert np.linalg.norm(gradient.numpy() - reference) <= 1e-4 * np.linalg.norm(reference) + 1e-7, name
