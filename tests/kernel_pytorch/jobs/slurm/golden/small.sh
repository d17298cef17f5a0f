#!/bin/bash
#SBATCH --job-name=books
#SBATCH --comment=kernel-pytorch:books-7f3a
#SBATCH --nodes=1
#SBATCH --time=1440
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --output=/jobs/books-7f3a/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --chdir=/
#SBATCH --export=ALL

folder=/jobs/books-7f3a
python=/venv/bin/python
# A signal does not end this script, or Slurm would take the job for finished while its ranks still save.
trap 'echo "Slurm sent USR1" > "$folder/stop"' USR1
trap 'echo "Slurm sent TERM" > "$folder/stop"' TERM
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --cpu-bind=none --mpi=none \
    --kill-on-bad-exit=0 --wait=0 --input=none --export=ALL \
    "$python" -m kernel_pytorch.jobs.node "$folder" &
step=$!
while
    wait "$step"
    code=$?
    [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null
do :; done
if [ "$code" -gt 128 ]; then # a signal may have ended the last wait, not srun; bash keeps its code
    wait "$step" 2>/dev/null
    ended=$?
    [ "$ended" -ne 127 ] && code=$ended
fi
exit "$code"
