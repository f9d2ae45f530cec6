"""Training: the optimiser of google-research/bert, the graph that steps it, and the loop around the graph."""

import functools
from typing import Any

import engine
import fused_operators
import job_state
from metrics import MetricLog

flow: Any = engine.load()
nn: Any = flow.nn

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

    def build(self):
        """Scalars by name: the model's losses and, but for mixed precision, the gradient norm before clipping."""
        metrics = self.model(self.loader())
        metrics["total_loss"].backward()
        if self._clips_itself:
            metrics["gradient_norm"] = clip_by_global_norm(self._parameters, MAX_GRADIENT_NORM)
        return metrics


def _copy_of_built(build):
    return flow._C.identity(build())


def clip_by_global_norm(parameters, max_norm):
    """Scales the gradients of `parameters` in a graph to a global norm of at most `max_norm`; returns the norm.

    As TensorFlow's clip_by_global_norm. OneFlow's own clipping adds up the squares of all gradients one after the
    other in float32, which loses most of the sum for a model of 100 million parameters.
    """
    gradients = [over_all_ranks(parameter.grad) for parameter in parameters]
    norm = fused_operators.global_norm(gradients)
    scale = max_norm / flow._C.clamp(norm, min=max_norm, max=None)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = fused_operators.scale_by_tensor(gradient, scale)
    return norm


def over_all_ranks(partial):
    """What the ranks hold of a sum or mean over the global batch, put together on all of them."""
    return partial.to_global(sbp=flow.sbp.broadcast)


def train(job, args, first_step):
    """Runs args.iter_num iterations of `job`, printing losses and saving snapshots as the flags say.

    `first_step` is the train step at which the job begins. The result of an iteration is fetched while the next one
    runs, so that the engine never waits for Python.
    """
    with MetricLog(args, type(job).__name__, first_step) as log:
        running = None
        for iteration in range(args.iter_num):
            metrics = job()
            if iteration == 0:
                # The first call has compiled the graph, which is no part of a batch's time.
                log.start()
            if running is not None:
                log.add(*running)
            running = (iteration, first_step + iteration, learning_rate_at(first_step + iteration, args), metrics)
            if (iteration + 1) % args.model_save_every_n_iter == 0:
                log.add(*running)
                running = None
                job_state.save(job, f"{args.model_save_dir}/snapshot_{iteration + 1}")
        if running is not None:
            log.add(*running)
        if args.save_last_snapshot:
            job_state.save(job, f"{args.model_save_dir}/last_snapshot")
        log.print_average_speed()
