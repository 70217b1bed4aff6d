#!/bin/bash
# A run on two machines of eight GPUs under Slurm, which goes on where it was when its time is over or a machine is lost.
#   sbatch --export=ALL,RECIPE=mug.toml,RUN=/shared/runs/mug docs/cluster/slurm.sh
# RUN must be on a disk that all machines see. A run on one machine takes --nodes=1 and is the same otherwise.
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# five minutes before the end, or when the job is to make room: the ranks save the step they are at, and the job waits again
make_room() {
  scancel --signal=TERM "$SLURM_JOB_ID"
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
}
trap make_room TERM

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
  -m finetune train "$RECIPE" --out "$RUN" --resume auto &
step=$!
wait "$step"
