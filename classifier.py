"""The classifier: a linear layer on the pooled output, for one or two sentences."""

import bert_util
from engine import operators
from engine.oneflow_loader import flow, nn
from engine.operators import over_all_ranks
from training.job import TrainJob


class BertForSequenceClassification(nn.Module):
    """BERT with a linear layer that scores the labels. A single label means regression."""

    def __init__(self, config, num_labels, initializer):
        super().__init__()
        self._dropout_prob = config.hidden_dropout_prob
        self.bert = bert_util.BertBackbone(config, initializer, with_pooler=True)
        self.output_weights = initializer.truncated_normal((num_labels, config.hidden_size), config.initializer_range)
        self.output_bias = initializer.constant((num_labels,), 0.0)

    def logits(self, batch):
        """`batch`, field names to [B, length] tensors -> logits [B, labels]."""
        sequence_output = self.bert(batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        pooled = operators.dropout(self.bert.pooler(sequence_output), self._dropout_prob if self.training else 0.0)
        logits = flow._C.matmul(pooled, self.output_weights, transpose_b=True)
        return operators.in_float32(flow._C.bias_add(logits, self.output_bias, axis=1))

    def forward(self, batch):
        """Returns {"total_loss": mean cross-entropy of the global batch, or mean squared error with one label}."""
        logits = self.logits(batch)
        if logits.shape[1] == 1:
            difference = logits - batch["label_ids"]
            return {"total_loss": over_all_ranks((difference * difference).mean())}
        cross_entropy = flow._C.sparse_softmax_cross_entropy(logits, batch["label_ids"].reshape(-1))
        return {"total_loss": over_all_ranks(cross_entropy.mean())}


class ClassifierJob(TrainJob):
    """The training graph of BertForSequenceClassification."""
