"""The optimiser of google-research/bert: Adam, its learning rate, and clipping of gradients."""

import math

from engine import native, operators
from engine.oneflow_loader import flow

# As in google-research/bert's optimization.py.
WEIGHT_DECAY_EXCLUDES = ("LayerNorm", "layer_norm", "bias")
_LARGEST_FLOAT32 = 3.4e38


class _AdamWithDecayExcludes(flow.optim.AdamW):
    """AdamW whose weight decay leaves out some variables by name.

    A parameter group for each rate would not do: OneFlow clips the gradients of each group by a norm of its own.
    """

    def _generate_conf_for_graph(self, train_conf, vars_conf):
        confs = super()._generate_conf_for_graph(train_conf, vars_conf)
        for conf in confs:
            conf.weight_decay_conf.excludes.pattern.extend(WEIGHT_DECAY_EXCLUDES)
        return confs


def make_optimizer(parameters, args):
    """(optimiser, learning rate schedule) as in google-research/bert's optimization.py.

    Adam without bias correction, decoupled weight decay, and the learning rate of `learning_rate_at`.
    """
    optimizer = _AdamWithDecayExcludes(
        parameters,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay_rate,
        do_bias_correction=False,
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
