#!/usr/bin/env bash
# A Slurm job of one launcher a node; --node_num and --node_list come from the allocation.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch_slurm.sh .venv/bin/python run_pretraining.py --gpu_num_per_node=8 ...
#
#SBATCH --job-name=bert
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -eu
case ${1:-} in
    -h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" | grep -v '^SBATCH'; exit ;;
esac
[ $# -gt 0 ] || { echo "launch_slurm.sh: error: give a command: sbatch scripts/launch_slurm.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
node_list=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)
# Slurm may give a step fewer processors than the node has; ranks/launcher.py divides what it finds among the ranks.
exec srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=1 \
    "$@" --node_num="$SLURM_JOB_NUM_NODES" --node_list="$node_list"
