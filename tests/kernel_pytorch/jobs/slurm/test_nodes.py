"""Nodes of a cluster from Slurm's text, and whether a job fits on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kernel_pytorch.jobs.facts import ClusterNode
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.slurm.commands import facts
from kernel_pytorch.jobs.slurm.fit import chosen, refuse_misfit, settings_notes, unavailable
from kernel_pytorch.jobs.slurm.nodes import Partition, node_of, seconds_of
from kernel_pytorch.jobs.slurm.options import options_of

LINE = (
    "NodeName=gpu1 Arch=x86_64 CoresPerSocket=32 CPUAlloc=48 CPUEfctv=64 CPUTot=64 CPULoad=9.5 "
    "AvailableFeatures=ib,a100 ActiveFeatures=ib,a100 Gres=gpu:a100:4(S:0-1),gpu:t4:2 GresDrain=N/A "
    "GresUsed=gpu:a100:3(IDX:0-2),gpu:t4:0(IDX:N/A) NodeAddr=10.0.0.1 NodeHostName=gpu1.site "
    "OS=Linux 6.1 #1 SMP RealMemory=512000 AllocMem=128000 FreeMem=9 State=MIXED ThreadsPerCore=1 "
    "Partitions=main,big BootTime=1700000000 "
)


def test_a_node():
    node = node_of(facts(LINE), 9.0)
    assert (node.node_id, node.hostname) == ("gpu1", "gpu1.site")
    assert (node.total_gpus, node.available_gpus) == (6, 3)
    assert (node.total_cpu_cores, node.available_cpu_cores) == (64, 16)
    assert node.total_memory_gb == pytest.approx(536.870912)
    assert node.available_memory_gb == pytest.approx(402.653184)
    assert node.labels == {"partitions": "main,big", "ib": "", "a100": ""}
    assert (node.taints, node.last_seen) == ([], 9.0)


@pytest.mark.parametrize(
    ("state", "taints", "seen"),
    [
        ("IDLE", [], True),
        ("ALLOCATED", [], True),
        ("IDLE+CLOUD+POWERED_DOWN", [], True),
        ("MIXED+DRAIN", ["drain: bad fan [root@now]"], True),
        ("DOWN*+DRAIN", ["down*: bad fan [root@now]", "drain: bad fan [root@now]"], False),
        ("IDLE+NOT_RESPONDING", ["not_responding: bad fan [root@now]"], False),
        (
            "IDLE+MAINTENANCE+RESERVED",
            [f"{w}: bad fan [root@now]" for w in ("maintenance", "reserved")],
            True,
        ),
        ("UNKNOWN", ["unknown: bad fan [root@now]"], False),
    ],
)
def test_nodes_that_get_no_jobs(state: str, taints: list[str], seen: bool):
    node = node_of(facts(f"{LINE.replace('MIXED', state)} Reason=bad fan [root@now]"), 9.0)
    assert (node.taints, node.last_seen) == (taints, 9.0 if seen else None)
    assert node.available_gpus == (0 if taints else 3)


def test_what_is_not_told_is_none():
    node = node_of({"NodeName": "n1", "State": "IDLE", "Gres": "gpu:2"}, 9.0)
    assert (node.total_gpus, node.available_gpus, node.total_memory_gb) == (2, None, None)
    assert node_of({"NodeName": "n1", "State": "IDLE", "Gres": "(null)"}, 9.0).available_gpus == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30 sec", 30),
        ("0", 0),
        ("60:00", 3600),
        ("01:00:00", 3600),
        ("2-12:00:00", 216000),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_times(text: str, seconds: float | None):
    assert seconds_of(text) == seconds


def partition(name: str = "main", gpus: tuple[int, ...] = (4, 4, 8), **fields: Any) -> Partition:
    nodes = [
        ClusterNode(node_id=f"{name}{i}", hostname="h", total_gpus=count) for i, count in enumerate(gpus)
    ]
    given = {"max_nodes": None, "max_time_s": None, "grace_time_s": 0.0, "is_preempting": False, **fields}
    return Partition(name=name, is_default=name == "main", nodes=tuple(nodes), state="UP", **given)


def spec(**fields: Any) -> Any:
    return spec_of({"name": "x", "command": ["x"], **fields})


@pytest.mark.parametrize(
    ("fields", "more", "told"),
    [
        ({"nodes": "4:9"}, {}, "nodes=4 are more than the 3 of partition main"),
        ({"nodes": 3}, {"max_nodes": 2}, "nodes=3 are more than the 2 that partition main gives to one job"),
        ({"gpus_per_node": 9}, {}, r"more than any node of partition main has \(8\)"),
        ({"nodes": 2, "gpus_per_node": 8}, {}, "partition main has 1 such node: ask for fewer"),
        (
            {"time": "61m"},
            {"max_time_s": 3600.0},
            "61 minutes is more than partition main allows: at most 60",
        ),
    ],
)
def test_misfits(fields: dict[str, Any], more: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        refuse_misfit(spec(**fields), [partition(**more)])
    refuse_misfit(spec(**fields), [partition(**more), partition("big", (9,) * 9)])


def test_what_fits():
    refuse_misfit(spec(nodes="2:9", gpus_per_node=4, time="60m"), [partition(max_nodes=2, max_time_s=3600.0)])


def test_chosen_partitions(monkeypatch: pytest.MonkeyPatch):
    there = {name: partition(name) for name in ("main", "big")}

    def names(**slurm: str) -> list[str]:
        return [one.name for one in chosen(options_of(spec(options={"slurm": slurm})), there)]

    assert (names(), names(partition="big,main")) == (["main"], ["big", "main"])
    monkeypatch.setenv("SBATCH_PARTITION", "big")
    assert (names(), names(partition="main")) == (["big"], ["main"])
    with pytest.raises(ValueError, match="unknown partition 'bug': the cluster has main, big"):
        names(partition="main,bug")
    monkeypatch.delenv("SBATCH_PARTITION")
    del there["main"]
    with pytest.raises(ValueError, match="partition must be given, as the cluster has no default"):
        names()


def test_nodes_to_wait_for():
    whole = partition()
    broken = replace(whole, nodes=(*whole.nodes[:2], replace(whole.nodes[2], taints=["down"])))
    assert unavailable(spec(nodes=2), [broken]) is None
    assert unavailable(spec(gpus_per_node=8), [broken]) == (
        "the job waits until nodes are back that get no jobs now: main2"
    )
    assert unavailable(spec(gpus_per_node=8), [broken, whole]) is None


def test_notes():
    quiet = spec(resources={"cpu_cores": 1})
    fine = {"KillWait": "30 sec", "JobRequeue": "1"}
    assert settings_notes(quiet, fine, [partition()], 600.0) == [
        "at a preemption Slurm leaves KillWait=30 s to save: a save that takes longer loses the steps since "
        "the last checkpoint, those of 600 s at most"
    ]
    preempting = partition(is_preempting=True, grace_time_s=60.0)
    for where, source in [
        ([preempting], "GraceTime=60 s of partition main"),
        ([partition(grace_time_s=60.0)], "KillWait=30 s"),
        ([preempting, partition("big")], "KillWait=30 s"),
        ([partition(is_preempting=True)], "KillWait=30 s"),
    ]:
        (note,) = settings_notes(quiet, fine, where, 600.0)
        assert note.startswith(f"at a preemption Slurm leaves {source} to save: ")
    _, note = settings_notes(quiet, {**fine, "JobRequeue": "0"}, [partition()], 600.0)
    assert "JobRequeue=0" in note
    _, *told = settings_notes(
        spec(priority=3, resources={"gpu_memory_gb": 80}, enable_auto_scaling=True),
        fine,
        [partition()],
        600.0,
    )
    assert [note.partition(":")[0] for note in told] == [
        "no CPU cores are asked for",
        "Slurm chooses no GPUs by their memory",
        "priority=3 is not used",
        "enable_auto_scaling is not used",
    ]
