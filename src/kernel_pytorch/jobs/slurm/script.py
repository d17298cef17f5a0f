"""The script that sbatch is given: constant but for its header and two paths."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..spec import TrainingJobSpec
from .options import flag_of, options_of

NODE_MODULE = "kernel_pytorch.jobs.node"
"""What runs once on each node."""
COMMENT = "kernel-pytorch:"
"""The comment of a job, before its id."""
LONGEST_NAME = 200
"""Bytes of a job's name; Slurm refuses names of more than 1024."""
SIGNAL_EARLY_S = 60
"""Slurm may signal this much earlier than asked."""

_BODY = """\

folder={folder}{index}
python={python}
# A signal does not end this script, or Slurm would take the job for finished while its ranks still save.
trap 'echo "Slurm sent USR1" > "$folder/stop"' USR1
trap 'echo "Slurm sent TERM" > "$folder/stop"' TERM
export PATH="${{PATH:-/usr/local/bin:/usr/bin:/bin}}"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
    ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} --cpu-bind=none --mpi=none \\
    --kill-on-bad-exit=0 --wait=0 {no_kill}--input=none --export=ALL \\
    "$python" -m {module} "$folder" &
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
"""


def script_of(
    spec: TrainingJobSpec, folder: Path, *, python: str, lead_s: float, inherit_env: bool = True
) -> str:
    """The script, as it is submitted.

    Args:
        spec: of the job.
        folder: of the job. For an array, that of index 7 has ``-7`` after it.
        python: path of the interpreter, on all nodes.
        lead_s: seconds before the time limit at which ranks are asked to stop.
        inherit_env: whether the environment of sbatch arrives.

    Raises:
        TypeError, ValueError: the specification asks for what Slurm, or this script, cannot give.
    """
    header = "".join(f"#SBATCH {line}\n" for line in _header(spec, folder, lead_s, inherit_env))
    index = '"-$SLURM_ARRAY_TASK_ID"' if options_of(spec).array is not None else ""
    least, most = spec.num_nodes
    return f"#!/bin/bash\n{header}" + _BODY.format(
        folder=shlex.quote(str(folder)),
        index=index,
        python=shlex.quote(python),
        module=NODE_MODULE,
        no_kill="--no-kill " if least < most else "",
    )


def _header(spec: TrainingJobSpec, folder: Path, lead_s: float, inherit_env: bool) -> Iterator[str]:
    _refuse_impossible(spec)
    options = options_of(spec)
    least, most = spec.num_nodes
    yield f"--job-name={quoted(_one_line(spec.name))}"
    yield f"--comment={COMMENT}{folder.name}"
    yield f"--nodes={least}" if least == most else f"--nodes={least}-{most}"
    yield from _resources(spec)
    minutes = minutes_of(spec)
    yield f"--time={minutes}"
    if 60 * minutes >= 2 * (lead_s + SIGNAL_EARLY_S):
        yield f"--signal=B:USR1@{min(math.ceil(lead_s), 65535)}"
    yield "--no-requeue" if spec.restart_policy == "Never" else "--requeue"
    if least < most:
        yield "--no-kill"
    yield f"--output={quoted(_output(folder, array=options.array is not None))}"
    yield "--open-mode=append"
    yield "--chdir=/"  # exists everywhere, and holds no modules that Python would take for its own
    yield f"--export={'ALL' if inherit_env else 'NIL'}"
    for name, value in options.common().items():
        yield f"--{name}={quoted(value)}"
    for flag in options.sbatch:
        option, sign, argument = flag_of(flag)
        yield f"{option}{sign}{quoted(argument) if argument is not None else ''}"


def minutes_of(spec: TrainingJobSpec) -> int:
    """The time limit in minutes, rounded up."""
    return max(1, math.ceil(spec.max_runtime_hours * 60 - 1e-6))


def quoted(value: str) -> str:
    """A value such that sbatch reads it from a ``#SBATCH`` line as it is."""
    if re.fullmatch(r"[\w./:=,@%+-]+", value, re.ASCII):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _resources(spec: TrainingJobSpec) -> Iterator[str]:
    most = spec.num_nodes[1]
    gpus, kinds = spec.num_gpus_per_node, spec.resources.required_gpu_types or ()
    gres = options_of(spec).gres or ""
    if gpus and not any(re.match("(gres[:/])?gpu([:/]|$)", part) for part in gres.split(",")):
        yield f"--gpus-per-node={quoted(':'.join([*kinds, str(gpus)]))}"
    if spec.resources.cpu_cores is not None:
        yield f"--cpus-per-task={math.ceil(spec.resources.cpu_cores / most)}"
    if spec.resources.memory_gb:
        yield f"--mem={math.ceil(spec.resources.memory_gb * 1e9 / most / 2**20 - 1e-6)}M"


def _refuse_impossible(spec: TrainingJobSpec) -> None:
    if spec.image is not None or spec.volumes:
        raise ValueError(
            f"image={spec.image!r}, volumes={spec.volumes}: on Slurm a job runs in no container and mounts "
            "nothing; leave both out, or put the container's own command, such as apptainer exec IMAGE, "
            "before yours"
        )
    if len(kinds := spec.resources.required_gpu_types or ()) > 1:
        raise ValueError(
            f"required_gpu_types={list(kinds)}: Slurm takes one type; choose one, or set "
            "options.slurm.constraint, such as 'a100|h100', where the site has such features"
        )
    if spec.resources.node_selector:
        raise ValueError(
            "node_selector: nodes of Slurm have features, not labels; set options.slurm.constraint to the "
            "features that a node must have"
        )


def _one_line(name: str) -> str:
    """A name without line breaks and other control characters, and not too long."""
    line = re.sub(r"[\x00-\x1f\x7f]+", " ", name).strip()
    cut = line.encode("utf-8", "surrogateescape")[:LONGEST_NAME]
    return cut.decode("utf-8", "ignore" if len(cut) == LONGEST_NAME else "surrogateescape") or "job"


def _output(folder: Path, *, array: bool) -> str:
    """The path of Slurm's log, in which ``%`` begins a replacement and ``\\`` turns all of them off."""
    path = str(folder)
    if re.search(r"[\\\x00-\x1f\x7f]", path):
        raise ValueError(
            f"the job's folder {path!r} has a backslash or a control character, which Slurm takes in no path "
            "of a log: choose another --job-dir"
        )
    path = path.replace("%", "%%")
    return f"{path}-%a/logs/slurm-%A_%a.out" if array else f"{path}/logs/slurm-%j.out"
