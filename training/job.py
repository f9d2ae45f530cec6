"""The graph of a training step, shared by all tasks."""

import functools
import math

import config
from engine import native, operators
from engine.oneflow_loader import flow, nn
from engine.operators import for_each_batch, in_float32, over_all_ranks
from system.errors import UserError
from training.optimizer import clip_by_global_norm, make_optimizer

# Names of the outputs of a train job besides its losses.
SIGNALS = "signals"
GRADIENT_NORM = "gradient_norm"

_SMALLEST_SHARD = 1024  # numbers


class TrainJob(nn.Graph):
    """One train step as one graph: read a batch, forward, backward, clip, update.

    With --num_accumulation_steps the part before clipping runs for several batches. OneFlow adds up their gradients
    where the backward pass reaches the parameters, so `parameter.grad` in `build` is the sum, and clipping runs once.
    The name of the subclass is the job's name, under which snapshots keep the train step.
    """

    def __init__(self, model, loader, args):
        """Raises UserError where --activation_checkpointing would change the masks of dropout."""
        super().__init__()
        self.model = model
        self.loader = loader
        self._parameters = list(model.parameters())
        placement = self._parameters[0].placement
        self.signals = _SignalsOfRanks(placement) if len(placement.ranks) > 1 else None
        self._max_grad_norm = args.max_grad_norm
        self.batches_per_iteration = args.num_accumulation_steps
        if self.batches_per_iteration > 1:
            # set_gradient_accumulation_steps() also orders the operators for GPUs. That order and the norm of the
            # gradients make a cycle, at which OneFlow aborts.
            self.config.proto.num_gradient_accumulation_steps = self.batches_per_iteration
        if args.activation_checkpointing:
            _check_dropout(args, placement)
            for layer in self.model.bert.encoder.children():
                layer.to(nn.graph.GraphModule).activation_checkpointing = True
        optimizer, schedule = make_optimizer(self._parameters, args)
        amp_dtype = config.amp_dtype(args, placement.type)
        if amp_dtype is not None:
            self.config.enable_amp(True, dtype=getattr(flow, amp_dtype))
        self.scales_loss = False
        if amp_dtype == "float16":
            self.scale_loss(2.0**16)
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

    def scale_loss(self, init_scale):
        """Scales the loss dynamically from `init_scale` on, so that small gradients are representable in float16.

        The optimiser divides by the scale, and skips a step whose gradients are not finite.
        """
        self.scales_loss = True
        self.set_grad_scaler(flow.amp.GradScaler(init_scale=init_scale, growth_interval=2000))
        if self.batches_per_iteration > 1:
            self.sum_of_scales = _SumOfScales(self._parameters[0].placement)

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
        """Returns by name the model's losses, the unclipped gradient norm and, on several ranks, signals.

        They are scalars; with accumulation arrays, with an element for each batch. If the job scales the loss, a norm
        that is not finite means that the optimiser skips the step.
        """
        outputs = self.model(self.loader())
        loss = outputs["total_loss"]
        batches = self.batches_per_iteration
        if self.scales_loss and batches > 1:
            loss = loss + self.sum_of_scales()
        # OneFlow scales the loss by multiplying this tensor, for all its consumers.
        gradient_of_loss = flow._C.global_constant((), 1.0, dtype=loss.dtype, placement=loss.placement, sbp=loss.sbp)
        loss.backward(gradient_of_loss)
        loss_scale = self._loss_scale(gradient_of_loss) if self.scales_loss else None
        gradients = [in_float32(gradient) for gradient in self._summed_gradients()]
        norm = clip_by_global_norm(self._parameters, gradients, self._max_grad_norm, loss_scale, batches)
        outputs[GRADIENT_NORM] = for_each_batch(norm) if batches > 1 else norm
        if self.signals is not None:
            outputs[SIGNALS] = self.signals()
        # OneFlow concatenates the outputs of the batches along the first axis, which scalars lack.
        return {name: output.reshape(-1) for name, output in outputs.items()} if batches > 1 else outputs

    def _loss_scale(self, gradient_of_loss):
        """Returns the loss scale of the iteration, a scalar, after the backward pass of a loss that is scaled."""
        if self.batches_per_iteration > 1:
            return self.sum_of_scales.to(nn.Module).pop() / self.batches_per_iteration
        return flow._C.identity(gradient_of_loss)

    def _summed_gradients(self):
        """Returns the gradients summed over ranks: whole, or with ZeRO the rows that this rank updates."""
        gradients = [parameter.grad for parameter in self._parameters]
        if operators.sums_in_shared_memory() or not self._uses_zero:
            gradients = operators.sum_over_ranks(gradients)
        if self._uses_zero:
            sbps = [flow.sbp.split(0) if _is_divided(tensor) else flow.sbp.broadcast for tensor in self._parameters]
            gradients = [gradient.to_global(sbp=sbp) for gradient, sbp in zip(gradients, sbps, strict=True)]
        return gradients


def _is_divided(parameter):
    """Whether ZeRO divides it: OneFlow's own condition (optimizer_placement_optimization_pass.cpp)."""
    rows, *others = parameter.shape
    return rows // len(parameter.placement.ranks) * math.prod(others) >= _SMALLEST_SHARD


def _check_dropout(args, placement):
    """Raises UserError where dropout would draw other masks when OneFlow computes activations again."""
    draws = args.hidden_dropout_prob > 0 or args.attention_probs_dropout_prob > 0
    if draws and not (placement.type == "cpu" and native.is_loaded()):
        raise UserError(
            "--activation_checkpointing: dropout draws the same masks again with the native CPU kernels only (make "
            "kernels); else give --hidden_dropout_prob=0 --attention_probs_dropout_prob=0"
        )


class _SumOfScales(nn.Module):
    """A term 0 of the loss whose gradient is the loss scale, which OneFlow adds up over the batches as any gradient."""

    def __init__(self, placement):
        super().__init__()
        self.zero = nn.Parameter(flow.zeros((), placement=placement, sbp=flow.sbp.broadcast))

    def forward(self):
        """Returns 0, a scalar."""
        return flow._C.identity(self.zero)

    def pop(self):
        """Returns the gradient, after the backward pass, and takes it from the parameter, which outlives the graph."""
        gradient, self.zero.grad = self.zero.grad, None
        return gradient


def copy_variables(graph, whole=False):
    """Makes `graph` compute on copies of its variables, or on `whole` ones; to be called while its states are built.

    With ZeRO OneFlow aborts if it has to divide a variable that is sliced or, on the CPU, to send the variable's own
    memory.
    """
    for state in graph._state():
        builder = state.lazy_origin_builder()
        builder.method = functools.partial(_copy_of_built, builder.method, whole)


def _copy_of_built(build, whole):
    copy = flow._C.identity(build())
    return over_all_ranks(copy) if whole else copy


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
