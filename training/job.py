"""The graph of a train step, which every task shares."""

import functools
import math

import config
from engine.oneflow_loader import flow, nn
from engine.operators import in_float32, over_all_ranks
from training.optimizer import clip_by_global_norm, make_optimizer

# Names of what a train job gives beside its losses.
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
        # Lest gradients be too small for float16. The optimiser scales them back, and skips a step whose gradients are
        # not finite.
        self.scales_loss = amp_dtype == "float16"
        if self.scales_loss:
            self.set_grad_scaler(flow.amp.GradScaler(init_scale=2.0**16, growth_interval=2000))
        # The update itself then scales the gradients: clipped ones need no memory and no pass of their own.
        self.config.allow_fuse_model_update_ops(True)
        # A gradient that several operators have a part in is added up by the products themselves.
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
        # The last to look at the gradients while the graph is built. A later graph of the same parameters, or an eager
        # step, would add to them, which belong to this graph.
        super()._mark_variable_gradients()
        for parameter in self._parameters:
            parameter.grad = None

    def parameters_of_model(self):
        """The model's parameters, as they are outside of the graph."""
        return self._parameters

    def build(self):
        """Scalars by name: the model's losses and the gradient norm before clipping; with several ranks, their signals.

        If the job scales the loss, a norm that is not finite tells of a step that the optimiser skips.
        """
        outputs = self.model(self.loader())
        loss = outputs["total_loss"]
        # Where OneFlow scales the loss it does so by multiplying this, for all that take it.
        gradient_of_loss = flow._C.global_constant((), 1.0, dtype=loss.dtype, placement=loss.placement, sbp=loss.sbp)
        loss.backward(gradient_of_loss)
        loss_scale = flow._C.identity(gradient_of_loss) if self.scales_loss else None
        gradients = [in_float32(self._summed_gradient(parameter)) for parameter in self._parameters]
        outputs[GRADIENT_NORM] = clip_by_global_norm(self._parameters, gradients, self._max_grad_norm, loss_scale)
        if self.signals is not None:
            outputs[SIGNALS] = self.signals()
        return outputs

    def _summed_gradient(self, parameter):
        """The gradient of all ranks: whole on each, or with ZeRO the rows of the parameter that the rank updates."""
        ranks = len(parameter.placement.ranks)
        rows, *others = parameter.shape
        # As OneFlow decides it (optimizer_placement_optimization_pass.cpp).
        if self._uses_zero and rows // ranks * math.prod(others) >= _SMALLEST_SHARD:
            return parameter.grad.to_global(sbp=flow.sbp.split(0))
        return over_all_ranks(parameter.grad)


def copy_variables(graph):
    """Makes `graph`, while its states are built, work on copies of its variables, as where ZeRO divides them.

    OneFlow aborts if it is to divide a variable that is sliced or, on the CPU, to send its own memory.
    """
    for state in graph._state():
        builder = state.lazy_origin_builder()
        builder.method = functools.partial(_copy_of_built, builder.method)


def _copy_of_built(build):
    return flow._C.identity(build())


class _SignalsOfRanks(nn.Module):
    """Lets every rank know, with the result of an iteration, which signal each had been sent when it began.

    So they stop at the same one.
    """

    def __init__(self, placement):
        super().__init__()
        numbers = flow.zeros(len(placement.ranks), placement=placement, sbp=flow.sbp.split(0))
        self.register_buffer("numbers", numbers)

    def note(self, number):
        """Makes `number` known as that of this rank, from the next iteration on."""
        self.numbers.to_local().fill_(float(number))

    def forward(self):
        """The numbers of all ranks, 0 for none: [ranks]."""
        # A copy, as OneFlow aborts if it is to send a variable's own memory.
        return over_all_ranks(flow._C.identity(self.numbers))
