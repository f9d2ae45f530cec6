"""The SQuAD model: a linear layer that scores each token as the start and as the end of the answer."""

import numpy as np

import bert_util
import config
from engine.oneflow_loader import flow, nn
from engine.operators import in_float32, over_all_ranks, without_padding
from ranks.ranks import from_first_rank, rank
from records import prediction_file, squad_batches
from system.errors import RunError
from system.progress import progress_bar
from training.job import TrainJob


class SquadHead(nn.Module):
    """The variables under `cls-squad` in a snapshot."""

    def __init__(self, config, initializer):
        super().__init__()
        self.output = bert_util.FullyConnected(config.hidden_size, 2, config, initializer)

    def forward(self, sequence_output):
        """[B, S, H] -> start logits and end logits, [B, S] each."""
        seq_length = sequence_output.shape[1]
        logits = self.output(sequence_output.reshape(-1, sequence_output.shape[2])).reshape(-1, seq_length, 2)
        return logits[:, :, 0], logits[:, :, 1]


class BertForQuestionAnswering(nn.Module):
    """BERT with the SQuAD head, without the pooler."""

    def __init__(self, config, initializer):
        super().__init__()
        self.bert = bert_util.BertBackbone(config, initializer, with_pooler=False)
        self.cls = nn.Module()
        self.cls.squad = SquadHead(config, initializer)

    def logits(self, batch):
        """`batch`, field names to [B, length] tensors -> start and end logits, [B, S] each.

        If graphs skip padding, its logits are LOGIT_OF_PADDING, which have no part in a softmax.
        """
        mask = batch["input_mask"]
        logits = self.cls.squad(self.bert(batch["input_ids"], mask, batch["segment_ids"]))
        return tuple(in_float32(without_padding(each, mask, prediction_file.LOGIT_OF_PADDING)) for each in logits)

    def forward(self, batch):
        """Returns {"total_loss": the mean of start and end cross-entropy over the S positions}."""
        start_logits, end_logits = self.logits(batch)
        start_loss = _position_loss(start_logits, batch["start_positions"])
        end_loss = _position_loss(end_logits, batch["end_positions"])
        return {"total_loss": 0.5 * (start_loss + end_loss)}


def _position_loss(logits, positions):
    """[B, S] and the true positions [B, 1] -> mean cross-entropy over the global batch."""
    return over_all_ranks(flow._C.sparse_softmax_cross_entropy(logits, positions.reshape(-1)).mean())


class SquadFinetuneJob(TrainJob):
    """The training graph of BertForQuestionAnswering."""


class SquadPredictJob(nn.Graph):
    """Reads a batch and computes its logits, in mixed precision if `amp_dtype` names a data type."""

    def __init__(self, model, loader, amp_dtype=None):
        super().__init__()
        self.model = model.eval()
        self.loader = loader
        if amp_dtype is not None:
            self.config.enable_amp(True, dtype=getattr(flow, amp_dtype))

    def build(self):
        """Returns unique ids [B, 1], start and end logits [B, S] of the next batch, replicated on every rank."""
        with flow.no_grad():
            batch = self.loader()
            outputs = (batch["unique_ids"], *self.model.logits(batch))
            return [output.to_global(sbp=flow.sbp.broadcast) for output in outputs]


def predict(job, iter_num, seq_length):
    """Runs `iter_num` batches of `job`; returns the results as prediction_file.result_dtype, ordered by unique id.

    Batches past the end of the data set start it again; each unique id is kept once. Raises UserError if a batch cannot
    be read, and RunError if a logit is not finite.
    """
    dtype = prediction_file.result_dtype(seq_length)
    results = {}
    for _ in progress_bar(range(iter_num), unit="batch"):
        outputs = [output.to_local().numpy() for output in job()]
        job.loader.to(nn.Module).check_batch()
        _check_finite(outputs)
        for unique_id, start_logits, end_logits in zip(*outputs, strict=True):
            results.setdefault(int(unique_id[0]), (start_logits.copy(), end_logits.copy()))
    return np.array([(unique_id, *results[unique_id]) for unique_id in sorted(results)], dtype=dtype)


def _check_finite(outputs):
    """Raises RunError if a number of the arrays `outputs` is not finite."""
    if not all(np.isfinite(output).all() for output in outputs):
        raise RunError(
            "--model_load_dir: the model gives NaN or infinity: it has diverged in training, or is damaged; give "
            "another snapshot"
        )


def predict_with_little_padding(scorer, data_set, args):
    """As predict(), where graphs cannot skip padding: cuts each of the first args.iter_num batches to a shorter length.

    `scorer`, a scoring.Scorer of the model, makes a graph for each of a few lengths. The logits of padding are
    prediction_file.LOGIT_OF_PADDING. Rank 0 reads the windows and holds the results. Raises RunError if a logit is not
    finite.
    """
    batch_size = config.global_batch_size(args)
    results = [np.zeros(0, prediction_file.result_dtype(args.seq_length))]
    chunks = squad_batches.read_windows(data_set, args.iter_num * batch_size) if rank() == 0 else iter(())
    with progress_bar(total=args.iter_num, unit="batch") as bar:
        while True:
            windows, batches = next(chunks, None), []
            if windows is not None:
                batches = squad_batches.make_batches(windows["input_mask"], batch_size, scorer.lengths)
                results.append(_empty_results(windows))
            lengths = from_first_rank(lambda made=batches: [length for length, _ in made])
            if not lengths:
                break
            for index, length in enumerate(lengths):
                if windows is None:
                    _check_finite(scorer.score(None, length))
                else:
                    _, rows = batches[index]
                    inputs = {name: windows[name][rows, :length] for name in scorer.inputs}
                    is_token = inputs["input_mask"] != 0
                    outputs = scorer.score(inputs, length)
                    _check_finite(outputs)
                    for name, logits in zip(("start_logits", "end_logits"), outputs, strict=True):
                        results[-1][name][rows, :length] = np.where(is_token, logits, prediction_file.LOGIT_OF_PADDING)
                bar.update()
    together = np.concatenate(results)
    return together[np.argsort(together["unique_id"], kind="stable")]


def _empty_results(windows):
    results = np.empty(len(windows["unique_ids"]), prediction_file.result_dtype(windows["input_ids"].shape[1]))
    results["unique_id"] = windows["unique_ids"][:, 0]
    results["start_logits"] = results["end_logits"] = prediction_file.LOGIT_OF_PADDING
    return results
