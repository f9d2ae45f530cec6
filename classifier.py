"""The classifier: a layer over the pooled output that scores the labels of a sentence or a pair, or gives a number."""

import itertools

import numpy as np

import bert_util
import config
from engine import operators
from engine.oneflow_loader import flow, nn
from engine.operators import over_all_ranks
from ranks.ranks import from_first_rank, rank
from records import checks
from system.errors import UserError
from system.progress import progress_bar
from training.job import TrainJob


class BertForSequenceClassification(nn.Module):
    """BERT with a layer that scores the labels; with one label, a regression."""

    def __init__(self, config, num_labels, initializer):
        super().__init__()
        self._dropout_prob = config.hidden_dropout_prob
        self.bert = bert_util.BertBackbone(config, initializer, with_pooler=True)
        self.output_weights = initializer.truncated_normal((num_labels, config.hidden_size), config.initializer_range)
        self.output_bias = initializer.constant((num_labels,), 0.0)

    def logits(self, batch):
        """`batch` maps a record's field names to [B, length] tensors -> logits, [B, labels]."""
        sequence_output = self.bert(batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        pooled = operators.dropout(self.bert.pooler(sequence_output), self._dropout_prob if self.training else 0.0)
        logits = flow._C.matmul(pooled, self.output_weights, transpose_b=True)
        return operators.in_float32(flow._C.bias_add(logits, self.output_bias, axis=1))

    def forward(self, batch):
        """total_loss by name, over the global batch: the mean cross-entropy, with one label the mean squared error."""
        logits = self.logits(batch)
        if logits.shape[1] == 1:
            difference = logits - batch["label_ids"]
            return {"total_loss": over_all_ranks((difference * difference).mean())}
        cross_entropy = flow._C.sparse_softmax_cross_entropy(logits, batch["label_ids"].reshape(-1))
        return {"total_loss": over_all_ranks(cross_entropy.mean())}


class ClassifierJob(TrainJob):
    """The train job of BertForSequenceClassification."""


def predict(scorer, data_set, args):
    """(logits float32 [N, labels], label_ids [N] or None) of all examples of a checks.DataSet, in its order.

    `scorer` is a scoring.Scorer. The first rank reads the records and has the results, the others get None. Records
    whose is_real_example is 0 only fill up google-research/bert's batches, and are left out. Raises UserError if there
    are no others, or one cannot be read.
    """
    batch_size = config.global_batch_size(args)
    batches = from_first_rank(lambda: -(-data_set.record_count // batch_size))
    records = checks.read_records(data_set) if rank() == 0 else iter(())
    logits, label_ids = [], []
    for _ in progress_bar(range(batches), unit="batch", leave=False):
        batch = list(itertools.islice(records, batch_size))
        # The last one is filled up with records that it has already.
        rows = np.resize(np.arange(len(batch)), batch_size)
        inputs = {name: np.stack([batch[row][name] for row in rows]) for name in scorer.INPUTS} if batch else None
        (scores,) = scorer.score(inputs, args.seq_length)
        for record, scores_of_record in zip(batch, scores, strict=False):
            if record.get("is_real_example", [1])[0] != 0:
                logits.append(scores_of_record)
                label_ids.append(record["label_ids"][0] if "label_ids" in data_set.fields else None)
    if rank() > 0:
        return None, None
    if not logits:
        raise UserError(f"{data_set.paths[0].parent}: no record is a real example: is_real_example is 0 in all")
    return np.stack(logits), None if label_ids[0] is None else np.array(label_ids)
