"""Failures as callers describe them, in words of their own."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_pytorch.jobs.fault_info import evidence_of
from kernel_pytorch.jobs.faults import Faults, node_state
from kernel_pytorch.jobs.spec import FailureType
from kernel_pytorch.watch.health import HealthState

OOM_LINE = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
RESET = "ConnectionResetError: [Errno 104] Connection reset by peer"
OOM, GPU, NODE = FailureType.OOM_FAILURE, FailureType.GPU_FAILURE, FailureType.NODE_FAILURE
SOFTWARE, NETWORK, TIMEOUT = (
    FailureType.SOFTWARE_FAILURE,
    FailureType.NETWORK_FAILURE,
    FailureType.TIMEOUT_FAILURE,
)


@pytest.mark.parametrize(
    ("info", "expected", "evidence"),
    [
        ({"exit_code": 1}, SOFTWARE, "rank 0 returned 1"),
        ({"exit_code": 137, "rank": 3}, SOFTWARE, "rank 3 was ended by SIGKILL"),
        ({"returncode": -11}, SOFTWARE, "rank 0 was ended by SIGSEGV"),
        ({"exit_code": "0:9"}, SOFTWARE, "rank 0 was ended by SIGKILL"),
        ({"exit_code": "1:0"}, SOFTWARE, "rank 0 returned 1"),
        ({"exit_codes": {"0": 0, "1": 3}}, SOFTWARE, "rank 1 returned 3"),
        ({"exit_codes": [0, None, 4]}, SOFTWARE, "rank 2 returned 4"),
        ({"signal": "SIGBUS"}, SOFTWARE, "rank 0 was ended by SIGBUS"),
        ({"signal": 9, "oom_kill": 1, "node": "n2"}, OOM, "cgroup on n2: oom_kill +1"),
        ({"exit_code": 137, "oom_killed": True}, OOM, "cgroup on the node: oom_kill +1"),
        ({"exit_code": -9, "oom_kills": {"n1": 2}}, OOM, "cgroup on n1: oom_kill +2"),
        ({"message": OOM_LINE}, OOM, f"log of rank 0: {OOM_LINE}"),
        ({"error_message": f"Traceback\n{OOM_LINE}", "exit_code": 0}, OOM, f"log of rank 0: {OOM_LINE}"),
        ({"error": OSError(28, "No space left on device")}, SOFTWARE, "[Errno 28]"),
        ({"logs": ["step 7", RESET], "exit_code": 1}, NETWORK, f"log of rank 0: {RESET}"),
        ({"stderr": f"step 7\n{RESET}", "exit_code": 1}, NETWORK, f"log of rank 0: {RESET}"),
        ({"log_lines": {"2": [RESET]}, "exit_codes": {2: 1}}, NETWORK, f"log of rank 2: {RESET}"),
        ({"dmesg": "NVRM: Xid (PCI:0000:3b:00): 79, pid=1", "exit_code": 1}, GPU, "node's log: NVRM"),
        ({"slurm_state": "NODE_FAIL"}, NODE, "Slurm's state NODE_FAIL"),
        ({"native_state": "TIMEOUT"}, TIMEOUT, "Slurm's state TIMEOUT"),
        ({"state": "out_of_memory"}, OOM, "Slurm's state OUT_OF_MEMORY"),
        ({"reason": "NodeDown"}, NODE, "Slurm's reason NodeDown"),
        ({"node_status": {"n1": "IDLE", "n2": "DOWN*"}}, NODE, "node n2 does not answer"),
        ({"nodes": {"n1": "Ready", "n2": "NotReady"}}, NODE, "node n2 does not answer"),
        ({"failed_nodes": ["n1"], "first_node": "n1"}, NODE, "first node n1 does not answer"),
        ({"message": "CUDA out of memory", "exit_code": 1}, OOM, "message: CUDA out of memory"),
        ({"message": "RuntimeError: out of memory."}, OOM, "message: RuntimeError: out of memory."),
        ({"message": "Network connection lost"}, NETWORK, "message: Network connection lost"),
        ({"message": "node n3 failed"}, NODE, "message: node n3 failed"),
        ({"message": "GPU 3 error"}, GPU, "message: GPU 3 error"),
        ({"message": "timeout"}, TIMEOUT, "message: timeout"),
    ],
    ids=str,
)
def test_words_of_callers(info: dict[str, Any], expected: FailureType, evidence: str):
    faults = Faults(30)
    assert faults.detect("a", info) is expected
    assert any(evidence in item for item in faults.detected["a"].evidence), faults.detected["a"]


@pytest.mark.parametrize(
    "message",
    [
        "A shadow loomed over the city",
        "nodejs failed to start the party",
        "He ran out of memory of the events of that day",
        "the timeout of the game was short",
        "connections are lost and found",
        "the nodes failed the audition",
        "room for doubt",
        "",
    ],
)
def test_sentences_that_only_look_alike(message: str):
    for info in ({"message": message}, {"error_message": message, "exit_code": 0}, {"logs": [message]}):
        assert Faults(30).detect("a", info) is None
    assert Faults(30).detect("a", {"message": message, "exit_code": 1}) is SOFTWARE


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"exit_code": None, "timestamp": 3},
        {"exit_code": 0},
        {"exit_code": 0, "logs": OOM_LINE},
        {"cancelled": True, "exit_code": 1},
        {"slurm_state": "CANCELLED by 1000"},
        {"slurm_state": "PREEMPTED"},
        {"node_status": {"n1": "IDLE", "n2": "MIXED", "n3": "downstream"}},
        {"stop_requested": "time limit", "left": {0: 7}, "exit_code": 0},
    ],
    ids=str,
)
def test_what_is_no_failure(info: dict[str, Any]):
    assert Faults(30).detect("a", info) is None


def test_the_step_is_kept():
    faults = Faults(30)
    faults.detect("a", {"exit_code": 1, "step": 40, "attempt": 2})
    assert (faults.detected["a"].step, faults.detected["a"].attempt) == (40, 2)


@pytest.mark.parametrize(
    ("info", "kind", "match"),
    [
        ([], TypeError, "info must be a mapping, got list"),
        ({"exit_code": "many"}, ValueError, "exit_code must be a whole number or Slurm's code:signal"),
        ({"exit_code": True}, ValueError, "exit_code must be a whole number"),
        ({"signal": "SIGNOTHING"}, ValueError, "signal must be a number or a name such as SIGKILL"),
        ({"logs": 3}, TypeError, "logs must be a text or a list, got int"),
        ({"node_failures": 2}, TypeError, "node_failures must be a text or a list, got int"),
    ],
)
def test_mistakes(info: Any, kind: type[Exception], match: str):
    with pytest.raises(kind, match=match):
        evidence_of(info)


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (HealthState.DEGRADED, HealthState.DEGRADED),
        ("failed", HealthState.FAILED),
        (None, None),
        (True, HealthState.HEALTHY),
        (0, HealthState.FAILED),
        (1.0, HealthState.HEALTHY),
        (0.7, HealthState.DEGRADED),
        ({"status": "healthy", "temperature": 60}, HealthState.HEALTHY),
        ({"temperature": 60}, None),
    ],
    ids=str,
)
def test_the_health_of_a_node(health: object, state: HealthState | None):
    assert node_state(health) is state


@pytest.mark.parametrize("health", ["fine", 2, -0.1, float("nan")])
def test_a_health_that_is_none(health: object):
    with pytest.raises(ValueError, match="health must be healthy, degraded, failed, or from 0 to 1, got"):
        node_state(health)
