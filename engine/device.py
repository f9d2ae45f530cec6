"""Which device a run uses, and why: the GPU where OneFlow 0.9.0 can use it, else the CPU.

The CUDA driver is asked through its own library, before OneFlow is loaded: OneFlow aborts the process on a GPU that
its wheel has no machine code for.
"""

import ctypes
import re
from typing import NamedTuple

from system.errors import UserError
from system.memory import usable_memory
from system.processors import usable_processors

# The wheel holds machine code for these compute capabilities and no PTX. Code for x.y runs on x.z with z >= y.
_LOWEST_CAPABILITY = (6, 0)
_FIRST_UNSUPPORTED_CAPABILITY = (9, 0)
# The wheel has the runtime of CUDA 11.7. By minor version compatibility (NVIDIA's CUDA Compatibility) it works with
# drivers from 450.80.02 (CUDA 11.0) on, for a program that has machine code and needs no PTX compiled.
_LOWEST_DRIVER = 11000  # as cuDriverGetVersion counts

# More ranks on the CPU are a mistake that would bring the machine to its knees.
_RANKS_PER_PROCESSOR = 16

# What the CUDA runtime calls it.
_OUT_OF_MEMORY = "out of memory"

_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute
_COMPUTE_CAPABILITY_MINOR = 76


class Gpu(NamedTuple):
    """A GPU that OneFlow can use."""

    name: str
    capability: tuple  # major, minor

    def __str__(self):
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"

    def is_ampere(self):
        """Whether it is of the first generation that computes in bfloat16 and TF32, or a later one."""
        return self.capability >= (8, 0)


def choose_device(requested, gpu_num_per_node):
    """("cuda" or "cpu", the reason in words) for `--device` (auto, cuda or cpu).

    Raises UserError if a GPU is demanded and OneFlow can use none, or if it can use some, but fewer than
    `gpu_num_per_node`; or if that is out of all proportion to the processors.
    """
    if requested == "cpu":
        _check_processors(gpu_num_per_node)
        return "cpu", "as --device=cpu asks"
    gpus, problem = usable_gpus()
    if problem is None and len(gpus) < gpu_num_per_node:
        raise UserError(
            f"--gpu_num_per_node={gpu_num_per_node}, but of this machine's GPUs OneFlow can use {len(gpus)}; "
            "ask for fewer, or for processes on the CPU with --device=cpu"
        )
    if problem is None:
        return "cuda", str(gpus[0])
    if requested == "cuda":
        raise UserError(f"--device=cuda: {problem}; use --device=cpu or --device=auto to run on the CPU")
    _check_processors(gpu_num_per_node)
    return "cpu", problem


def _check_processors(ranks):
    processors = usable_processors()
    if ranks > _RANKS_PER_PROCESSOR * processors:
        raise UserError(
            f"--gpu_num_per_node={ranks} would be so many processes where the number of processors is {processors}; "
            f"at most {_RANKS_PER_PROCESSOR} for each are started"
        )


def usable_gpus():
    """([a Gpu that OneFlow 0.9.0 can use, ...], None), or (None, why it can use none)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, "no NVIDIA driver is installed"
    if driver.cuInit(0) != 0:
        return None, "the NVIDIA driver finds no GPU"
    version = _integer(driver.cuDriverGetVersion)
    if version < _LOWEST_DRIVER:
        return None, f"the NVIDIA driver supports CUDA {version // 1000}.{version % 1000 // 10}, OneFlow needs 11.0"
    usable = []
    unsupported = []
    for index in range(_integer(driver.cuDeviceGetCount)):
        gpu = _integer(driver.cuDeviceGet, index)
        capability = (
            _integer(driver.cuDeviceGetAttribute, _COMPUTE_CAPABILITY_MAJOR, gpu),
            _integer(driver.cuDeviceGetAttribute, _COMPUTE_CAPABILITY_MINOR, gpu),
        )
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, len(name), gpu)
        found = Gpu(name.value.decode(errors="replace"), capability)
        if _LOWEST_CAPABILITY <= capability < _FIRST_UNSUPPORTED_CAPABILITY:
            usable.append(found)
        else:
            unsupported.append(found)
    if unsupported:
        # OneFlow numbers the GPUs as the driver does, so one that it cannot use must be hidden by the user.
        return None, (
            f"OneFlow 0.9.0 has no code for {unsupported[0]} (it has for 6.0 to 8.x)"
            + ("; hide it with CUDA_VISIBLE_DEVICES to use the others" if usable else "")
        )
    if not usable:
        return None, "the NVIDIA driver finds no GPU"
    return usable, None


class _Plan(NamedTuple):
    """The bytes that each rank's arrays need for a step, by OneFlow's plan."""

    needed: int
    variables: int  # of those needed
    on_gpu: bool

    @classmethod
    def of(cls, log):
        """What bert_tell_memory or bert_check_memory (kernels/plugin_memory.cpp) has said last, or None."""
        plans = re.findall(r" needs (\d+) bytes of (a GPU|memory), (\d+) of them for variables$", log, re.MULTILINE)
        return cls(int(plans[-1][0]), int(plans[-1][2]), plans[-1][1] == "a GPU") if plans else None

    def there_is(self, args):
        """The bytes that a rank may use."""
        return _memory() if self.on_gpu else usable_memory() // args.gpu_num_per_node


def lack_of_memory(error, log, args):
    """In words, what memory was asked for, what there is and which flags need less; None if it was not that.

    `error` is what OneFlow says of it, `log` what it has said in the run.
    """
    if _OUT_OF_MEMORY not in error:
        return None
    plan = _Plan.of(log)
    if plan is None:
        return (
            f"out of GPU memory: the variables do not fit, the GPU has {_memory() / 1e9:.2f} GB, less what others use; "
            f"{_needs_less(['a smaller model'], args, on_gpu=True)}"
        )
    return f"out of {'GPU ' if plan.on_gpu else ''}memory: {_in_words(plan, args)}"


def likely_lack_of_memory(log, args):
    """As lack_of_memory, of a run on the CPU that the system has killed; None if its plan leaves much memory free."""
    plan = _Plan.of(log)  # told of a plan that takes more than half
    return _in_words(plan, args) if plan and not plan.on_gpu else None


def _in_words(plan, args):
    total = plan.there_is(args)
    remedies = [_smaller_batch(plan, total, args), "a smaller --seq_length"]
    has_dropout = args.hidden_dropout_prob > 0 or args.attention_probs_dropout_prob > 0
    if _trains(args) and not args.activation_checkpointing and not (plan.on_gpu and has_dropout):
        remedies.append("--activation_checkpointing")
    if plan.on_gpu:
        there_is = f"the GPU has {total / 1e9:.2f} GB, less what others use"
        if not args.use_fp16:
            remedies.append("--use_fp16")
    else:
        there_is = f"a process can have {total / 1e9:.2f} GB of this machine's, less what others use"
        if args.gpu_num_per_node > 1:
            remedies.append("a smaller --gpu_num_per_node")
    return f"a step needs {plan.needed / 1e9:.2f} GB, {there_is}; {_needs_less(remedies, args, plan.on_gpu)}"


def _smaller_batch(plan, total, args):
    """A batch that is more likely to fit, and where training can accumulate as many sequences for an update, how."""
    # More than that cannot fit: gradients do not shrink with the batch.
    batch = int(args.batch_size_per_device * (total - plan.variables) / max(1, plan.needed - plan.variables))
    if not 0 < batch < args.batch_size_per_device:
        return "a smaller --batch_size_per_device"
    remedy = f"--batch_size_per_device={batch} or less"
    if not _trains(args):
        return remedy
    batches = -(-args.batch_size_per_device * args.num_accumulation_steps // batch)
    return f"{remedy} (with --num_accumulation_steps={batches} or more for as many sequences an update)"


def _trains(args):
    """Whether the script trains a model, by its flags."""
    return getattr(args, "do_train", False)


def _needs_less(remedies, args, on_gpu):
    """`remedies`, and --zero_stage where it would help, as a clause."""
    stage, devices = (2, "GPUs") if on_gpu else (1, "machines")
    if args.zero_stage < stage and _trains(args):
        remedies = [*remedies, f"--zero_stage={stage} on several {devices}"]
    *others, last = remedies
    what_helps = f"{', '.join(others)} or {last}" if others else last
    return f"{what_helps} needs less"


def _memory():
    """Bytes of the smallest GPU."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuInit(0)
    sizes = []
    for index in range(_integer(driver.cuDeviceGetCount)):
        size = ctypes.c_size_t()
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), _integer(driver.cuDeviceGet, index))
        sizes.append(size.value)
    return min(sizes)


def _integer(function, *arguments):
    """Calls a driver function that returns an int through its first parameter."""
    result = ctypes.c_int()
    status = function(ctypes.byref(result), *arguments)
    if status != 0:
        raise UserError(
            f"the NVIDIA driver fails in {function.__name__} with status {status}; use --device=cpu to run on the CPU"
        )
    return result.value
