"""Writes the order in which run_squad.py reads the windows of a data set, so that another program can follow it.

usage: window_order.py DATA_DIR WINDOWS.npz BATCH_SIZE ITER_NUM SEED ORDER.npy

DATA_DIR has one part; WINDOWS.npz, from squad_with_transformers.py, has the same records in the same order. Writes the
rows of WINDOWS.npz in each batch to ORDER.npy, int64 [iter_num, batch size].
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine import oneflow_loader  # noqa: E402
from records import checks  # noqa: E402

# Fields that identify a window.
IDENTIFYING = ("input_ids", "start_positions", "end_positions")


def main():
    data_dir, windows_file, batch_size, iter_num, seed, order_file = sys.argv[1:]
    with np.load(windows_file, allow_pickle=False) as arrays:
        windows = {name: arrays[name] for name in IDENTIFYING}
    count, seq_length = windows["input_ids"].shape
    row_of = {_key(windows, row): row for row in range(count)}
    flow = oneflow_loader.load()
    from records.loader import OFRecordLoader

    args = argparse.Namespace(seq_length=seq_length, vocab_size=2**31 - 1, type_vocab_size=2)
    data_set = checks.DataSet([Path(data_dir) / "part-0"], checks.squad_train_fields(args), count)
    placement = flow.placement("cpu", [0])
    loader = OFRecordLoader(data_set, int(batch_size), placement, shuffle=True, seed=int(seed))

    class ReadJob(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.loader = loader

        def build(self):
            return self.loader()

    job = ReadJob()
    order = np.zeros((int(iter_num), int(batch_size)), np.int64)
    for rows in order:
        batch = {name: tensor.to_local().numpy() for name, tensor in job().items() if name in IDENTIFYING}
        rows[:] = [row_of[_key(batch, place)] for place in range(len(rows))]
    np.save(order_file, order)


def _key(windows, row):
    return b"".join(windows[name][row].astype(np.int64).tobytes() for name in IDENTIFYING)


if __name__ == "__main__":
    main()
