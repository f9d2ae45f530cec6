"""The optimiser of google-research/bert: Adam, its learning rate, and clipping of gradients."""

from engine import operators
from engine.oneflow_loader import flow
from engine.operators import over_all_ranks

# As in google-research/bert's optimization.py.
WEIGHT_DECAY_EXCLUDES = ("LayerNorm", "layer_norm", "bias")
MAX_GRADIENT_NORM = 1.0


class _AdamWithDecayExcludes(flow.optim.AdamW):
    """AdamW whose weight decay leaves out some variables by name.

    A parameter group for each rate would not do: OneFlow clips the gradients of each group by a norm of its own.
    """

    def _generate_conf_for_graph(self, train_conf, vars_conf):
        confs = super()._generate_conf_for_graph(train_conf, vars_conf)
        for conf in confs:
            conf.weight_decay_conf.excludes.pattern.extend(WEIGHT_DECAY_EXCLUDES)
        return confs


def make_optimizer(parameters, args, clips):
    """(optimiser, learning rate schedule) as in google-research/bert's optimization.py.

    Adam without bias correction, decoupled weight decay, and the learning rate of `learning_rate_at`. With `clips` it
    clips the gradients itself, by OneFlow's own operators.
    """
    group = {"params": parameters}
    if clips:
        group.update(clip_grad_max_norm=MAX_GRADIENT_NORM, clip_grad_norm_type=2.0)
    optimizer = _AdamWithDecayExcludes(
        [group],
        lr=args.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=args.weight_decay_rate,
        do_bias_correction=False,
    )
    schedules = flow.optim.lr_scheduler
    schedule = schedules.PolynomialLR(optimizer, args.iter_num, end_learning_rate=0.0)
    if args.warmup_batches > 0:
        # Not WarmupLR: it would warm up to where the decay has come by then, not to the peak.
        warmup = schedules.LinearLR(optimizer, start_factor=0.0, end_factor=1.0, total_iters=args.warmup_batches)
        schedule = schedules.SequentialLR(optimizer, [warmup, schedule], [args.warmup_batches], [False])
    return optimizer, schedule


def learning_rate_at(step, args):
    """The learning rate of train step `step`, counted from 0: linear warm-up, else linear decay to 0 at iter_num."""
    if step < args.warmup_batches:
        return args.learning_rate * step / args.warmup_batches
    return args.learning_rate * (1 - min(step, args.iter_num) / args.iter_num)


def clip_by_global_norm(parameters, max_norm):
    """Scales the gradients of `parameters` in a graph to a global norm of at most `max_norm`; returns the norm.

    As TensorFlow's clip_by_global_norm. OneFlow's own clipping adds up the squares of all gradients one after the
    other in float32, which loses most of the sum for a model of 100 million parameters.
    """
    gradients = [over_all_ranks(parameter.grad) for parameter in parameters]
    norm = operators.global_norm(gradients)
    scale = max_norm / flow._C.clamp(norm, min=max_norm, max=None)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = operators.scale_by_tensor(gradient, scale)
    return norm
