"""Runs run_pretraining.py with a tiny model."""

import json
import re
from pathlib import Path

from running import TINY_MODEL, run

SCRIPT = "run_pretraining.py"


LOSS_LINE = re.compile(
    r"iter (\d+), total_loss: (\d+\.\d{3}), mlm_loss: (\d+\.\d{3}), nsp_loss: (\d+\.\d{3}), "
    r"speed: \d+\.\d{3}\(sec/batch\), \d+\.\d{3}\(sentences/sec\)"
)


def pretraining_flags(data_dir, output, **flags):
    """Returns the flags of a run with a tiny model. `flags` override the defaults; None removes one."""
    flags = {
        **TINY_MODEL,
        "data_dir": data_dir,
        "data_part_num": 1,
        "seq_length": 32,
        "max_predictions_per_seq": 5,
        "batch_size_per_device": 4,
        "learning_rate": 1e-3,
        "warmup_batches": 2,
        "iter_num": 4,
        "loss_print_every_n_iter": 1,
        "log_dir": output,
        "model_save_dir": output,
        **flags,
    }
    return {name: value for name, value in flags.items() if value is not None}


def pretrain(data_dir, output, **flags):
    """Runs a tiny model; `flags` override the defaults."""
    return run(SCRIPT, **pretraining_flags(data_dir, output, **flags))


def logged(output):
    """Returns the JSON lines of the only run that logged into `output`."""
    (path,) = Path(output).glob("metrics-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]
