"""The folder in --log_dir that a training run has to itself, and that it goes on in when it is resumed.

TensorBoard shows each such folder as a run. RUN_FILE in it tells what run it is, and which files beside the folder
have its JSON lines.
"""

import contextlib
import json
import os
from pathlib import Path

from system.errors import UserError
from system.input_files import read_json
from system.output_files import atomic_file

RUN_FILE = "run.json"


def read_runs(log_dir):
    """folder -> content of its RUN_FILE, for the runs in `log_dir`, in the order in which they last began."""
    runs = {}
    for path in Path(log_dir).glob(f"*/{RUN_FILE}"):
        # Another program's file, or a damaged one, is no reason not to train.
        with contextlib.suppress(UserError):
            content = read_json(path)
            if _is_run(content):
                runs[path.parent] = content
    return dict(sorted(runs.items(), key=lambda item: item[1]["metrics"][-1]))


def _is_run(content):
    names = content.get("metrics") if isinstance(content, dict) else None
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)


def open_run_folder(args, job_name, first_step, metrics_file):
    """The folder, made where there is none, of the run of `job_name` that begins with train step `first_step`.

    `metrics_file` is the name of the file in --log_dir for its JSON lines. A run whose first step is not step 0 goes on
    in the folder of the last one that saved its snapshots in the same --model_save_dir.
    """
    model_save_dir = os.path.realpath(args.model_save_dir)
    content = {"job": job_name, "model_save_dir": model_save_dir, "metrics": [], "parameters": vars(args)}
    folder = Path(args.log_dir) / f"{job_name}{metrics_file.removeprefix('metrics').removesuffix('.jsonl')}"
    if first_step > 0:
        for earlier, found in read_runs(args.log_dir).items():
            if (found.get("job"), found.get("model_save_dir")) == (job_name, model_save_dir):
                folder, content = earlier, found
    folder.mkdir(exist_ok=True)
    content["metrics"].append(metrics_file)
    with atomic_file(folder / RUN_FILE, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
    return folder
