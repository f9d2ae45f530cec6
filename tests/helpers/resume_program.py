"""Resumes an earlier run of this program, to compare batches and dropout.

Takes the flags of run_pretraining.py. The first run trains --iter_num steps and saves the state at half of them, with
the later batches and dropout masks, to --model_save_dir. With --model_load_dir, a run resumes from the `half` of
another.
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


def main():
    args = config.parse_pretraining_args()
    return run_on_all_ranks(observe, args)


def observe(args):
    model_flags.settle(args)
    data_set = checks.check_data_set(args, checks.pretraining_fields(args), shuffle=True)
    placement = run_setup.start_engine(args)

    from bert_util import Initializer, bert_config
    from pretrain import BertForPretraining, PretrainJob
    from records.loader import OFRecordLoader
    from training import job_state

    class Job(PretrainJob):
        def build(self):
            batch = self.loader()
            self.loader = lambda: batch
            return {**super().build(), "ids": batch["input_ids"]}

    model = BertForPretraining(bert_config(args), Initializer(placement, args.seed))
    loader = OFRecordLoader(data_set, config.global_batch_size(args), placement, shuffle=True, seed=args.seed)
    job = Job(model, loader, args)
    first_step = job_state.initialise(job, args.model_load_dir)
    if args.model_load_dir:
        state = np.load(Path(args.model_load_dir).with_name(f"state_{rank()}.npz"))
        native.restore_random_state(state["random"].tobytes())
        if state["reader"].size:
            native.restore_reader(state["reader"].tobytes())
    seen = {"total_loss": [], "ids": []}
    half = args.iter_num // 2
    for iteration in range(half if first_step else args.iter_num):
        if not first_step and iteration == half:
            job_state.save(job, Path(args.model_save_dir) / "half", {}, {})
            state = {"reader": native.reader_state(half) or b"", "random": native.random_state()}
            state = {name: np.frombuffer(data, np.uint8) for name, data in state.items()}
            np.savez(Path(args.model_save_dir) / f"state_{rank()}.npz", **state)
            seen = {name: [] for name in seen}
        outputs = job()
        for name, values in seen.items():
            values.append(outputs[name].to_local().numpy())
    job_state.save(job, Path(args.model_save_dir) / "end", {}, {})
    np.savez(Path(args.model_save_dir) / f"seen_{rank()}.npz", **seen)


if __name__ == "__main__":
    run_script(main)
