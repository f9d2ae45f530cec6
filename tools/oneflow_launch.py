"""OneFlow's own launcher, `python -m oneflow.distributed.launch`, where its wheel alone cannot be imported (engine.py).

    python tools/oneflow_launch.py --nproc_per_node=2 run_pretraining.py --gpu_num_per_node=2 --data_dir=...

The scripts start their ranks themselves; this is for those whose cluster calls OneFlow's launcher.
"""

import runpy
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import engine  # noqa: E402
from util import run_script  # noqa: E402


def main():
    engine.load()
    try:
        runpy.run_module("oneflow.distributed.launch", run_name="__main__", alter_sys=True)
    except subprocess.CalledProcessError as error:
        # A rank has failed, and told why.
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    return 0


if __name__ == "__main__":
    run_script(main)
