"""The graph of a train step, which every task shares."""

import functools

from engine.oneflow_loader import flow, nn
from engine.operators import over_all_ranks
from training.optimizer import MAX_GRADIENT_NORM, clip_by_global_norm, make_optimizer

# Names of what a train job gives beside its losses.
SIGNALS = "signals"
OVERFLOW = "overflow"


class TrainJob(nn.Graph):
    """One train step as one graph: read a batch, forward, backward, clip, update.

    The name of the subclass is the job's name, under which snapshots keep the train step.
    """

    # With ZeRO parameters go from rank to rank. On the CPU OneFlow aborts if it is to send a variable's own memory.
    _copies_variables = False

    def __init__(self, model, loader, args):
        super().__init__()
        self.model = model
        self.loader = loader
        self._parameters = list(model.parameters())
        placement = self._parameters[0].placement
        self.signals = _SignalsOfRanks(placement) if len(placement.ranks) > 1 else None
        mixed_precision = args.use_fp16 and self._parameters[0].placement.type == "cuda"
        # With loss scaling the graph's gradients are scaled; only the optimiser sees them scaled back, so it must clip.
        self._clips_itself = not mixed_precision
        optimizer, schedule = make_optimizer(self._parameters, args, clips=mixed_precision)
        if mixed_precision:
            self.config.enable_amp(True)
            self.set_grad_scaler(flow.amp.GradScaler(init_scale=2.0**16, growth_interval=2000))
        else:
            # The update itself then scales the gradients: clipped ones need no memory and no pass of their own.
            self.config.allow_fuse_model_update_ops(True)
        # A gradient that several operators have a part in is added up by the products themselves.
        self.config.allow_fuse_add_to_output(True)
        if args.zero_stage > 0:
            self.config.enable_zero(True, stage=args.zero_stage)
            self._copies_variables = self._parameters[0].placement.type == "cpu"
        self.add_optimizer(optimizer, lr_sch=schedule)

    def _create_states_builder(self):
        super()._create_states_builder()
        if self._copies_variables:
            for state in self._state():
                builder = state.lazy_origin_builder()
                builder.method = functools.partial(_copy_of_built, builder.method)

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

        In mixed precision gradients are scaled, and there is no norm, but a number that tells of steps which the
        optimiser skips because their gradients are not finite: 0, or else nan.
        """
        outputs = self.model(self.loader())
        outputs["total_loss"].backward()
        if self._clips_itself:
            outputs["gradient_norm"] = clip_by_global_norm(self._parameters, MAX_GRADIENT_NORM)
        else:
            # Not a number as soon as one of them is not finite.
            zeros = [(over_all_ranks(parameter.grad) * 0.0).sum() for parameter in self._parameters]
            outputs[OVERFLOW] = flow._C.stack(zeros, dim=0).sum()
        if self.signals is not None:
            outputs[SIGNALS] = self.signals()
        return outputs


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
