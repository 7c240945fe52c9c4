#!/bin/bash
# Pre-training on a Slurm cluster, one process a host:      sbatch --nodes=16 deploy/slurm.sh RUN RECIPE
# JAX finds coordinator, number and rank of the processes in Slurm's own variables. When a process is lost its peers end too
# (--kill-on-bad-exit); the job then starts all of them again, at most TRIES times, and training goes on from the copies in the
# hosts' memory (/dev/shm outlives the process) or else from the last checkpoint. RUN lies on a disk that all hosts share.
#SBATCH --job-name=alhena
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
set -euo pipefail

run=${1:?usage: sbatch deploy/slurm.sh RUN RECIPE}
recipe=${2:?usage: sbatch deploy/slurm.sh RUN RECIPE}
export ALHENA_COORDINATOR=auto
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$run/cache} # compiled programs, shared: a restart compiles nothing

for try in $(seq "${TRIES:-100}"); do
  if srun --kill-on-bad-exit=1 --label alhena pretrain "$run" --recipe "$recipe"; then
    exit 0
  fi
  echo "start $try ended early; all processes are started again" >&2
done
exit 1
