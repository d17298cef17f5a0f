"""Nodes and partitions of a cluster, and what a job can have of them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..facts import ClusterNode
from . import commands

_MIB_IN_GB = 2**20 / 1e9
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")
_FINE = re.compile(
    "(IDLE|MIXED|ALLOCATED|COMPLETING|PLANNED|CLOUD|POWER_SAVING|POWERED_DOWN|DYNAMIC_\\w+)[*+~#%$@^!-]*"
)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition. Times in seconds; None: no limit, or not known."""

    name: str
    is_default: bool
    nodes: tuple[ClusterNode, ...]
    max_nodes: int | None
    """Of one job."""
    max_time_s: float | None
    grace_time_s: float | None
    """Between the first signal of a preemption and the end."""
    is_preempting: bool
    state: str


def nodes() -> list[ClusterNode]:
    """All nodes.

    Raises:
        ClusterUnavailableError, SlurmError: they could not be asked for.
    """
    now = time.time()
    # -a: also those of hidden partitions. -d: only there are the GPUs in use, where the site does not
    # account for GPUs.
    return [node_of(facts, now) for facts in commands.records("node", "-a", "-d")]


def node_of(facts: Mapping[str, str], now: float) -> ClusterNode:
    """A node, of the words of ``scontrol show node -d``."""
    state = facts.get("State", "")
    words = [word for word in state.split("+") if word]
    taints = [word.lower() for word in words if not _FINE.fullmatch(word)]
    reason = facts.get("Reason")
    answers = "*" not in state and not any(word.startswith(("DOWN", "UNKNOWN", "NOT_RESP")) for word in words)
    total_gpus = _gpus(facts.get("Gres"))
    features = facts.get("ActiveFeatures", "(null)")
    total_memory, used_memory = _number(facts, "RealMemory"), _number(facts, "AllocMem")
    total_cores, used_cores = _number(facts, "CPUTot"), _number(facts, "CPUAlloc")
    used_gpus = _gpus(facts.get("GresUsed")) if "GresUsed" in facts else None if total_gpus else 0

    def available(total: float | None, used: float | None) -> Any:
        if taints:
            return 0
        return None if total is None or used is None else max(0, total - used)

    free_memory = available(total_memory, used_memory)
    return ClusterNode(
        node_id=facts["NodeName"],
        hostname=facts.get("NodeHostName", facts["NodeName"]),
        total_gpus=total_gpus,
        available_gpus=available(total_gpus, used_gpus),
        total_memory_gb=None if total_memory is None else total_memory * _MIB_IN_GB,
        available_memory_gb=None if free_memory is None else free_memory * _MIB_IN_GB,
        total_cpu_cores=total_cores,
        available_cpu_cores=available(total_cores, used_cores),
        labels={
            "partitions": facts.get("Partitions", ""),
            **({} if features == "(null)" else dict.fromkeys(features.split(","), "")),
        },
        taints=[f"{word}: {reason}" if reason else word for word in taints],
        last_seen=now if answers else None,
    )


def partitions(of_nodes: Sequence[ClusterNode]) -> dict[str, Partition]:
    """All partitions, by name.

    Args:
        of_nodes: all nodes.

    Raises:
        ClusterUnavailableError, SlurmError: they could not be asked for.
    """
    found = {}
    for facts in commands.records("partition", "-a"):  # sbatch takes hidden ones too
        name = facts["PartitionName"]
        found[name] = Partition(
            name=name,
            is_default=facts.get("Default") == "YES",
            nodes=tuple(node for node in of_nodes if name in node.labels["partitions"].split(",")),
            max_nodes=_number(facts, "MaxNodes"),
            max_time_s=seconds_of(facts.get("MaxTime", "")),
            grace_time_s=_number(facts, "GraceTime"),
            is_preempting=facts.get("PreemptMode", "OFF") != "OFF",
            state=facts.get("State", ""),
        )
    return found


def cluster_info() -> dict[str, Any]:
    """``nodes`` (:class:`ClusterNode`), ``partitions`` (:class:`Partition`) and ``kill_wait_s``.

    Raises:
        ClusterUnavailableError, SlurmError: the cluster could not be asked.
    """
    found = nodes()
    return {
        "nodes": found,
        "partitions": list(partitions(found).values()),
        "kill_wait_s": seconds_of(commands.config().get("KillWait", "")),
    }


def seconds_of(text: str) -> float | None:
    """Seconds of a time such as ``30 sec``, ``1-12:00:00`` or ``60:00``; None: there is no limit."""
    if found := re.fullmatch(r"(\d+)(?: sec)?", text):
        return float(found[1])
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _gpus(gres: str | None) -> int | None:
    """Of all types, in ``gpu:a100:4(S:0-1),gpu:t4:2``."""
    if gres is None:
        return None
    return sum(int(count) for count in _GPUS.findall(re.sub(r"\([^)]*\)", "", gres)))


def _number(facts: Mapping[str, str], name: str) -> int | None:
    value = facts.get(name, "")
    return int(value) if value.isdecimal() else None
