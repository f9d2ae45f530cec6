"""What a run needs before its model is built: checked flags and data, a device, and OneFlow loaded."""

import dataclasses
import os
import tempfile
from datetime import datetime
from pathlib import Path

import config
import device
import engine
import records
from util import UserError, describe_os_error


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run goes, as its flags and this machine decide."""

    placement: object  # where the model lies: an oneflow.placement
    mixed_precision: bool
    batch_size: int  # sequences in a global batch
    part_paths: list
    fields: dict  # name -> records.Field
    record_count: int  # None where the parts are too large to be counted before a run
    log_path: Path


def prepare_run(args, fields, saves):
    """Checks what can go wrong, prints the header and loads OneFlow; returns the Run.

    `fields` are the records' fields (records.pretraining_fields, say), `saves` whether the run will write snapshots.
    Raises UserError before anything expensive begins.
    """
    paths = records.part_paths(args.data_dir, args.data_part_num)
    record_count = records.check_parts(paths, fields, args.check_data)
    _check_writable("--log_dir", args.log_dir)
    if saves:
        _check_writable("--model_save_dir", args.model_save_dir)
    device_type, reason = device.choose_device(args.device, args.gpu_num_per_node)
    if device_type == "cpu":
        # OneFlow fails on a GPU that it cannot use even if it is not asked to use it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config.print_args(args)
    print(f"Device: {device_type} ({reason})")
    if args.use_fp16 and device_type == "cpu":
        print("Notice: --use_fp16 has no effect on the CPU, which computes in float32.")
    log_dir = Path(args.log_dir)
    flow = engine.load(log_dir / "oneflow.log")
    flow.manual_seed(args.seed)
    if args.use_boxing_v2:
        # The settings that the published scripts made for it.
        flow.boxing.nccl.set_fusion_threshold_mbytes(8)
        flow.boxing.nccl.enable_use_buffer_to_fuse_all_reduce(False)
    return Run(
        placement=flow.placement(device_type, list(range(args.node_num * args.gpu_num_per_node))),
        mixed_precision=bool(args.use_fp16) and device_type == "cuda",
        batch_size=args.node_num * args.gpu_num_per_node * args.batch_size_per_device,
        part_paths=paths,
        fields=fields,
        record_count=record_count,
        log_path=log_dir / f"metrics-{datetime.now():%Y-%m-%d-%H:%M:%S}.jsonl",
    )


def _check_writable(flag, folder):
    """Makes the folder and writes a file into it; raises UserError naming the flag if that fails."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag}={folder}: cannot be written: {describe_os_error(error)}") from None
