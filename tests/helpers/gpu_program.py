"""Runs the script named by the environment variable SCRIPT and writes its graphs as JSON to --log_dir.

structure-<rank>.json has `graphs`, for each compiled graph a list of its operators with their `type`, the `dtypes` of
inputs and outputs and their size in `bytes`; and `slow_threads`, the number of threads with a lower priority.
"""

import importlib
import json
import math
import os
from pathlib import Path

import config
from ranks.launcher import run_on_all_ranks
from ranks.ranks import rank
from training import run_setup
from util import run_script

# script -> (parser of its flags, function that each rank runs)
SCRIPTS = {
    "run_pretraining": ("parse_pretraining_args", "train"),
    "run_squad": ("parse_squad_args", "train"),
    "run_squad_predict": ("parse_squad_predict_args", "predict_answers"),
    "run_classifier": ("parse_classifier_args", "classify"),
}


def main():
    parse, _ = SCRIPTS[os.environ["SCRIPT"]]
    return run_on_all_ranks(run, getattr(config, parse)())


def run(args):
    _, function = SCRIPTS[os.environ["SCRIPT"]]
    graphs = []
    start_engine = run_setup.start_engine

    def start(args):
        placement = start_engine(args)
        from engine.oneflow_loader import nn

        compile_graph = nn.Graph._compile

        def compile_and_note(graph, *inputs, **named_inputs):
            outputs = compile_graph(graph, *inputs, **named_inputs)
            graphs.append(operators_of(graph._compiled_graph_proto))
            return outputs

        nn.Graph._compile = compile_and_note
        return placement

    run_setup.start_engine = start
    getattr(importlib.import_module(os.environ["SCRIPT"]), function)(args)
    niceness = [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")]
    structure = {"graphs": graphs, "slow_threads": sum(nice > min(niceness) for nice in niceness)}
    (Path(args.log_dir) / f"structure-{rank()}.json").write_text(json.dumps(structure))


BYTES = {"kBool": 1, "kInt8": 1, "kUInt8": 1, "kFloat16": 2, "kBFloat16": 2, "kInt64": 8, "kDouble": 8}  # others: 4


def operators_of(job):
    from oneflow.core.common.data_type_pb2 import DataType

    blobs = job.helper.lbn2logical_blob_desc
    dtypes = {name: DataType.Name(blob.data_type) for name, blob in blobs.items()}
    bytes_of = {name: BYTES.get(dtypes[name], 4) * math.prod(blob.shape.dim) for name, blob in blobs.items()}
    operators = []
    for operator in job.net.op:
        user = operator.user_conf
        taken, made = ([name for value in values.values() for name in value.s] for values in (user.input, user.output))
        operators.append(
            {
                "type": user.op_type_name or operator.WhichOneof("op_type"),
                "dtypes": [dtypes[name] for name in taken + made],
                "bytes": sum(bytes_of[name] for name in taken + made),
            }
        )
    return operators


if __name__ == "__main__":
    run_script(main)
