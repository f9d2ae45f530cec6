"""Records, on several ranks, the records that the loader returns, the masks of dropout and what ZeRO splits.

Takes the flags of run_pretraining.py. The records of --data_dir have one number each, `id`, which counts up through the
parts. Rank 0 writes the observations to --model_save_dir/seen.npz.
"""

from pathlib import Path

import numpy as np

import config
from engine import native
from ranks.launcher import run_on_all_ranks
from ranks.ranks import rank
from records import checks
from training import model_flags, run_setup
from util import run_script

BATCH = 512
# (name, parts, shuffled, batches)
READINGS = [
    ("in_order", 3, False, 7),
    ("one_part", 1, True, 8),
    ("three_parts", 3, True, 24),
    ("four_parts", 4, True, 32),
]


def main():
    args = config.parse_pretraining_args()
    return run_on_all_ranks(observe, args)


def observe(args):
    # Without it OneFlow crashes on a graph that finishes before it is queued, as these small ones may.
    if native.is_built():
        native.load_engine_fixes()
    model_flags.settle(args)
    placement = run_setup.start_engine(args)

    from engine import oneflow_loader, operators
    from records.loader import OFRecordLoader
    from training.job import TrainJob

    flow = oneflow_loader.load()
    seen = {}

    class Read(flow.nn.Graph):
        def __init__(self, loader):
            super().__init__()
            self.loader = loader

        def build(self):
            return self.loader()["id"].to_global(sbp=flow.sbp.broadcast)

    for name, parts, shuffle, batches in READINGS:
        args.data_part_num = parts
        data_set = checks.check_data_set(args, {"id": checks.Field(1)}, shuffle)
        read = Read(OFRecordLoader(data_set, BATCH, placement, shuffle, args.seed))
        seen[name] = np.stack([read().to_local().numpy()[:, 0] for _ in range(batches)])

    class Dropout(flow.nn.Graph):
        def build(self, x, bias, mask):
            outputs = (
                operators.dropout(x, 0.5),
                operators.residual_norm(x, bias, x, bias, bias, mask, 0.5),
                operators.attention(x, x, x, mask, 2, 0.5),
            )
            return [output.to_global(sbp=flow.sbp.broadcast) for output in outputs]

    def on_all_ranks(array, sbp):
        return flow.tensor(array, placement=placement, sbp=sbp)

    # Four identical sequences of 8 tokens.
    sequence = np.random.default_rng(0).standard_normal((8, 32), dtype=np.float32)
    x = on_all_ranks(np.tile(sequence, (4, 1)), flow.sbp.broadcast).to_global(sbp=flow.sbp.split(0))
    mask = on_all_ranks(np.zeros((4, 8), np.float32), flow.sbp.broadcast).to_global(sbp=flow.sbp.split(0))
    bias = on_all_ranks(np.ones(32, np.float32), flow.sbp.broadcast)
    drop = Dropout()
    for call in range(2):
        for name, output in zip(("dropout", "residual_norm", "attention"), drop(x, bias, mask), strict=True):
            seen[f"{name}_{call}"] = output.to_local().numpy().reshape(4, -1)

    class Model(flow.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = flow.nn.Parameter(flow.zeros(64, 64, placement=placement, sbp=flow.sbp.broadcast))

        def forward(self, x):
            return {"total_loss": operators.over_all_ranks(flow._C.matmul(x, self.weight).mean())}

    class Ones(flow.nn.Module):
        def forward(self):
            return flow.ones(4, 64, placement=placement, sbp=flow.sbp.split(0))

    for stage, batches in ((0, 1), (1, 1), (1, 2)):
        args.zero_stage, args.num_accumulation_steps = stage, batches
        job = TrainJob(Model(), Ones(), args)
        job()
        state = job.state_dict()
        tensors = {"weight": state["model"]["weight"], "m": state["model.weight-m"], "v": state["model.weight-v"]}
        for name, tensor in tensors.items():
            seen[f"zero_{stage}_{batches}_{name}"] = tensor.to_local().numpy()

    if rank() == 0:
        np.savez(Path(args.model_save_dir) / "seen.npz", **seen)


if __name__ == "__main__":
    run_script(main)
