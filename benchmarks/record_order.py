"""Writes the order in which a run reads the records of a data set, so that another program can follow it.

usage: record_order.py TASK SIZE DATA_DIR RECORDS.npz BATCH_SIZE ITER_NUM SEED ORDER.npy

DATA_DIR has one part; RECORDS.npz, from comparison.copy_records, has the same records in the same order. TASK is squad,
classifier (SIZE: the number of labels) or pretraining (SIZE: max_predictions_per_seq). Writes the rows of RECORDS.npz
in each batch to ORDER.npy, int64 [iter_num, batch size].
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine import oneflow_loader  # noqa: E402
from records import checks  # noqa: E402

FIELDS = {
    "squad": checks.squad_train_fields,
    "classifier": checks.classifier_fields,
    "pretraining": checks.pretraining_fields,
}


def main():
    task, size, data_dir, records_file, batch_size, iter_num, seed, order_file = sys.argv[1:]
    with np.load(records_file, allow_pickle=False) as arrays:
        records = dict(arrays)
    count, seq_length = records["input_ids"].shape
    args = argparse.Namespace(seq_length=seq_length, vocab_size=2**31 - 1, type_vocab_size=2)
    args.num_labels = args.max_predictions_per_seq = int(size)
    fields = FIELDS[task](args)
    row_of = {key(records, fields, row): row for row in range(count)}
    flow = oneflow_loader.load()
    from records.loader import OFRecordLoader

    data_set = checks.DataSet([Path(data_dir) / "part-0"], fields, count)
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
        batch = {name: tensor.to_local().numpy() for name, tensor in job().items()}
        rows[:] = [row_of[key(batch, fields, place)] for place in range(len(rows))]
    np.save(order_file, order)


def key(records, fields, row):
    """What tells a record from others: the bytes of all its fields."""
    return b"".join(records[name][row].astype(np.int32).tobytes() for name in fields)


if __name__ == "__main__":
    main()
