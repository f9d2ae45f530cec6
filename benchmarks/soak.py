"""Soak test: trains with a save every few steps, saves and loads snapshots, and kills runs at random and resumes them.

    python benchmarks/soak.py --minutes=60 --saves=1000 --kills=200

0 skips a part. Prints one JSON line per part; exit status 1 if anything was lost. The model is tiny, so that runs start
quickly; reader, dropout, snapshots and loop are the real ones.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine import native  # noqa: E402
from records import ofrecord  # noqa: E402
from snapshots import layout, run_state, series  # noqa: E402
from system.command_line import ArgumentParser, non_negative_int  # noqa: E402
from system.errors import RunError, UserError  # noqa: E402
from util import run_script  # noqa: E402

VOCAB_SIZE, SEQ_LENGTH, PREDICTIONS = 200, 32, 5
FLAGS = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size_per_head": 16,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": SEQ_LENGTH,
    "data_part_num": 2,
    "seq_length": SEQ_LENGTH,
    "max_predictions_per_seq": PREDICTIONS,
    "batch_size_per_device": 4,
    "learning_rate": 1e-3,
    "warmup_batches": 20,
    "device": "cpu",
    "cpu_threads": 1,
    "save_last_snapshot": True,
}
SECONDS_BETWEEN_SAMPLES = 2.0


def main():
    args = parse_args()
    if native.preload() is None:
        raise UserError(f"without the native kernels no run can be resumed exactly: {native.describe()}")
    folder = Path(args.folder or tempfile.mkdtemp(prefix="bert-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder / "data")
    random.seed(args.seed)
    failed = False
    for part, amount in ((save_and_load, args.saves), (train_for_long, args.minutes), (kill_and_resume, args.kills)):
        if amount:
            report = part(folder, amount)
            print(json.dumps({"part": part.__name__, **report}), flush=True)
            failed = failed or bool(report["lost"])
    if args.folder is None:
        shutil.rmtree(folder)
    return 1 if failed else 0


def parse_args():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=non_negative_int, default=60, help="minutes of training with a save every few steps"
    )
    parser.add_argument("--saves", type=non_negative_int, default=1000, help="snapshots to save and load")
    parser.add_argument(
        "--kills",
        type=non_negative_int,
        default=200,
        help="number of kill -9 at random moments, each followed by a resume",
    )
    parser.add_argument("--seed", type=non_negative_int, default=1, help="random seed of the kills")
    parser.add_argument("--folder", metavar="DIR", help="working folder, which is kept (default: a temporary one)")
    return parser.parse_args()


def write_data(folder):
    """Writes two parts of random pre-training records."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for part in range(FLAGS["data_part_num"]):
        with ofrecord.open_writer(folder / f"part-{part}") as write:
            for _ in range(101 + part):
                features = {
                    "input_ids": generator.integers(0, VOCAB_SIZE, SEQ_LENGTH),
                    "input_mask": np.ones(SEQ_LENGTH),
                    "segment_ids": np.arange(SEQ_LENGTH) >= SEQ_LENGTH // 2,
                    "masked_lm_positions": generator.choice(SEQ_LENGTH, PREDICTIONS, replace=False),
                    "masked_lm_ids": generator.integers(0, VOCAB_SIZE, PREDICTIONS),
                    "next_sentence_labels": generator.integers(0, 2, 1),
                }
                features = {name: np.asarray(values, dtype=np.int32) for name, values in features.items()}
                write(ofrecord.serialize({**features, "masked_lm_weights": np.ones(PREDICTIONS, dtype=np.float32)}))


def start(folder, output, **flags):
    """Starts a pre-training process that saves into `output`; appends its stdout and stderr to files there."""
    output.mkdir(exist_ok=True)
    flags = {**FLAGS, "data_dir": folder / "data", "log_dir": output, "model_save_dir": output, **flags}
    command = [sys.executable, ROOT / "run_pretraining.py", *(f"--{name}={value}" for name, value in flags.items())]
    # Without the supervising parent (ranks/supervision.py), as the training process itself is measured and killed.
    environment = {**os.environ, "BERT_SUPERVISE": "0"}
    with open(output / "stdout.txt", "ab") as out, open(output / "stderr.txt", "ab") as err:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def run_to_the_end(folder, output, **flags):
    """Trains to the end. Raises RunError if the run fails."""
    with start(folder, output, **flags) as process:
        if process.wait() != 0:
            raise RunError(f"a run failed with status {process.returncode}: {last_line(output / 'stderr.txt')}")


def last_line(path):
    """Returns the last line of a text file, or an empty string."""
    return next(reversed(path.read_text().splitlines()), "")


def save_and_load(folder, count):
    """Saves `count` snapshots by training in one process, and reads each of them."""
    output = folder / "saves"
    started = time.monotonic()
    shutil.rmtree(output, ignore_errors=True)
    run_to_the_end(folder, output, iter_num=count, model_save_every_n_iter=1, loss_print_every_n_iter=count)
    saving = time.monotonic() - started
    lost = [problem for path in series.complete_snapshots(output) for problem in problems_of(path)]
    missing = count + 1 - len(series.complete_snapshots(output))
    lost += [f"{missing} snapshot(s) are missing"] if missing else []
    report = {"saved": count, "lost": lost, "seconds_of_saving": round(saving, 1)}
    report["seconds_of_loading"] = round(time.monotonic() - started - saving, 1)
    shutil.rmtree(output)
    return report


def problems_of(path):
    """Reads and verifies each variable of a visible snapshot. Returns a list of errors."""
    try:
        names = layout.variable_names(path)
        digests = layout.read_checksums(path, names)
        for name in names:
            layout.read_variable(path, name, digests=digests)
        if not run_state.is_complete(run_state.read(path)):
            return [f"{path}: has no state of its run"]
    except UserError as error:
        return [str(error)]
    return []


def train_for_long(folder, minutes):
    """Trains for `minutes` with a save every 20 steps, and samples the process's memory and open files."""
    output = folder / "long"
    shutil.rmtree(output, ignore_errors=True)
    flags = {
        "iter_num": 2**31 - 1,
        "model_save_every_n_iter": 20,
        "model_save_keep": 3,
        "loss_print_every_n_iter": 1000,
    }
    samples = []
    with start(folder, output, **flags) as process:
        deadline = time.monotonic() + 60 * minutes
        try:
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(SECONDS_BETWEEN_SAMPLES)
                if series.complete_snapshots(output):
                    samples.append((time.monotonic(), resident_mb(process.pid), open_files(process.pid)))
                    with open(output / "samples.txt", "a") as file:
                        print(*samples[-1], file=file)
        finally:
            process.send_signal(signal.SIGTERM)
        status = process.wait()
    stopped = re.search(r"stopped by SIGTERM after (\d+)", last_line(output / "stderr.txt"))
    lost = [problem for path in series.complete_snapshots(output) for problem in problems_of(path)]
    if status != 128 + signal.SIGTERM or stopped is None:
        lost.append(f"it ended with status {status}: {last_line(output / 'stderr.txt')}")
    # Buffers and caches fill during the first tenth.
    settled = np.array(samples[len(samples) // 10 :])
    hours = (settled[:, 0] - settled[0, 0]) / 3600
    iterations = int(stopped[1]) if stopped else 0
    return {
        "minutes": minutes,
        "iterations": iterations,
        "saves": iterations // 20,
        "samples": len(settled),
        "resident_mb": [round(float(settled[0, 1]), 1), round(float(settled[-1, 1]), 1)],
        "mb_per_hour": round(float(np.polyfit(hours, settled[:, 1], 1)[0]), 2),
        "open_files": [int(settled[0, 2]), int(settled[:, 2].max()), int(settled[-1, 2])],
        "files_per_hour": round(float(np.polyfit(hours, settled[:, 2], 1)[0]), 2),
        "lost": lost,
    }


def resident_mb(process_id):
    """Returns the resident anonymous memory of a process in MiB."""
    status = Path("/proc", str(process_id), "status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024


def open_files(process_id):
    """Returns the number of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{process_id}/fd"))


def kill_and_resume(folder, kills):
    """Kills a run with SIGKILL `kills` times at random moments and resumes it; compares it with an undisturbed run.

    If a run ends before the last kill, it is compared, too, and another one begins.
    """
    flags = {"iter_num": 200, "model_save_every_n_iter": 10, "model_save_keep": 3, "loss_print_every_n_iter": 1000}
    whole, output = folder / "whole", folder / "killed"
    for path in (whole, output):
        shutil.rmtree(path, ignore_errors=True)
    began = time.monotonic()
    run_to_the_end(folder, whole, **flags)
    longest = time.monotonic() - began
    lost, phases, finished = [], dict.fromkeys(("before training", "training", "saving", "at the end"), 0), 0
    killed = 0
    while killed < kills:
        before = newest_iteration(output)
        with start(folder, output, resume=True, **flags) as process:
            try:
                process.wait(random.uniform(0.2, longest))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
                phases[phase_of(output)] += 1
        lost += [problem for path in series.complete_snapshots(output) for problem in problems_of(path)]
        if newest_iteration(output) < before:
            lost.append(f"after {before} iterations had been saved, only {newest_iteration(output)} are left")
        if process.returncode == 0:
            lost += compare(output, whole)
            finished += 1
            shutil.rmtree(output)
        elif process.returncode != -signal.SIGKILL:
            lost.append(f"a resumed run ended with status {process.returncode}: {last_line(output / 'stderr.txt')}")
    run_to_the_end(folder, output, resume=True, **flags)
    lost += compare(output, whole)
    report = {"kills": killed, "phases": phases, "runs_compared": finished + 1, "lost": lost[:20]}
    return {**report, "seconds": round(time.monotonic() - began)}


def newest_iteration(output):
    """Returns the iteration of the newest snapshot, or 0 without one."""
    paths = series.complete_snapshots(output)
    return run_state.number_and_iteration(paths[-1])[1] if paths else 0


def phase_of(output):
    """Returns what the process that saved into `output` was doing when it was killed."""
    if list(output.glob(".*snapshot*.tmp")):
        return "saving"
    text = (output / "stdout.txt").read_text().rsplit("Running bert", 1)[-1]
    if "nothing is left to do" in text or "average speed" in text:
        return "at the end"
    return "training" if "Restoring model" in text or "Init model" in text else "before training"


def compare(output, whole):
    """Returns a list of differences between the last snapshots of a killed and of an undisturbed run."""
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (output / "last_snapshot", whole / "last_snapshot")
    ]
    if contents[0] == contents[1]:
        return []
    differing = [str(path) for path in contents[1] if contents[0].get(path) != contents[1][path]]
    return [f"last_snapshot is not that of the run that was never stopped: {', '.join(differing[:3])}"]


if __name__ == "__main__":
    run_script(main)
