"""Whether a cluster can ever run a job, and what its settings mean for it. Pure functions."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..spec import TrainingJobSpec
from .nodes import Partition, seconds_of
from .options import SlurmOptions
from .script import minutes_of


def chosen(options: SlurmOptions, partitions: Mapping[str, Partition]) -> list[Partition]:
    """The partitions that a job may run in: those asked for, else the user's or the cluster's default.

    Raises:
        ValueError: one does not exist, or none is asked for and there is no default.
    """
    asked = options.partition or os.environ.get("SBATCH_PARTITION")
    existing = f"the cluster has {', '.join(partitions) or 'none'}"
    if asked is None:
        found = [partition for partition in partitions.values() if partition.is_default]
        if not found:
            raise ValueError(f"partition must be given, as the cluster has no default: {existing}")
        return found
    for name in asked.split(","):
        if name not in partitions:
            raise ValueError(f"unknown partition {name!r}: {existing}")
    return [partitions[name] for name in asked.split(",")]


def refuse_misfit(spec: TrainingJobSpec, partitions: list[Partition]) -> None:
    """Raise ValueError if none of the partitions can ever run the job; with the reason and the way out."""
    reasons = [_misfit(spec, partition) for partition in partitions]
    if all(reasons):
        raise ValueError("; ".join(reason for reason in reasons if reason))


def _misfit(spec: TrainingJobSpec, partition: Partition) -> str | None:
    name, (least, _) = partition.name, spec.num_nodes
    gpus = spec.num_gpus_per_node or 0
    if least > len(partition.nodes):
        return (
            f"nodes={least} are more than the {len(partition.nodes)} of partition {name}: ask for fewer, or "
            "choose another partition"
        )
    if partition.max_nodes is not None and least > partition.max_nodes:
        return (
            f"nodes={least} are more than the {partition.max_nodes} that partition {name} gives to one job: "
            "ask for fewer, or choose another partition"
        )
    having = sum((node.total_gpus or 0) >= gpus for node in partition.nodes)
    if having < least:
        most = max((node.total_gpus or 0 for node in partition.nodes), default=0)
        if having == 0:
            return (
                f"gpus_per_node={gpus} are more than any node of partition {name} has ({most}): spread the "
                "job over more nodes, or choose another partition"
            )
        return (
            f"nodes={least} with gpus_per_node={gpus}: partition {name} has {having} such node"
            f"{'s' * (having > 1)}: ask for fewer nodes or GPUs, or choose another partition"
        )
    limit_s = partition.max_time_s
    if limit_s is not None and 60 * minutes_of(spec) > limit_s:
        return (
            f"the time limit of {minutes_of(spec)} minutes is more than partition {name} allows: at most "
            f"{limit_s / 60:g} minutes. It is that of one attempt; a job goes on in the next one"
        )
    return None


def unavailable(spec: TrainingJobSpec, partitions: list[Partition]) -> str | None:
    """A note if the job must wait for nodes that are down or drained."""
    least = spec.num_nodes[0]
    gpus = spec.num_gpus_per_node or 0
    for partition in partitions:
        able = [node for node in partition.nodes if (node.total_gpus or 0) >= gpus]
        if sum(not node.taints for node in able) >= least:
            return None
    out = sorted({node.node_id for partition in partitions for node in partition.nodes if node.taints})
    return f"the job waits until nodes are back that get no jobs now: {', '.join(out)}"


def settings_notes(
    spec: TrainingJobSpec, config: Mapping[str, str], partitions: list[Partition], every_s: float
) -> list[str]:
    """What the site's settings mean for the job.

    Args:
        spec: of the job.
        config: as of :func:`.commands.config`.
        partitions: those that the job may run in.
        every_s: seconds from one checkpoint to the next, at most.
    """
    notes = [_preemption_note(seconds_of(config.get("KillWait", "")) or 0.0, partitions, every_s)]
    if config.get("JobRequeue") == "0":
        notes.append(
            "the site requeues no jobs by default (JobRequeue=0); this job asks to be requeued, which an "
            "administrator may have to allow"
        )
    if spec.resources.cpu_cores is None:
        notes.append(
            "no CPU cores are asked for: unless the site has another default, Slurm gives one on each node"
        )
    if spec.resources.gpu_memory_gb is not None:
        notes.append("Slurm chooses no GPUs by their memory: choose a type or a constraint")
    if spec.priority:
        notes.append(f"priority={spec.priority} is not used: Slurm ranks jobs by qos and partition")
    if spec.enable_auto_scaling:
        notes.append("enable_auto_scaling is not used: Slurm keeps the number of nodes within nodes=min:max")
    return notes


def _preemption_note(kill_wait_s: float, partitions: list[Partition], every_s: float) -> str:
    """What a save may take at a preemption, in the partition that leaves the least time."""
    graces = [p.grace_time_s or 0.0 if p.is_preempting else 0.0 for p in partitions]
    grace_s = min(graces, default=0.0)
    source = f"KillWait={kill_wait_s:g} s"
    if grace_s > kill_wait_s:
        source = f"GraceTime={grace_s:g} s of partition {partitions[graces.index(grace_s)].name}"
    return (
        f"at a preemption Slurm leaves {source} to save: a save that takes longer loses the steps since the "
        f"last checkpoint, those of {every_s:g} s at most"
    )
