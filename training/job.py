"""The graph of a training step, shared by all tasks."""

import functools
import math

import config
from engine.oneflow_loader import flow, nn
from engine.operators import in_float32, over_all_ranks
from training.optimizer import clip_by_global_norm, make_optimizer

# Names of the outputs of a train job besides its losses.
SIGNALS = "signals"
GRADIENT_NORM = "gradient_norm"

_SMALLEST_SHARD = 1024  # numbers


class TrainJob(nn.Graph):
    """One train step as one graph: read a batch, forward, backward, clip, update.

    The name of the subclass is the job's name, under which snapshots keep the train step.
    """

    def __init__(self, model, loader, args):
        super().__init__()
        self.model = model
        self.loader = loader
        self._parameters = list(model.parameters())
        placement = self._parameters[0].placement
        self.signals = _SignalsOfRanks(placement) if len(placement.ranks) > 1 else None
        self._max_grad_norm = args.max_grad_norm
        optimizer, schedule = make_optimizer(self._parameters, args)
        amp_dtype = config.amp_dtype(args, placement.type)
        if amp_dtype is not None:
            self.config.enable_amp(True, dtype=getattr(flow, amp_dtype))
        # Scaling keeps small gradients representable in float16. The optimiser divides by the scale, and skips a step
        # whose gradients are not finite.
        self.scales_loss = amp_dtype == "float16"
        if self.scales_loss:
            self.set_grad_scaler(flow.amp.GradScaler(init_scale=2.0**16, growth_interval=2000))
        # The update operator scales the gradients itself, so that clipping needs no memory and no extra pass.
        self.config.allow_fuse_model_update_ops(True)
        # Matrix products add to gradients that several operators contribute to.
        self.config.allow_fuse_add_to_output(True)
        self._uses_zero = args.zero_stage > 0
        # On a GPU a few launches update all parameters. The operator works on whole variables only.
        self.config.enable_multi_tensor_update(placement.type == "cuda" and not self._uses_zero)
        if self._uses_zero:
            self.config.enable_zero(True, stage=args.zero_stage, shard_min_size=_SMALLEST_SHARD)
        self.add_optimizer(optimizer, lr_sch=schedule)

    def _create_states_builder(self):
        super()._create_states_builder()
        if self._uses_zero:
            copy_variables(self)

    def _mark_variable_gradients(self):
        # Called last while the graph is built. The gradients belong to this graph: a later graph of the same
        # parameters, or an eager step, would add to them.
        super()._mark_variable_gradients()
        for parameter in self._parameters:
            parameter.grad = None

    def parameters_of_model(self):
        """Returns the parameters of the model, outside of the graph."""
        return self._parameters

    def build(self):
        """Returns scalars by name: the model's losses, the unclipped gradient norm and, on several ranks, signals.

        If the job scales the loss, a norm that is not finite means that the optimiser skips the step.
        """
        outputs = self.model(self.loader())
        loss = outputs["total_loss"]
        # OneFlow scales the loss by multiplying this tensor, for all its consumers.
        gradient_of_loss = flow._C.global_constant((), 1.0, dtype=loss.dtype, placement=loss.placement, sbp=loss.sbp)
        loss.backward(gradient_of_loss)
        loss_scale = flow._C.identity(gradient_of_loss) if self.scales_loss else None
        gradients = [in_float32(self._summed_gradient(parameter)) for parameter in self._parameters]
        outputs[GRADIENT_NORM] = clip_by_global_norm(self._parameters, gradients, self._max_grad_norm, loss_scale)
        if self.signals is not None:
            outputs[SIGNALS] = self.signals()
        return outputs

    def _summed_gradient(self, parameter):
        """Returns the gradient summed over ranks: whole, or with ZeRO the rows that this rank updates."""
        ranks = len(parameter.placement.ranks)
        rows, *others = parameter.shape
        # OneFlow's own condition (optimizer_placement_optimization_pass.cpp).
        if self._uses_zero and rows // ranks * math.prod(others) >= _SMALLEST_SHARD:
            return parameter.grad.to_global(sbp=flow.sbp.split(0))
        return over_all_ranks(parameter.grad)


def copy_variables(graph):
    """Makes `graph` compute on copies of its variables; to be called while its states are built, with ZeRO.

    OneFlow aborts if it has to divide a variable that is sliced or, on the CPU, to send the variable's own memory.
    """
    for state in graph._state():
        builder = state.lazy_origin_builder()
        builder.method = functools.partial(_copy_of_built, builder.method)


def _copy_of_built(build):
    return flow._C.identity(build())


class _SignalsOfRanks(nn.Module):
    """Shares, with the result of each iteration, the signals that ranks had received when it started.

    All ranks thus stop after the same iteration.
    """

    def __init__(self, placement):
        super().__init__()
        numbers = flow.zeros(len(placement.ranks), placement=placement, sbp=flow.sbp.split(0))
        self.register_buffer("numbers", numbers)

    def note(self, number):
        """Sets the signal of this rank, from the next iteration on."""
        self.numbers.to_local().fill_(float(number))

    def forward(self):
        """Returns the signals of all ranks, 0 for none: [ranks]."""
        # A copy: OneFlow aborts if it has to send a variable's own memory.
        return over_all_ranks(flow._C.identity(self.numbers))
