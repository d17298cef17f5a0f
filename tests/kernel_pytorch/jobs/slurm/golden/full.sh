#!/bin/bash
#SBATCH --job-name="books & more"
#SBATCH --comment=kernel-pytorch:books-7f3a
#SBATCH --nodes=2-4
#SBATCH --gpus-per-node=a100:8
#SBATCH --cpus-per-task=33
#SBATCH --mem=23842M
#SBATCH --time=91
#SBATCH --signal=B:USR1@94
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --output="/my jobs/it's/books-7f3a-%a/logs/slurm-%A_%a.out"
#SBATCH --open-mode=append
#SBATCH --chdir=/
#SBATCH --export=NIL
#SBATCH --partition=main
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --constraint="ib&nvme"
#SBATCH --gres=lustre:1
#SBATCH --exclude="n[1-2]"
#SBATCH --dependency=afterok:7
#SBATCH --reservation=maintenance
#SBATCH --array=0-2%1
#SBATCH --exclusive
#SBATCH --mail-type=END
#SBATCH --mail-user="a b"
#SBATCH -L matlab:1

folder='/my jobs/it'"'"'s/books-7f3a'"-$SLURM_ARRAY_TASK_ID"
python=/venv/bin/python
# A signal does not end this script, or Slurm would take the job for finished while its ranks still save.
trap 'echo "Slurm sent USR1" > "$folder/stop"' USR1
trap 'echo "Slurm sent TERM" > "$folder/stop"' TERM
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --cpu-bind=none --mpi=none \
    --kill-on-bad-exit=0 --wait=0 --no-kill --input=none --export=ALL \
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
