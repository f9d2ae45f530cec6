"""Compiles a graph for prediction and one for training, with graphs of operators kept and with each built anew.

Takes the flags of run_pretraining.py. Fails unless OneFlow has compiled the same jobs, and they compute the same.
"""

import re

import numpy as np

import config
from engine import native
from ranks.launcher import run_on_all_ranks
from ranks.ranks import rank
from training import model_flags, run_setup
from util import run_script

# name -> columns
FIELDS = {
    **dict.fromkeys(("input_ids", "input_mask", "segment_ids"), 16),
    **dict.fromkeys(("masked_lm_positions", "masked_lm_ids", "masked_lm_weights"), 3),
    "next_sentence_labels": 1,
}
# What numbers all graphs of a process one after the other.
NUMBERED = re.compile(r"(scope_symbol_id: |System-[A-Za-z-]*[-_]|out-|-identity-\d+-|Job_)\d+")


def main():
    args = config.parse_pretraining_args()
    return run_on_all_ranks(compare, args)


def compare(args):
    model_flags.settle(args)
    placement = run_setup.start_engine(args)
    results = []
    for _ in range(2):  # operators name the lines that create them
        results.append(compiled_jobs(placement, args))
        native.load_engine_fixes().bert_keep_graphs(None, None, None, None)
    (kept, outputs), (built_anew, same_outputs) = results
    for name, job in kept.items():
        assert len(job) > 1000 and job == built_anew[name], (name, sorted({*job} ^ {*built_anew[name]})[:20])
    np.testing.assert_array_equal(outputs, same_outputs)
    if rank() == 0:
        print(f"The same: {', '.join(kept)}.")


def compiled_jobs(placement, args):
    """Returns name -> the lines of what OneFlow has compiled, and the logits and losses that come of it.

    The lines are sorted: their order depends on addresses in memory.
    """
    import bert_util
    import pretrain
    import squad
    from engine.oneflow_loader import flow
    from training.scoring import SEQUENCE, BatchJob

    size, initializer = bert_util.bert_config(args), bert_util.Initializer(placement, args.seed)
    batch = {
        name: flow.ones(
            (4, columns),
            dtype=flow.float32 if name == "masked_lm_weights" else flow.int32,
            placement=placement,
            sbp=flow.sbp.split(0),
        )
        for name, columns in FIELDS.items()
    }
    span = squad.BertForQuestionAnswering(size, initializer)
    prediction = BatchJob(span)
    outputs = prediction(*(batch[name].to_global(sbp=flow.sbp.broadcast) for name in SEQUENCE))
    args.num_accumulation_steps, args.activation_checkpointing = 2, True
    training = pretrain.PretrainJob(pretrain.BertForPretraining(size, initializer), lambda: batch, args)
    for _ in range(3):
        outputs += training().values()
    jobs = {"prediction": prediction, "training": training}
    lines = {
        name: sorted(NUMBERED.sub(r"\1", str(job._compiled_graph_proto)).splitlines()) for name, job in jobs.items()
    }
    return lines, np.concatenate([output.to_global(sbp=flow.sbp.broadcast).numpy().ravel() for output in outputs])


if __name__ == "__main__":
    run_script(main)
