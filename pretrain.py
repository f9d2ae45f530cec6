"""The pre-training model: masked language modelling and next sentence prediction."""

import bert_util
from engine import operators
from engine.oneflow_loader import flow, nn
from engine.operators import over_all_ranks
from training.job import TrainJob


class Transform(nn.Module):
    """Dense, GELU and LayerNorm before the masked LM output."""

    def __init__(self, config, initializer):
        super().__init__()
        self.dense = bert_util.FullyConnected(config.hidden_size, config.hidden_size, config, initializer)
        self.LayerNorm = bert_util.LayerNorm(config.hidden_size, initializer)

    def forward(self, x):
        """[N, H] -> [N, H]."""
        return self.LayerNorm(operators.bias_gelu(flow._C.matmul(x, self.dense.weight), self.dense.bias))


class Predictions(nn.Module):
    """The masked LM head. Its output weights are the word embeddings."""

    def __init__(self, config, initializer):
        super().__init__()
        self.transform = Transform(config, initializer)
        self.output_bias = initializer.constant((config.vocab_size,), 0.0)

    def forward(self, sequence_output, positions, word_embeddings):
        """[B, S, H], [B, P] int32 and [V, H] -> logits [B * P, V]; on CUDA with padding columns appended."""
        x = flow._C.batch_gather(sequence_output, positions).reshape(-1, sequence_output.shape[-1])
        return operators.vocabulary_logits(self.transform(x), word_embeddings, self.output_bias)


class SequenceRelationship(nn.Module):
    """The next sentence head: label 0 if the second segment follows the first, 1 if it is random."""

    def __init__(self, config, initializer):
        super().__init__()
        self.output_weights = initializer.truncated_normal((2, config.hidden_size), config.initializer_range)
        self.output_bias = initializer.constant((2,), 0.0)

    def forward(self, pooled_output):
        """[B, H] -> logits [B, 2]."""
        logits = flow._C.matmul(pooled_output, self.output_weights, transpose_b=True)
        return flow._C.bias_add(logits, self.output_bias, axis=1)


class BertForPretraining(nn.Module):
    """BERT with both pre-training heads."""

    def __init__(self, config, initializer):
        super().__init__()
        self.bert = bert_util.BertBackbone(config, initializer, with_pooler=True)
        self.cls = nn.Module()
        self.cls.predictions = Predictions(config, initializer)
        self.cls.seq_relationship = SequenceRelationship(config, initializer)

    def logits(self, input_ids, input_mask, segment_ids, masked_lm_positions):
        """[B, S] three times and [B, P], int32 -> masked LM logits [B * P, V], next sentence logits [B, 2]."""
        sequence_output = self.bert(input_ids, input_mask, segment_ids)
        masked_lm_logits = self.cls.predictions(
            sequence_output, masked_lm_positions, self.bert.embeddings.word_embeddings
        )
        next_sentence_logits = self.cls.seq_relationship(self.bert.pooler(sequence_output))
        return operators.in_float32(masked_lm_logits), operators.in_float32(next_sentence_logits)

    def forward(self, batch):
        """Returns the losses of a global batch; `batch` maps field names to [B, length] tensors.

        The losses are scalars by name: mlm_loss = sum(weight x cross-entropy) / (sum(weight) + 1e-5), nsp_loss = mean
        cross-entropy, total_loss = their sum (google-research/bert, run_pretraining.py).
        """
        _, cross_entropy, _, next_sentence_cross_entropy = self._cross_entropies(batch)
        weights = batch["masked_lm_weights"].reshape(-1)
        numerator = over_all_ranks((weights * cross_entropy).sum())
        mlm_loss = numerator / (over_all_ranks(weights.sum()) + 1e-5)
        nsp_loss = over_all_ranks(next_sentence_cross_entropy.mean())
        return {"total_loss": mlm_loss + nsp_loss, "mlm_loss": mlm_loss, "nsp_loss": nsp_loss}

    def _cross_entropies(self, batch):
        """Returns masked LM logits [B * P, V], their cross-entropy [B * P], and of the next sentence [B, 2], [B]."""
        masked_lm_logits, next_sentence_logits = self.logits(
            batch["input_ids"], batch["input_mask"], batch["segment_ids"], batch["masked_lm_positions"]
        )
        masked_lm = flow._C.sparse_softmax_cross_entropy(masked_lm_logits, batch["masked_lm_ids"].reshape(-1))
        next_sentence = flow._C.sparse_softmax_cross_entropy(
            next_sentence_logits, batch["next_sentence_labels"].reshape(-1)
        )
        return masked_lm_logits, masked_lm, next_sentence_logits, next_sentence

    def scores(self, batch):
        """Returns, for evaluation, the cross-entropy of each prediction and whether it is correct (1 or 0), float32.

        Two tensors [B, P] for the masked LM and two [B] for the next sentence.
        """
        masked_lm_logits, masked_lm, next_sentence_logits, next_sentence = self._cross_entropies(batch)
        masked_lm_ids = batch["masked_lm_ids"]
        return (
            masked_lm.reshape(*masked_lm_ids.shape),
            _is_right(masked_lm_logits, masked_lm_ids).reshape(*masked_lm_ids.shape),
            next_sentence,
            _is_right(next_sentence_logits, batch["next_sentence_labels"]),
        )


def _is_right(logits, labels):
    """[N, C] and N labels -> [N]: 1 where the label has the largest logit, else 0."""
    return (flow.argmax(logits, dim=1) == labels.reshape(-1).to(flow.int64)).to(flow.float32)


class BertForMaskedLM(nn.Module):
    """BERT with the masked LM head only, for prediction."""

    def __init__(self, config, initializer):
        super().__init__()
        self.bert = bert_util.BertBackbone(config, initializer, with_pooler=False)
        self.cls = nn.Module()
        self.cls.predictions = Predictions(config, initializer)

    def logits(self, batch):
        """`batch`, field names to [B, length] tensors -> [B, P, V]; on CUDA with padding columns appended."""
        positions = batch["masked_lm_positions"]
        sequence_output = self.bert(batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        logits = self.cls.predictions(sequence_output, positions, self.bert.embeddings.word_embeddings)
        return operators.in_float32(logits).reshape(*positions.shape, logits.shape[-1])


class BertForNextSentence(nn.Module):
    """BERT with the next sentence head only, for prediction."""

    def __init__(self, config, initializer):
        super().__init__()
        self.bert = bert_util.BertBackbone(config, initializer, with_pooler=True)
        self.cls = nn.Module()
        self.cls.seq_relationship = SequenceRelationship(config, initializer)

    def logits(self, batch):
        """`batch`, field names to [B, S] tensors -> logits [B, 2]: follows, or is random."""
        sequence_output = self.bert(batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        return operators.in_float32(self.cls.seq_relationship(self.bert.pooler(sequence_output)))


class PretrainJob(TrainJob):
    """The training graph of BertForPretraining."""
