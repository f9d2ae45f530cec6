"""What a model computes for batches that the first rank has, outside of training and in its midst."""

import numpy as np

from engine.oneflow_loader import flow, nn
from training.job import copy_variables


class BatchJob(nn.Graph):
    """Computes a model's logits of the batches that it is given, which are all of one size."""

    def __init__(self, model, amp_dtype=None):
        super().__init__()
        self.model = model
        if amp_dtype is not None:
            self.config.enable_amp(True, dtype=getattr(flow, amp_dtype))

    def _create_states_builder(self):
        super()._create_states_builder()
        parameters = self.model.to(nn.Module).parameters()
        if any(parameter.sbp != (flow.sbp.broadcast,) for parameter in parameters):
            # A train job with ZeRO has divided them among the ranks.
            copy_variables(self)

    def build(self, input_ids, input_mask, segment_ids):
        """Three [B, S] -> a list of the model's logits, whole on every rank."""
        with flow.no_grad():
            logits = self.model.logits({"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids})
            logits = logits if isinstance(logits, tuple) else (logits,)
            return [tensor.to_global(sbp=flow.sbp.broadcast) for tensor in logits]


class Scorer:
    """Graphs of a model's logits, one for each length of sequences, made when a batch first needs it.

    They share the parameters with a train job of the model, and change nothing of its run: they draw no random numbers,
    and the model is in evaluation mode only while a graph is made.
    """

    INPUTS = ("input_ids", "input_mask", "segment_ids")

    def __init__(self, model, placement, amp_dtype=None):
        """`placement` is that of the model's parameters; `amp_dtype` names the data type of mixed precision, if any."""
        self.model_job = BatchJob(model, amp_dtype)  # for the parameters; runs nothing
        self._model = model
        self._amp_dtype = amp_dtype
        self._placement = placement
        self._sbp = flow.sbp.split(0) if len(placement.ranks) > 1 else flow.sbp.broadcast
        self._jobs = {}

    @property
    def lengths(self):
        """The lengths that have a graph, for whoever chooses lengths."""
        return self._jobs.keys()

    def score(self, inputs, length):
        """The model's logits as NumPy arrays, a list, on all ranks. All ranks call it.

        `inputs`: name -> [B, length] of INPUTS on the first rank, which alone has them; B is the same at every call.
        """
        tensors = []
        for name in self.INPUTS:
            values = np.ascontiguousarray(inputs[name], np.int32) if inputs is not None else []
            on_first_rank = flow.tensor(values, dtype=flow.int32).to_global(
                placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast
            )
            tensors.append(on_first_rank.to_global(placement=self._placement, sbp=self._sbp))
        if length in self._jobs:
            outputs = self._jobs[length](*tensors)
        else:
            was_training = self._model.training
            self._model.eval()
            job = self._jobs[length] = BatchJob(self._model, self._amp_dtype)
            outputs = job(*tensors)
            self._model.train(was_training)
        return [logits.to_local().numpy() for logits in outputs]
