"""What converted models compute, and that training goes on from them."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

import bert_util
import pretrain
import reference_bert
from engine.oneflow_loader import flow
from made_parts import random_pretraining_features
from records import ofrecord
from running import ROOT, run
from snapshots import layout
from system.errors import UserError
from tf_checkpoints import CONFIG, HEADS, POSITIONS, VOCAB, bert_variables_of, save_checkpoint
from tfrecord_files import write_tfrecord_of_part
from training import job_state

pytestmark = pytest.mark.slow

SEQ_LENGTH, PREDICTIONS = 20, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a model whose every variable matters, with bert_config.json beside it: its folder."""
    folder = tmp_path_factory.mktemp("tf")
    generator = np.random.default_rng(1)
    values = {"global_step": np.int64(100)}
    for name, (_, shape) in bert_variables_of().items():
        centre = 1.0 if name.endswith("gamma") else 0.0
        values[name] = generator.normal(centre, 0.2, shape).astype(np.float32)
        values[f"{name}/adam_m"] = generator.normal(0.0, 1.0, shape).astype(np.float32)
        values[f"{name}/adam_v"] = generator.random(shape, np.float32)
    save_checkpoint(folder / "model.ckpt", values)
    (folder / "bert_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def snapshot_folder(checkpoint, tmp_path_factory):
    """The checkpoint converted."""
    folder = tmp_path_factory.mktemp("of") / "snapshot"
    result = run("convert_tf_ckpt_to_of.py", tf_checkpoint_path=checkpoint, of_dump_path=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(2)
    records = [random_pretraining_features(generator, SEQ_LENGTH, PREDICTIONS, VOCAB) for _ in range(5)]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def variables_of_checkpoint(folder):
    """What TensorFlow reads from the checkpoint, under the names that the reference knows."""
    reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
    return {target: reader.get_tensor(name) for name, (target, _) in bert_variables_of().items()}


class Outputs(flow.nn.Graph):
    """All that a pre-training model computes, without its losses."""

    def __init__(self):
        super().__init__()
        sizes = {name: value for name, value in CONFIG.items() if name != "hidden_act"}
        config = bert_util.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.model = pretrain.BertForPretraining(config, bert_util.Initializer(flow.placement("cpu", [0]), seed=0))

    def build(self, input_ids, input_mask, segment_ids, masked_lm_positions):
        sequence_output = self.model.bert(input_ids, input_mask, segment_ids)
        pooled_output = self.model.bert.pooler(sequence_output)
        logits = self.model.logits(input_ids, input_mask, segment_ids, masked_lm_positions)
        return sequence_output, pooled_output, *logits


@pytest.mark.parametrize("step", [-1, 2**60])
def test_a_train_step_that_is_no_number_of_steps(tmp_path, step):
    name = "System-Train-TrainStep-PretrainJob"
    with layout.open_writer(tmp_path / "model") as write:
        write(name, np.array([step]))
    with pytest.raises(UserError, match=f"{name} says {step}, which is not a number of steps"):
        job_state._read_step(tmp_path / "model", name)


def test_converted_model_computes_what_tensorflow_computes(checkpoint, snapshot_folder, batch):
    graph = Outputs()
    job_state.restore_for_prediction(graph, str(snapshot_folder))
    names = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    placement = flow.placement("cpu", [0])
    inputs = [flow.tensor(batch[name], placement=placement, sbp=flow.sbp.broadcast) for name in names]
    variables = variables_of_checkpoint(checkpoint)
    for output, reference in zip(
        graph(*inputs),
        (
            reference_bert.sequence_output,
            reference_bert.pooled_output,
            reference_bert.masked_lm_logits,
            reference_bert.next_sentence_logits,
        ),
        strict=True,
    ):
        expected = reference(variables, batch, HEADS).numpy()
        found = output.numpy().reshape(expected.shape)
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected), reference.__name__


def test_pretraining_starts_from_a_converted_checkpoint(checkpoint, snapshot_folder, tmp_path):
    (tmp_path / "data").mkdir()
    # Every batch holds the same record, so that the first loss does not depend on the order in which they are read.
    record = random_pretraining_features(np.random.default_rng(3), SEQ_LENGTH, PREDICTIONS, VOCAB)
    with ofrecord.open_writer(tmp_path / "data" / "part-0") as write:
        for _ in range(4):
            write(ofrecord.serialize(record))
    result = run(
        "run_pretraining.py",
        model_load_dir=snapshot_folder,
        data_dir=tmp_path / "data",
        data_part_num=1,
        num_hidden_layers=CONFIG["num_hidden_layers"],
        num_attention_heads=HEADS,
        hidden_size_per_head=CONFIG["hidden_size"] // HEADS,
        vocab_size=VOCAB,
        max_position_embeddings=POSITIONS,
        seq_length=SEQ_LENGTH,
        max_predictions_per_seq=PREDICTIONS,
        batch_size_per_device=4,
        iter_num=2,
        loss_print_every_n_iter=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        log_dir=tmp_path / "log",
        model_save_dir=tmp_path / "out",
    )
    assert result.returncode == 0, result.stderr
    assert f"Restoring model from {snapshot_folder}." in result.stdout
    assert "Initialised" not in result.stdout
    batch = {name: np.stack([values] * 4) for name, values in record.items()}
    expected = reference_bert.pretraining_losses(variables_of_checkpoint(checkpoint), batch, HEADS)
    found = re.search(r"iter 0, total_loss: (\S+), mlm_loss: (\S+), nsp_loss: (\S+), ", result.stdout).groups()
    np.testing.assert_allclose([float(loss) for loss in found], expected, atol=6e-4)


def test_the_40_samples_and_their_tfrecord_give_the_same_losses(tmp_path):
    write_tfrecord_of_part(ROOT / "dataset" / "part-0", tmp_path / "samples.tfrecord")
    result = run(
        "tools/tfrecord_to_ofrecord.py", input_file=tmp_path / "samples.tfrecord", output_dir=tmp_path / "data"
    )
    assert result.returncode == 0, result.stderr
    losses = []
    for number, folder in enumerate((ROOT / "dataset", tmp_path / "data")):
        result = run(
            "run_pretraining.py",
            data_dir=folder,
            data_part_num=1,
            num_hidden_layers=2,
            num_attention_heads=2,
            seq_length=128,
            max_predictions_per_seq=20,
            vocab_size=1200,
            batch_size_per_device=4,
            iter_num=3,
            loss_print_every_n_iter=1,
            seed=1,
            log_dir=tmp_path / str(number),
            model_save_dir=tmp_path / str(number),
        )
        assert result.returncode == 0, result.stderr
        losses.append(re.findall(r"^iter \d+, total_loss: .*?, mlm_loss: .*?, nsp_loss: \S+,", result.stdout, re.M))
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
