"""Runs a model on batches that the first rank reads, during and without training."""

import itertools

import numpy as np

from engine import operators
from engine.oneflow_loader import flow, nn
from ranks.ranks import from_first_rank, rank
from records import checks
from system.errors import RunError, UserError
from system.progress import progress_bar
from training.job import copy_variables

SEQUENCE = ("input_ids", "input_mask", "segment_ids")


class BatchJob(nn.Graph):
    """A graph that applies a method of the model to batches of one size."""

    def __init__(self, model, inputs=SEQUENCE, method="logits", amp_dtype=None):
        """`method` is the name of a method that takes a batch (name -> tensor) and returns one tensor or a tuple."""
        super().__init__()
        self.model = model
        self._inputs = inputs
        self._method = method
        if amp_dtype is not None:
            self.config.enable_amp(True, dtype=getattr(flow, amp_dtype))

    def _create_states_builder(self):
        super()._create_states_builder()
        parameters = self.model.to(nn.Module).parameters()
        if any(parameter.sbp != (flow.sbp.broadcast,) for parameter in parameters):
            # ZeRO has split them among the ranks. Packed rows cannot be sent to the parts, so the parts are sent.
            copy_variables(self, whole=operators.skips_padding())

    def build(self, *tensors):
        """Takes int32 [B, length] for each input; returns a list of the method's tensors, replicated on every rank."""
        with flow.no_grad():
            outputs = getattr(self.model, self._method)(dict(zip(self._inputs, tensors, strict=True)))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return [tensor.to_global(sbp=flow.sbp.broadcast) for tensor in outputs]


class Scorer:
    """Graphs of a model's outputs, one per batch size and sequence length, created when first needed.

    They share the model's parameters with its train job without changing its run: they draw no random numbers, and the
    model is in evaluation mode only while a graph is created.
    """

    def __init__(self, model, placement, amp_dtype=None, inputs=SEQUENCE, method="logits"):
        """`placement` is the placement of the parameters, `amp_dtype` the data type of mixed precision or None.

        `inputs` are names of integer record fields; for `method` see BatchJob.
        """
        self.inputs = inputs
        self._make_job = lambda: BatchJob(model, inputs, method, amp_dtype)
        self.model_job = self._make_job()  # for the parameters; runs nothing
        self._model = model
        self._placement = placement
        self.ranks = len(placement.ranks)
        self._sbp = flow.sbp.split(0) if self.ranks > 1 else flow.sbp.broadcast
        self._jobs = {}

    @property
    def lengths(self):
        """The sequence lengths that have a graph."""
        return {length for _, length in self._jobs}

    def score(self, inputs, length):
        """Returns the model's outputs as a list of NumPy arrays, on all ranks. All ranks must call it.

        `inputs` maps names to [B, length] on the first rank and is None on others.
        """
        tensors = []
        for name in self.inputs:
            values = np.ascontiguousarray(inputs[name], np.int32) if inputs is not None else []
            on_first_rank = flow.tensor(values, dtype=flow.int32).to_global(
                placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast
            )
            tensors.append(on_first_rank.to_global(placement=self._placement, sbp=self._sbp))
        shape = (tensors[0].shape[0], length)
        if shape in self._jobs:
            outputs = self._jobs[shape](*tensors)
        else:
            was_training = self._model.training
            self._model.eval()
            job = self._jobs[shape] = self._make_job()
            outputs = job(*tensors)
            self._model.train(was_training)
        return [output.to_local().numpy() for output in outputs]


def score_records(scorer, data_set, batch_size, length, kept=(), most_batches=None):
    """Scores a checks.DataSet, or its first `most_batches` batches, in the order of its records.

    Returns ({field: array [N, length]} of the fields `kept`, [array [N, ...]] of the scorer's outputs) on the first
    rank, which reads the records, and (None, None) on others. Skips records whose is_real_example is 0, the padding of
    google-research/bert's batches. Raises UserError if no record is left or one cannot be read, RunError if an output
    is not finite.
    """
    record_count = from_first_rank(lambda: data_set.record_count)
    # A larger batch would hold records several times.
    batch_size = min(batch_size, -(-record_count // scorer.ranks) * scorer.ranks)
    batches = -(-record_count // batch_size)
    batches = min(batches, most_batches or batches)
    records = checks.read_records(data_set) if rank() == 0 else iter(())
    fields, outputs = {name: [] for name in kept}, []
    for _ in progress_bar(range(batches), unit="batch", leave=False):
        batch = list(itertools.islice(records, batch_size))
        # The last batch is padded with its own records.
        rows = np.resize(np.arange(len(batch)), batch_size)
        inputs = {name: np.stack([batch[row][name] for row in rows]) for name in scorer.inputs} if batch else None
        results = scorer.score(inputs, length)
        real = [row for row, record in enumerate(batch) if record.get("is_real_example", [1])[0] != 0]
        outputs.append([result[real] for result in results])
        for name in kept:
            fields[name] += [batch[row][name] for row in real]
    if rank() > 0:
        return None, None
    outputs = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
    if not len(outputs[0]):
        raise UserError(f"{data_set.paths[0].parent}: no record is a real example: is_real_example is 0 in all")
    if not all(np.isfinite(output).all() for output in outputs):
        raise RunError(
            f"{data_set.paths[0].parent}: the model gives NaN or infinity for a record: it has diverged in training, "
            "or is damaged"
        )
    return {name: np.stack(values) for name, values in fields.items()}, outputs
