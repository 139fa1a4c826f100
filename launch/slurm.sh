#!/usr/bin/env bash
# Training on GPUs under SLURM, from the repository's folder after `make install` and `pip install -e '.[gpu]'`:
#   sbatch launch/slurm.sh --config=configs/vit_b16.py --workdir=/shared/runs/b16
# Options before the script's name override the lines below: sbatch --nodes=4 --time=48:00:00 launch/slurm.sh ...
#
# One task per GPU: under SLURM, jax.distributed assigns each process the GPU of its local rank. So GPUs are requested
# per node: with --gpus-per-task, a process would see only one GPU, under another number.
#SBATCH --job-name=jaxclip
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Two minutes before the time limit, the tasks receive SIGTERM, save and exit 75, and the job is requeued.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# SLURM runs a copy of this script from its own folder.
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -x .venv/bin/python ]]; then
  echo "launch/slurm.sh: no .venv in $PWD; run make install and sbatch in the repository's folder" >&2
  exit 2
fi

# srun does not inherit sbatch's --cpus-per-task (SLURM 22.05 and later).
status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" .venv/bin/python -m jaxclip.main --distributed "$@" || status=$?
if ((status == 75)); then
  echo "launch/slurm.sh: stopped after a complete save; requeueing the job"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
