"""Prepares a run: checks folders, chooses the device and loads OneFlow."""

import contextlib
import os
import re
import tempfile
from pathlib import Path

import config
from engine import device, native, oneflow_loader
from ranks import shared_memory, supervision
from ranks.ranks import from_first_rank, rank, wait_for_first_rank
from records import prediction_file
from snapshots import layout
from system.errors import UserError
from system.folder_lock import lock_folder
from system.input_files import reading
from system.lazy import LazyModule, import_all
from system.limits import usable_memory, usable_processors
from system.output_files import check_can_write, writing
from training import model_flags

operators = LazyModule("engine.operators")

# Seconds. A killed run may still hold its lock while it releases memory.
_LONGEST_END_OF_A_KILLED_RUN = 10


def check_folders(args):
    """Creates --log_dir and, on the first rank, the folders of what the script writes.

    Raises UserError if one cannot be written, if output would replace something else, or if --model_load_dir is not a
    snapshot.
    """
    if rank() == 0 and args.model_load_dir is not None:
        layout.check_is_snapshot(args.model_load_dir)
    _check_writable("--log_dir", args.log_dir)
    if rank() > 0:
        return
    if getattr(args, "do_train", False):
        _check_model_save_dir(args)
    if getattr(args, "do_eval", False) or getattr(args, "do_predict", False):
        _check_output_dir(args)
    if "all_results_file" in args:
        _check_all_results_file(args.all_results_file)


def _check_model_save_dir(args):
    """Creates --model_save_dir if the run saves snapshots. Raises UserError if one would replace something else."""
    for flag, folder in (("--log_dir", args.log_dir), ("--model_save_dir", args.model_save_dir)):
        _check_is_no_snapshot(flag, folder)
    if args.save_last_snapshot or args.do_eval or args.iter_num >= args.model_save_every_n_iter:
        _check_writable("--model_save_dir", args.model_save_dir)
        # Until this process ends.
        lock_folder(args.model_save_dir, _LONGEST_END_OF_A_KILLED_RUN)
    for folder in _folders_in("--model_save_dir", args.model_save_dir):
        if _saves_snapshot_named(args, folder.name) and not (folder / layout.DONE_FILE).is_file():
            raise UserError(
                f"--model_save_dir: {folder} is not a snapshot, so a snapshot will not replace it; move it away"
            )


def _check_is_no_snapshot(flag, folder):
    if os.path.isfile(os.path.join(folder, layout.DONE_FILE)):
        raise UserError(f"{flag}={folder}: is a snapshot, which the next one of its name replaces; give another folder")


def _check_output_dir(args):
    """Creates --output_dir. Raises UserError if results would get into a snapshot or among the records of the run."""
    _check_is_no_snapshot("--output_dir", args.output_dir)
    _check_writable("--output_dir", args.output_dir)
    for flag in reversed(config.WORK.values()) if getattr(args, "do_predict", False) else ():
        folder = getattr(args, flag)
        if folder is not None and os.path.samefile(args.output_dir, folder):
            # The labels.txt of the predictions would become that of the records.
            raise UserError(f"--output_dir={args.output_dir}: is --{flag}; give another folder")


def _saves_snapshot_named(args, name):
    """Returns whether the training run writes --model_save_dir/`name`."""
    iteration = re.fullmatch(r"snapshot_([1-9][0-9]*)", name)
    if iteration:
        return int(iteration[1]) <= args.iter_num and int(iteration[1]) % args.model_save_every_n_iter == 0
    return name == "last_snapshot" and args.save_last_snapshot or name == "best_snapshot" and args.do_eval


def _folders_in(flag, folder):
    """Returns the paths of the folder's entries, none if it does not exist."""
    with reading(f"{flag}={folder}", "folder"), contextlib.suppress(FileNotFoundError):
        return list(Path(folder).iterdir())
    return []


def _check_all_results_file(path):
    """Creates the folder of --all_results_file. Raises UserError if results cannot go there or replace a file."""
    if not os.path.basename(path) or os.path.isdir(path):
        raise UserError(f"--all_results_file={path}: not the name of a file")
    prediction_file.check_replaceable(path)
    _check_writable("the folder of --all_results_file", os.path.dirname(path) or ".")
    check_can_write("--all_results_file", path)


def _check_writable(flag, folder):
    """Creates the folder and a file in it; raises UserError naming the flag if that fails."""
    with writing(f"{flag}={folder}", "folder"):
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def start_engine(args):
    """Chooses and reports the device, and loads OneFlow; returns the oneflow.placement of the model.

    Sets args.iter_num to the first rank's value, since other ranks may not have the data. Raises UserError if the
    device cannot do what a flag asks for.
    """
    device_type, reason = device.choose_device(args.device, args.gpu_num_per_node)
    if device_type == "cuda":
        reason += _settle_precision(args)
    print(f"Device: {device_type} ({reason})", flush=True)
    if device_type == "cpu":
        # OneFlow fails on an unsupported GPU even if it does not use it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if args.zero_stage > 1:
            print(f"Notice: --zero_stage={args.zero_stage} does on the CPU what --zero_stage=1 does.", flush=True)
        threads = cpu_threads_of_rank(args)
        if args.cpu_threads is not None or threads < len(os.sched_getaffinity(0)):
            # For OneFlow's own kernels, which by default use all processors but two.
            os.environ["OMP_NUM_THREADS"] = str(threads)
    elif args.cpu_threads is not None:
        print(f"Notice: --cpu_threads={args.cpu_threads} has no effect on a GPU.", flush=True)
    wait_for_first_rank(args.rendezvous_timeout)
    supervision.start_engine_log(args.log_dir)
    flow = oneflow_loader.load(supervision.engine_log(args.log_dir), device_type)
    args.iter_num = from_first_rank(lambda: args.iter_num)
    model_flags.check_same_on_all_ranks(args)
    import_all()
    flow.manual_seed(args.seed)
    native.set_seed(args.seed)
    operators.compute_in(config.amp_dtype(args, device_type))
    _settle_padding(args, device_type)
    _settle_int8(args, device_type)
    if device_type == "cpu":
        native.set_thread_count(threads)
        native.limit_memory(usable_memory() // args.gpu_num_per_node)
        print(f"CPU: {native.describe()}", flush=True)
        share_memory(args)
        if args.use_fp16:
            print(_use_bfloat16(), flush=True)
        if "use_int8" in args and args.use_int8:
            print("The encoder's linear layers multiply in int8 (--use_int8); all else is float32.", flush=True)
        if args.amp_dtype == "float16":
            print("Notice: --amp_dtype=float16 has no effect on a CPU, which has bfloat16 alone.", flush=True)
    if args.use_boxing_v2:
        # The settings of the published scripts.
        flow.boxing.nccl.set_fusion_threshold_mbytes(8)
        flow.boxing.nccl.enable_use_buffer_to_fuse_all_reduce(False)
    return flow.placement(device_type, list(range(config.rank_count(args))))


def _settle_precision(args):
    """Sets the precision on GPUs, before OneFlow is loaded; returns in words whether float32 products use TF32.

    Raises UserError if --amp_dtype=bfloat16 and a GPU does not support it.
    """
    gpus, _ = device.usable_gpus()
    if args.use_fp16 and args.amp_dtype == "bfloat16":
        for gpu in gpus:
            if not gpu.is_ampere():
                raise UserError(f"--amp_dtype=bfloat16: {gpu} cannot, compute capability 8.0 can; use float16")
    os.environ["ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION"] = str(int(args.tf32))
    return "; float32 products run as TF32" if args.tf32 and any(gpu.is_ampere() for gpu in gpus) else ""


def _settle_padding(args, device_type):
    """Makes graphs skip padding as --skip_padding says, by default where they can.

    Raises UserError if training cannot, but should. Prediction then shortens the batches.
    """
    obstacle = None if device_type == "cpu" else "a GPU computes it"
    if obstacle is None and not operators.has_native_operators():
        obstacle = f"it needs the native kernels ({native.describe()})"
    if args.skip_padding and obstacle and "do_train" in args:
        raise UserError(f"--skip_padding: {obstacle}; leave it out")
    operators.skip_padding(obstacle is None and args.skip_padding is not False)


def _settle_int8(args, device_type):
    """Makes graphs multiply in int8 as --use_int8 says. Raises UserError if they cannot."""
    wanted = "use_int8" in args and args.use_int8
    if wanted and device_type != "cpu":
        raise UserError("--use_int8: a GPU does not multiply in int8 here; leave it out, or give --device=cpu")
    if wanted and not operators.has_native_operators():
        raise UserError(f"--use_int8: it needs the native kernels ({native.describe()}); leave it out")
    operators.use_int8(wanted)


def share_memory(args):
    """Makes the ranks of each node sum gradients in memory that they share. Prints a notice where they cannot.

    All ranks call it, on a CPU, once OneFlow is loaded.
    """
    if args.gpu_num_per_node == 1:
        return
    problem = shared_memory.join(args.gpu_num_per_node)
    if problem is None:
        operators.sum_in_shared_memory(args.node_num)
    elif native.is_loaded():
        print(f"Notice: the ranks share no memory ({problem}), so their gradients take slow connections.", flush=True)


def _use_bfloat16():
    """Switches matrix products to bfloat16 for --use_fp16; returns a line about it for the user."""
    obstacle = native.use_bfloat16(True)
    if obstacle:
        return f"Notice: --use_fp16 has no effect on this CPU, which computes in float32: {obstacle}."
    if not native.has_bfloat16_instructions():
        return (
            "Notice: --use_fp16 makes this run slower, for no bfloat16 instructions (avx512_bf16) are in use: "
            "operands of matrix products are rounded to bfloat16 in software."
        )
    return "Matrix products take bfloat16 (--use_fp16); their sums and all else are float32."


def cpu_threads_of_rank(args):
    """Returns the threads of this rank: its share of --cpu_threads, else OMP_NUM_THREADS, else its share of processors.

    Raises UserError if OMP_NUM_THREADS is too large.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if args.cpu_threads is None and given.isdecimal() and int(given) > 0:
        if int(given) > config.MOST_CPU_THREADS:
            raise UserError(f"OMP_NUM_THREADS={given}: too many threads; {config.MOST_CPU_THREADS} are the most")
        return int(given)
    return max(1, (args.cpu_threads or usable_processors()) // args.gpu_num_per_node)
