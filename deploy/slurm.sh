#!/bin/bash
# Pre-training on a Slurm cluster, one process per host:      sbatch --nodes=16 deploy/slurm.sh RUN RECIPE
# JAX reads coordinator, number and rank of the processes from Slurm's environment variables. When a process is lost, the others end too
# (--kill-on-bad-exit). The job then restarts all of them, at most MAX_STARTS times. Training resumes from the in-memory checkpoints
# (/dev/shm outlives the process) or else from the last checkpoint on disk. RUN is on a disk that all hosts share.
#SBATCH --job-name=alhena
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
set -euo pipefail

run=${1:?usage: sbatch deploy/slurm.sh RUN RECIPE}
recipe=${2:?usage: sbatch deploy/slurm.sh RUN RECIPE}
export ALHENA_COORDINATOR=auto
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$run/cache} # compiled programs, shared: a restart compiles nothing

for start in $(seq "${MAX_STARTS:-100}"); do
  if srun --kill-on-bad-exit=1 --label alhena pretrain "$run" --recipe "$recipe"; then
    exit 0
  fi
  echo "start $start failed; all processes are restarted" >&2
done
exit 1
