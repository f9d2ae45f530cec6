"""The optimisers, their learning rate, and clipping of gradients.

Another optimiser is a function like `_adam`, which makes one of flow.optim's, an entry in `_OPTIMIZERS` and a choice of
--optimizer_type in config.py. Its gradients are clipped already. Snapshots keep the state that OneFlow names
<parameter>-m and <parameter>-v; another state needs its suffix in snapshots/layout.py and training/job_state.py.
"""

import math

from engine import native, operators
from engine.oneflow_loader import flow
from system.errors import UserError

# As in google-research/bert's optimization.py.
WEIGHT_DECAY_EXCLUDES = ("LayerNorm", "layer_norm", "bias")
_LARGEST_FLOAT32 = 3.4e38


def _excluding(kind):
    """Returns one of OneFlow's classes of optimisers whose weight decay leaves out some variables by name."""

    class Excluding(kind):
        def _generate_conf_for_graph(self, train_conf, vars_conf):
            confs = super()._generate_conf_for_graph(train_conf, vars_conf)
            for conf in confs:
                conf.weight_decay_conf.excludes.pattern.extend(WEIGHT_DECAY_EXCLUDES)
            return confs

    return Excluding


def _adam(parameters, **constants):
    """As in google-research/bert's optimization.py: decoupled weight decay, no bias correction."""
    return _excluding(flow.optim.AdamW)(parameters, do_bias_correction=False, **constants)


def _lamb(parameters, **constants):
    """LAMB of You et al. 2019 (arXiv:1904.00962) as NVIDIA's FusedLAMB has it by default.

    NVIDIA/apex, apex/optimizers/fused_lamb.py and csrc/multi_tensor_lamb.cu. g is the clipped gradient, p a variable,
    d its weight decay, t counts from 1:

        m = beta1 m + (1 - beta1) g                     v = beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + d p
        p = p - learning rate * ratio * u               ratio = |p| / |u|, or 1 if either is 0 or if d is 0

    Raises UserError without the native kernels: OneFlow's own LAMB has other ratios.
    """
    if not native.is_loaded():
        raise UserError(
            f"--optimizer_type=lamb needs the native kernels ({native.describe()}): OneFlow's own LAMB leaves the "
            "weight decay out of its trust ratio"
        )
    return _excluding(flow.optim.LAMB)(parameters, do_bias_correction=True, **constants)


_OPTIMIZERS = {"adam": _adam, "lamb": _lamb}


def make_optimizer(parameters, args):
    """Returns (optimiser, schedule for the learning rate of `learning_rate_at`) for a graph.

    Raises UserError if --optimizer_type cannot be had.
    """
    optimizer = _OPTIMIZERS[args.optimizer_type](
        parameters,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay_rate,
    )
    return optimizer, _make_schedule(optimizer, args)


def _make_schedule(optimizer, args):
    """OneFlow's schedule for the learning rates of `learning_rate_at`."""
    schedules = flow.optim.lr_scheduler
    if args.lr_schedule == "linear":
        schedule = schedules.PolynomialLR(optimizer, args.iter_num, args.end_learning_rate, args.lr_power)
    elif args.lr_schedule == "cosine":
        alpha = args.end_learning_rate / args.learning_rate if args.learning_rate > 0 else 0.0
        schedule = schedules.CosineDecayLR(optimizer, args.iter_num, alpha)
    else:
        schedule = schedules.ConstantLR(optimizer, factor=1.0, total_iters=1)
    if args.warmup_batches > 0:
        # Not WarmupLR: it would warm up to where the decay has come by then, not to the peak.
        warmup = schedules.LinearLR(optimizer, start_factor=0.0, end_factor=1.0, total_iters=args.warmup_batches)
        schedule = schedules.SequentialLR(optimizer, [warmup, schedule], [args.warmup_batches], [False])
    return schedule


def learning_rate_at(step, args):
    """The learning rate of train step `step`, counted from 0: linear warm-up, else that of --lr_schedule.

    As in google-research/bert, the decay counts from step 0 and is over at iter_num, also where a warm-up hides its
    beginning.
    """
    if step < args.warmup_batches:
        return args.learning_rate * step / args.warmup_batches
    if args.lr_schedule == "constant":
        return args.learning_rate
    progress = min(step, args.iter_num) / args.iter_num
    left = (1 - progress) ** args.lr_power if args.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return args.end_learning_rate + (args.learning_rate - args.end_learning_rate) * left


def clip_by_global_norm(parameters, gradients, max_norm, loss_scale=None, batches=1):
    """Gives the `parameters` of a graph their `gradients`, scaled to a global norm of at most `max_norm`; 0 is none.

    Returns the norm. As TensorFlow's clip_by_global_norm. OneFlow's own clipping adds up the squares of all gradients
    one after the other in float32, which loses most of the sum for a model of 100 million parameters.
    `gradients` are sums over that many `batches`. The norm is that of their mean; the update of OneFlow divides the
    gradients themselves.
    With `loss_scale`, a scalar tensor, the gradients are those of a loss scaled by it, but the norm is of the unscaled
    ones. If it is not finite, the gradients become nan, all of them: then OneFlow skips the update.
    """
    norm = operators.global_norm(gradients)
    if batches > 1:
        norm = norm / batches
    if loss_scale is not None:
        norm = norm / loss_scale
    max_norm = max_norm or _LARGEST_FLOAT32
    scale = max_norm / flow._C.clamp(norm, min=max_norm, max=None)
    if loss_scale is not None:
        scale = scale + 0.0 * norm
        if native.is_loaded():
            # Else OneFlow divides each gradient, in a pass of its own (bert_choose_gradients of kernels/preload.cpp).
            scale = scale / loss_scale
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = operators.scale_by_tensor(gradient, scale)
    return norm
