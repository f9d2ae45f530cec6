"""Chooses the device of a run: a GPU if OneFlow 0.9.0 can use it, otherwise the CPU.

Queries the CUDA driver through its own library before OneFlow is loaded, because OneFlow aborts the process on a GPU
for which its wheel has no machine code.
"""

import ctypes
import re
from typing import NamedTuple

from system.errors import UserError
from system.limits import usable_memory, usable_processors

# The wheel has machine code for these compute capabilities and no PTX. Code for x.y runs on x.z with z >= y.
_LOWEST_CAPABILITY = (6, 0)
_FIRST_UNSUPPORTED_CAPABILITY = (9, 0)
# The wheel has the CUDA 11.7 runtime. With minor version compatibility (NVIDIA, CUDA Compatibility) it works with
# drivers from 450.80.02 (CUDA 11.0) on, because it has machine code and no PTX to compile.
_LOWEST_DRIVER = 11000  # in the format of cuDriverGetVersion

# More CPU ranks than this are a mistake and would overload the machine.
_RANKS_PER_PROCESSOR = 16

# The CUDA runtime's message.
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
        """Whether the GPU supports bfloat16 and TF32, which Ampere introduced."""
        return self.capability >= (8, 0)


def choose_device(requested, gpu_num_per_node):
    """Returns ("cuda" or "cpu", the reason in words) for --device=`requested` (auto, cuda or cpu).

    Raises UserError if cuda is requested and OneFlow can use no GPU, if it can use fewer GPUs than `gpu_num_per_node`,
    or if that is far more than the number of processors.
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
    """Returns (list of the Gpus that OneFlow 0.9.0 can use, None), or (None, the reason in words)."""
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
        # OneFlow and the driver number the GPUs alike, so the user must hide a GPU that OneFlow cannot use.
        return None, (
            f"OneFlow 0.9.0 has no code for {unsupported[0]} (it has for 6.0 to 8.x)"
            + ("; hide it with CUDA_VISIBLE_DEVICES to use the others" if usable else "")
        )
    if not usable:
        return None, "the NVIDIA driver finds no GPU"
    return usable, None


class _Plan(NamedTuple):
    """The bytes that a rank needs for a step, from OneFlow's plan."""

    needed: int
    variables: int  # of those needed
    on_gpu: bool

    @classmethod
    def of(cls, log):
        """Returns the last plan printed by bert_tell_memory or bert_check_memory (plugin_memory.cpp), or None."""
        plans = re.findall(r" needs (\d+) bytes of (a GPU|memory), (\d+) of them for variables$", log, re.MULTILINE)
        return cls(int(plans[-1][0]), int(plans[-1][2]), plans[-1][1] == "a GPU") if plans else None

    def there_is(self, args):
        """Returns the bytes that a rank may use."""
        return _memory() if self.on_gpu else usable_memory() // args.gpu_num_per_node


def lack_of_memory(error, log, args):
    """Describes the memory needed, the memory available and the flags that need less. None for other errors.

    `error` is OneFlow's error message, `log` its log of the run.
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
    """As lack_of_memory, for a CPU run that the system has killed. None if its plan needs little memory."""
    plan = _Plan.of(log)  # printed for plans that take more than half
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
    """Suggests a batch size that may fit and, for training, the accumulation that keeps the sequences per update."""
    # An upper bound, because gradients do not shrink with the batch.
    batch = int(args.batch_size_per_device * (total - plan.variables) / max(1, plan.needed - plan.variables))
    if not 0 < batch < args.batch_size_per_device:
        return "a smaller --batch_size_per_device"
    remedy = f"--batch_size_per_device={batch} or less"
    if not _trains(args):
        return remedy
    batches = -(-args.batch_size_per_device * args.num_accumulation_steps // batch)
    return f"{remedy} (with --num_accumulation_steps={batches} or more for as many sequences an update)"


def _trains(args):
    """Whether the script trains a model."""
    return getattr(args, "do_train", False)


def _needs_less(remedies, args, on_gpu):
    """Returns a clause with the remedies, and with --zero_stage where it helps."""
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
