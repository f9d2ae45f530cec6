"""tools/fill_mask.py: against the float64 reference and the logits of the pre-training graph."""

import io
import json
import sys
from unittest import mock

import numpy as np
import pytest

import bert_util
import fill_mask
import pretrain
import reference_bert
import small_models
from engine.oneflow_loader import flow
from running import assert_fails_with_one_line
from snapshots import variables
from training import job_state, scoring

SCRIPT = "fill_mask.py"
HEADS = ("pooler", "masked_lm", "next_sentence")
INDEX = {piece: index for index, piece in enumerate(small_models.VOCAB)}


def run(snapshot, *arguments, **flags):
    return small_models.run_tool(fill_mask.main, SCRIPT, snapshot, *arguments, **flags)


def results_of(snapshot, *arguments, **flags):
    result = run(snapshot, "--json", *arguments, **flags)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """With more embeddings than pieces, as in a vocabulary that was padded."""
    folder = tmp_path_factory.mktemp("model") / "of"
    return small_models.write_snapshot(folder, small_models.values(HEADS), vocab=small_models.VOCAB[:-3])


def batch_of(first, second=()):
    """The inputs of one text or two, given as pieces, with every position as a masked one."""
    pieces = ["[CLS]", *first, "[SEP]", *second, *(["[SEP]"] if second else [])]
    return {
        "input_ids": np.array([[INDEX[piece] for piece in pieces]]),
        "input_mask": np.ones((1, len(pieces)), int),
        "segment_ids": (np.arange(len(pieces)) >= len(first) + 2).astype(int)[np.newaxis],
        "masked_lm_positions": np.arange(len(pieces))[np.newaxis],
    }


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def probabilities(batch):
    """Of all pieces at every position of the only row: [S, V]."""
    values = small_models.values(HEADS)
    return softmax(reference_bert.masked_lm_logits(values, batch, small_models.HEADS).numpy()[0])


@pytest.mark.engine
def test_the_most_probable_pieces_are_those_of_the_reference(snapshot):
    found = results_of(snapshot, "The [MASK] old[MASK].", "a [MASK] ||| the house", top_k=7)
    batches = [
        batch_of(["the", "[MASK]", "old", "[MASK]", "."]),
        batch_of(["a", "[MASK]"], ["the", "house"]),
    ]
    assert [result["text"] for result in found] == ["The [MASK] old[MASK].", "a [MASK] ||| the house"]
    for result, batch, positions in zip(found, batches, [[2, 4], [2]], strict=True):
        assert len(result["masks"]) == len(positions)
        for best, position in zip(result["masks"], positions, strict=True):
            expected = probabilities(batch)[position]
            order = [index for index in np.argsort(-expected) if index < len(INDEX) - 3][:7]
            assert [word["piece"] for word in best] == [small_models.VOCAB[index] for index in order]
            np.testing.assert_allclose([word["probability"] for word in best], expected[order], rtol=1e-5)


@pytest.mark.engine
def test_probabilities_are_those_of_the_pretraining_graph(snapshot):
    (found,) = results_of(snapshot, "the [MASK] is old.", top_k=1000)
    sizes = {name: getattr(small_models.SIZE, name) for name in variables.ModelSize.__dataclass_fields__}
    config = bert_util.BertConfig(**sizes, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    placement = flow.placement("cpu", [0])

    class Graph(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = pretrain.BertForPretraining(config, bert_util.Initializer(placement, 0)).eval()

        def build(self, *inputs):
            return self.model.logits(*inputs)[0]

    graph = Graph()
    job_state.restore_for_prediction(graph, str(snapshot))
    batch = batch_of(["the", "[MASK]", "i", "##s", "old", "."])
    names = (*scoring.SEQUENCE, "masked_lm_positions")
    logits = graph(
        *(flow.tensor(batch[name].astype(np.int32), placement=placement, sbp=flow.sbp.broadcast) for name in names)
    )
    expected = softmax(logits.numpy().astype(np.float64))[2]
    assert len(found["masks"][0]) == len(INDEX) - 3
    for word in found["masks"][0]:
        assert word["probability"] == pytest.approx(expected[INDEX[word["piece"]]], rel=1e-5)


@pytest.mark.engine
def test_next_sentence_and_score_are_those_of_the_reference(snapshot):
    """Of several texts, with --score of more than a batch."""
    (found,) = results_of(snapshot, "--next_sentence", "the old house ||| a light")
    batch = batch_of(["the", "old", "house"], ["a", "light"])
    logits = reference_bert.next_sentence_logits(small_models.values(HEADS), batch, small_models.HEADS).numpy()
    assert found["probability"] == pytest.approx(softmax(logits)[0, 0], rel=1e-5)

    texts = [["the", "old", "house", "."], ["a", "light"], ["old"] * 30]
    found = results_of(snapshot, "--score", *map(" ".join, texts), "a ||| light")
    for result, (first, second) in zip(found, [*((text, []) for text in texts), (["a"], ["light"])], strict=True):
        expected = 0.0
        for place, piece in enumerate(first + second):
            masked = [*first, *second]
            masked[place] = "[MASK]"
            position = place + 1 + (place >= len(first))
            batch = batch_of(masked[: len(first)], masked[len(first) :])
            expected += np.log(probabilities(batch)[position, INDEX[piece]])
        assert result["pieces"] == len(first + second)
        assert result["score"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.engine
def test_words_for_a_reader_of_texts_on_stdin(snapshot):
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO("the [MASK]\n[MASK]\u2028[MASK] é\r\n".encode()))):
        result = run(snapshot, top_k=2)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split("\n")[:-1]
    assert [line for line in lines if not line.startswith("  ")] == [
        "the [MASK]", "[MASK]\u2028[MASK] é", "[MASK] 1:", "[MASK] 2:"
    ]  # fmt: skip
    assert len(lines) == 4 + 3 * 2


def test_bad_texts_and_snapshots_give_one_line(tmp_path, snapshot):
    """All before the engine is loaded."""
    encoder = small_models.write_snapshot(tmp_path / "of", small_models.values())
    for arguments, fragment in [
        (["the house"], "text 1: has no [MASK]; write [MASK] in place of the word to find"),
        (["a [MASK]", " "], "text 2: is empty"),
        (["a [MASK]", "\u200b"], "text 2: has no visible character"),
        (["[MASK] \udce9"], "text 1: is not UTF-8"),
        (["[MASK] " + "old " * 46], "text 1: has 49 pieces with [CLS] and [SEP], the model has 48 positions"),
        (["--score", "the [MASK]"], "text 1: has a [MASK], which --score cannot give a probability"),
        (["--next_sentence", "the house"], "text 1: is one text; --next_sentence needs two with ' ||| ' between them"),
        (["--score", "--next_sentence", "a ||| b"], "not allowed with argument"),
        (["--top_k=0", "[MASK]"], "--top_k"),
    ]:
        assert_fails_with_one_line(run(snapshot, *arguments), fragment)
    assert_fails_with_one_line(run(encoder, "[MASK]"), "lacks cls-predictions-transform-dense-weight", "pre-training")
    assert_fails_with_one_line(run(encoder, "--next_sentence", "a ||| b"), "lacks bert-pooler-dense-weight")
    for data, fragment in ((b"", "stdin: is empty"), (b"\n", "stdin: line 1: is empty"), (b"\xff", "stdin: not UTF-8")):
        with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(data))):
            assert_fails_with_one_line(run(snapshot), fragment)
