"""Which device a run takes, on machines that are not at hand: the CUDA driver is a stand-in."""

import ctypes
import os
import re

import pytest

import config
from engine import device, native
from launched import PRETRAINING
from made_parts import write_pretraining_part
from running import run
from system.errors import UserError
from training import run_setup


class Driver:
    """Answers like libcuda.so.1 for a machine with the given (name, compute capability) GPUs."""

    def __init__(self, gpus, version=12020, init=0):
        self._gpus = gpus
        self._version = version
        self._init = init

    def cuInit(self, flags):
        return self._init

    def cuDriverGetVersion(self, version):
        version._obj.value = self._version
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, gpu, index):
        gpu._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, value, attribute, gpu):
        value._obj.value = self._gpus[gpu][1][{75: 0, 76: 1}[attribute]]
        return 0

    def cuDeviceTotalMem_v2(self, size, gpu):
        size._obj.value = 16 * 10**9
        return 0

    def cuDeviceGetName(self, name, size, gpu):
        ctypes.memmove(name, self._gpus[gpu][0].encode() + b"\0", len(self._gpus[gpu][0]) + 1)
        return 0


A100 = ("A100", (8, 0))
H100 = ("H100", (9, 0))
K80 = ("K80", (3, 7))


def choose(monkeypatch, driver, requested="auto", gpu_num_per_node=1):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: driver)
    return device.choose_device(requested, gpu_num_per_node)


def test_takes_a_usable_gpu(monkeypatch):
    assert choose(monkeypatch, Driver([A100])) == ("cuda", "A100, compute capability 8.0")
    assert choose(monkeypatch, Driver([A100]), "cuda")[0] == "cuda"
    assert choose(monkeypatch, Driver([("V100", (7, 0)), ("V100", (7, 0))]), "cuda", 2)[0] == "cuda"


def test_cpu_on_request(monkeypatch):
    assert choose(monkeypatch, Driver([A100]), "cpu")[0] == "cpu"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver([H100]), "no code for H100, compute capability 9.0"),
        (Driver([K80]), "no code for K80, compute capability 3.7"),
        (Driver([A100, H100]), "CUDA_VISIBLE_DEVICES"),
        (Driver([]), "finds no GPU"),
        (Driver([A100], init=100), "finds no GPU"),
        (Driver([A100], version=10020), "supports CUDA 10.2, OneFlow needs 11.0"),
    ],
)
def test_says_why_the_gpu_cannot_be_used(monkeypatch, driver, reason):
    kind, text = choose(monkeypatch, driver)
    assert kind == "cpu" and reason in text
    with pytest.raises(UserError, match="--device=cuda"):
        choose(monkeypatch, driver, "cuda")


@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_fewer_gpus_than_asked_for(monkeypatch, requested):
    with pytest.raises(UserError, match="--gpu_num_per_node=2, but of this machine.s GPUs OneFlow can use 1"):
        choose(monkeypatch, Driver([A100]), requested, 2)


@pytest.mark.parametrize(("driver", "requested"), [(Driver([A100]), "cpu"), (Driver([]), "auto")])
def test_processes_on_the_cpu_are_limited_by_reason_only(monkeypatch, driver, requested):
    monkeypatch.setattr(device, "usable_processors", lambda: 2)
    assert choose(monkeypatch, driver, requested, 32)[0] == "cpu"
    with pytest.raises(UserError, match="--gpu_num_per_node=33 .* number of processors is 2"):
        choose(monkeypatch, driver, requested, 33)


@pytest.mark.parametrize(
    ("gpu", "tf32", "said"), [(A100, True, True), (A100, False, False), (("V100", (7, 0)), True, False)]
)
def test_the_precision_of_gpus_is_said_and_set(monkeypatch, gpu, tf32, said):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Driver([gpu]))
    monkeypatch.setenv("ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION", "anything")
    args = config.parse_pretraining_args(["--data_dir=x", f"--tf32={tf32}", "--use_fp16", "--amp_dtype=bfloat16"])
    if gpu is not A100:
        with pytest.raises(UserError, match="V100, compute capability 7.0 cannot"):
            run_setup._settle_precision(args)
        args.amp_dtype = None
    assert (run_setup._settle_precision(args) == "; float32 products run as TF32") == said
    assert os.environ["ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION"] == str(int(tf32))


def test_a_data_type_without_mixed_precision():
    with pytest.raises(UserError, match="--amp_dtype=float16 is for mixed precision: add --use_fp16"):
        config.parse_pretraining_args(["--data_dir=x", "--amp_dtype=float16"])


def test_int8_is_for_the_cpu():
    args = config.parse_squad_predict_args(["--data_dir=x", "--model_load_dir=x", "--use_int8"])
    with pytest.raises(UserError, match="--use_int8: a GPU .*; leave it out, or give --device=cpu"):
        run_setup._settle_int8(args, "cuda")


LOG = "PretrainJob_0 needs 9000000000 bytes of a GPU, 1 of them for variables\n"
LOG += "PretrainJob_1 needs 34000000000 bytes of a GPU, 4000000000 of them for variables\n"


@pytest.mark.parametrize(
    ("error", "log", "flags", "expected"),
    [
        (
            "Error: out of memory",
            LOG,
            {},
            "out of GPU memory: a step needs 34.00 GB, the GPU has 16.00 GB, less what others use; "
            "--batch_size_per_device=25 or less (with --num_accumulation_steps=3 or more for as many sequences an "
            "update), a smaller --seq_length, --use_fp16 or --zero_stage=2 on several GPUs needs less",
        ),
        (
            f"{LOG}what(): out of memory",
            LOG,
            {
                "use_fp16": True,
                "zero_stage": 2,
                "batch_size_per_device": 1,
                "hidden_dropout_prob": 0,
                "attention_probs_dropout_prob": 0,
            },
            "out of GPU memory: a step needs 34.00 GB, the GPU has 16.00 GB, less what others use; "
            "a smaller --batch_size_per_device, a smaller --seq_length or --activation_checkpointing needs less",
        ),
        (
            "out of memory",
            "",
            {"zero_stage": 3},
            "out of GPU memory: the variables do not fit, the GPU has 16.00 GB, less what others use; "
            "a smaller model needs less",
        ),
        ("Check failed: allocate failed", LOG, {}, None),
        (
            "out of memory",
            LOG.replace("a GPU", "memory"),
            {"gpu_num_per_node": 2, "num_accumulation_steps": 2},
            "out of memory: a step needs 34.00 GB, a process can have 10.00 GB of this machine's, less what others "
            "use; --batch_size_per_device=12 or less (with --num_accumulation_steps=11 or more for as many sequences "
            "an update), a smaller --seq_length, --activation_checkpointing, a smaller --gpu_num_per_node or "
            "--zero_stage=1 on several machines needs less",
        ),
    ],
)
def test_a_lack_of_memory_is_told_with_what_helps(monkeypatch, error, log, flags, expected):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Driver([A100]))
    monkeypatch.setattr(device, "usable_memory", lambda: 20 * 10**9)
    args = config.parse_pretraining_args(["--data_dir=x", *(f"--{name}={value}" for name, value in flags.items())])
    assert device.lack_of_memory(error, log, args) == expected


def test_a_run_that_was_killed(monkeypatch):
    monkeypatch.setattr(device, "usable_memory", lambda: 20 * 10**9)
    args = config.parse_pretraining_args(["--data_dir=x"])
    log = "PretrainJob_0 needs 19000000000 bytes of memory, 1 of them for variables\n"
    assert device.likely_lack_of_memory(log, args) == (
        "a step needs 19.00 GB, a process can have 20.00 GB of this machine's, less what others use; "
        "a smaller --batch_size_per_device, a smaller --seq_length, --activation_checkpointing or --zero_stage=1 on "
        "several machines needs less"
    )
    assert device.likely_lack_of_memory("", args) is None


@pytest.mark.skipif(not native.is_built(), reason="no native kernels: make kernels builds them")
def test_a_step_that_the_machine_has_no_memory_for_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.delenv("BERT_KERNELS", raising=False)
    (tmp_path / "data").mkdir()
    write_pretraining_part(tmp_path / "data" / "part-0", 1)
    result = run(
        "run_pretraining.py", **{**PRETRAINING, "batch_size_per_device": 10**7}, data_dir=tmp_path / "data",
        log_dir=tmp_path, model_save_dir=tmp_path, check_data=False,
    )  # fmt: skip
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.match(r"run_pretraining.py: error: out of memory: a step needs [\d.]+ GB, a process can have ", line), (
        line
    )
    assert "--batch_size_per_device=" in line
