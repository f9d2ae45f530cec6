"""Runs OneFlow's launcher, `python -m oneflow.distributed.launch`, where a plain `import oneflow` fails.

    python tools/oneflow_launch.py --nproc_per_node=2 run_pretraining.py --gpu_num_per_node=2 --data_dir=...

The scripts start their ranks themselves; use this if your cluster calls OneFlow's launcher.
"""

import suite  # noqa: F401

# isort: split

import runpy
import subprocess

from engine import oneflow_loader
from util import run_script


def main():
    oneflow_loader.load()
    try:
        runpy.run_module("oneflow.distributed.launch", run_name="__main__", alter_sys=True)
    except subprocess.CalledProcessError as error:
        # A rank failed and printed its own error.
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    return 0


if __name__ == "__main__":
    run_script(main)
