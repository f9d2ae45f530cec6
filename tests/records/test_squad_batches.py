"""Tests prediction without padding: how windows are batched, and that the logits of tokens do not change."""

import argparse

import numpy as np
import pytest

import bert_util
import squad
from engine.oneflow_loader import flow
from made_parts import write_squad_parts
from records import checks, prediction_file, squad_batches
from system.errors import UserError
from training import scoring

PLACEMENT = flow.placement("cpu", [0])
SEQ_LENGTH = 160


def masks(lengths, whole):
    return (np.arange(whole) < np.array(lengths)[:, None]).astype(np.int32)


def test_batches_cover_all_windows():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 385, 1000)
    batches = squad_batches.make_batches(masks(lengths, 384), 8, {})
    assert len(batches) == 125
    assert sorted(np.concatenate([rows for _, rows in batches])) == list(range(1000))
    for length, rows in batches:
        assert len(rows) == 8
        assert length % 32 == 0 and lengths[rows].max() <= length <= 384
    # At least 19,000 tokens of padding, and some more for fewer graphs.
    computed = sum(length * len(rows) for length, rows in batches)
    assert lengths.sum() < computed < 1.15 * lengths.sum()
    assert len({length for length, _ in batches}) < 12


def test_rare_lengths_share_a_graph():
    mask = masks([20, 380], 384)
    assert [length for length, _ in squad_batches.make_batches(mask, 1, {})] == [384, 384]
    assert [length for length, _ in squad_batches.make_batches(mask, 1, {32})] == [32, 384]
    many = masks([20] * 100 + [380], 384)
    assert {length for length, _ in squad_batches.make_batches(many, 1, {})} == {32, 384}


def test_odd_windows():
    mask = masks([5, 0, 33], 50)
    mask[0, 40] = 1  # a token after padding
    lengths = {row: length for length, (row,) in squad_batches.make_batches(mask, 1, {64, 50, 32})}
    assert lengths == {0: 50, 1: 50, 2: 50}
    ((length, rows),) = squad_batches.make_batches(masks([7, 9], 20), 5, {})
    assert length == 20 and set(rows) == {0, 1} and len(rows) == 5


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """70 windows of 10 to 160 tokens in two parts; the last window repeats the id of the first."""
    folder = tmp_path_factory.mktemp("windows")
    features = write_squad_parts(folder, 70, parts=2, seq_length=SEQ_LENGTH, is_training=False)
    features[-1]["unique_ids"][:] = features[0]["unique_ids"]
    for index, window in enumerate(features):
        window["input_mask"][:] = np.arange(SEQ_LENGTH) < 10 + (index * 37) % 151
    from records import ofrecord

    for part in range(2):
        with ofrecord.open_writer(folder / f"part-{part}") as write:
            for window in features[35 * part : 35 * part + 35]:
                write(ofrecord.serialize(window))
    args = argparse.Namespace(seq_length=SEQ_LENGTH, vocab_size=200, type_vocab_size=2)
    return checks.DataSet([folder / "part-0", folder / "part-1"], checks.squad_predict_fields(args), 70)


def test_same_logits(data_set, monkeypatch):
    """Compares each token's logits with those of fully padded batches, for several chunks and several graphs."""
    monkeypatch.setattr(squad_batches, "WINDOWS_AT_A_TIME", 40)
    monkeypatch.setattr(squad_batches, "_TOKENS_PER_GRAPH", 100)
    config = bert_util.BertConfig(200, 64, 2, 2, 256, SEQ_LENGTH, 2, 0.1, 0.1)
    model = squad.BertForQuestionAnswering(config, bert_util.Initializer(PLACEMENT, 3))
    for parameter in model.parameters():
        parameter.copy_(parameter * 3)
    scorer = scoring.Scorer(model, PLACEMENT)
    args = argparse.Namespace(
        node_num=1, gpu_num_per_node=1, batch_size_per_device=4, iter_num=18, seq_length=SEQ_LENGTH
    )
    results = squad.predict_with_little_padding(scorer, data_set, args)
    assert len(scorer.lengths) > 2
    assert results.dtype == prediction_file.result_dtype(SEQ_LENGTH)
    assert results["unique_id"].tolist() == list(range(1000000000, 1000000069))

    windows = {name: [] for name in data_set.fields}
    for window in checks.read_records(data_set):
        for name, values in windows.items():
            values.append(window[name])
    whole = scoring.BatchJob(model.eval())
    inputs = [
        flow.tensor(np.stack(windows[name][:69]), dtype=flow.int32, placement=PLACEMENT, sbp=flow.sbp.broadcast)
        for name in ("input_ids", "input_mask", "segment_ids")
    ]
    is_token = np.stack(windows["input_mask"][:69]) == 1
    for name, expected in zip(("start_logits", "end_logits"), whole(*inputs), strict=True):
        np.testing.assert_allclose(results[name][is_token], expected.numpy()[is_token], rtol=1e-4, atol=1e-5)
        assert not (results[name][is_token] == -10000).any()
    assert (results["start_logits"] == -10000).sum() > 69 * 20

    args.iter_num = 3
    results = squad.predict_with_little_padding(scorer, data_set, args)
    assert results["unique_id"].tolist() == list(range(1000000000, 1000000012))


def test_bad_record(data_set, tmp_path):
    short = (data_set.paths[0]).read_bytes()
    (tmp_path / "part-0").write_bytes(short[:-5])
    broken = checks.DataSet([tmp_path / "part-0"], data_set.fields, 35)
    with pytest.raises(UserError, match="part-0: truncated"):
        list(squad_batches.read_windows(broken, 100))
    fields = {**data_set.fields, "input_ids": checks.Field(SEQ_LENGTH, 100)}
    with pytest.raises(UserError, match="the record at byte 0: field input_ids holds"):
        list(squad_batches.read_windows(checks.DataSet(data_set.paths, fields, 70), 100))
