"""OneFlow's own launcher, `python -m oneflow.distributed.launch`, on a machine where `import oneflow` alone fails.

    python tools/oneflow_launch.py --nproc_per_node=2 run_pretraining.py --gpu_num_per_node=2 --data_dir=...

The scripts start their ranks themselves; this is for those whose cluster calls OneFlow's launcher.
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
        # A rank has failed, and told why.
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    return 0


if __name__ == "__main__":
    run_script(main)
