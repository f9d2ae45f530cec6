"""Training: the optimiser of google-research/bert, the graph that steps it, and the loop around the graph."""

import functools
import math
from typing import Any, NamedTuple

import engine
import fused_operators
import save_points
import stopping
from launch import has_launcher
from metrics import MetricLog
from util import RunError

flow: Any = engine.load()
nn: Any = flow.nn

# As in google-research/bert's optimization.py.
WEIGHT_DECAY_EXCLUDES = ("LayerNorm", "layer_norm", "bias")
MAX_GRADIENT_NORM = 1.0

# Names of what a train job gives beside its losses.
_SIGNALS = "signals"
_OVERFLOW = "overflow"


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
            outputs[_OVERFLOW] = flow._C.stack(zeros, dim=0).sum()
        if self.signals is not None:
            outputs[_SIGNALS] = self.signals()
        return outputs


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


class _Iteration(NamedTuple):
    """One that runs, or has run."""

    number: int  # counted from 0
    train_step: int
    learning_rate: float
    outputs: dict  # of the graph


def train(job, args, start):
    """Runs `job` up to args.iter_num iterations, printing losses and saving snapshots as the flags say.

    It begins where `start`, a resume.Start, says. The result of an iteration is fetched while the next one runs, so
    that the engine never waits for Python. At a signal it saves a snapshot and raises StoppedTogether on all ranks.
    Raises RunError where a loss or the gradients are not finite, or the last snapshot cannot be saved.
    """
    if start.iteration >= args.iter_num:
        save_points.complete(start, args)
        return
    with (
        MetricLog(args, type(job).__name__, start.train_step, start.losses) as log,
        stopping.noted(second_kills=not has_launcher()) as signals,
    ):
        saves = save_points.SavePoints(job, args, start, log)
        done = start.iteration
        running = None
        stop = 0
        while done < args.iter_num and not stop:
            if signals and job.signals is not None:
                job.signals.to(nn.Module).note(signals[0])
            outputs = job()
            if done == start.iteration:
                # The first call has compiled the graph, which is no part of a batch's time.
                log.start()
            if running is not None:
                stop = _finish(job, running, log, saves)
            step = start.train_step + done - start.iteration
            running = _Iteration(done, step, learning_rate_at(step, args), outputs)
            done += 1
            if saves.is_due(done):
                stop = _finish(job, running, log, saves) or stop
                running = None
                saves.save(done)
            if job.signals is None:
                stop = next(iter(signals), 0)
        if running is not None:
            _finish(job, running, log, saves)
        if done < args.iter_num:
            saves.stop(done, stop)
        saves.finish()
        log.print_average_speed()


def _finish(job, iteration, log, saves):
    """Waits for the result of an iteration and logs it; returns the signal at which all ranks are to stop, or 0.

    Raises RunError if it has come out as something else than finite numbers, UserError if its batch could not be read.
    """
    outputs = {name: output.to_local() for name, output in iteration.outputs.items()}
    signals = outputs.pop(_SIGNALS).numpy() if _SIGNALS in outputs else [0]
    values = {name: output.item() for name, output in outputs.items()}
    job.loader.to(nn.Module).check_batch()
    overflow = not math.isfinite(values.pop(_OVERFLOW, 0.0))
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        place = f"iter {iteration.number} (learning rate {iteration.learning_rate:g})"
        numbers = ", ".join(f"{name} is {values[name]}" for name in bad)
        raise RunError(f"{place}: {numbers}; training stops, {saves.tell_newest()}")
    if overflow:
        log.skip_step(iteration.number)
    log.add(iteration.number, iteration.train_step, iteration.learning_rate, values)
    return int(max(signals))
