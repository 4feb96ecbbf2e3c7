#!/usr/bin/env bash
# Two machines, a process for each of their GPUs: sbatch examples/slurm.sh
#     sbatch examples/slurm.sh -m amun_ext forget --model original.safetensors --ids 3,17 --out forgotten ...
# The machines share the current folder, for the files that are written, and nothing else.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=01:00:00
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # for --max-restarts: a new start must not find the addresses of the last one
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node 4 \
  --rdzv-backend c10d \
  --rdzv-endpoint "$first:29500" \
  --rdzv-id "$SLURM_JOB_ID" \
  --max-restarts 3 \
  "${@:-examples/several_processes.py}"
