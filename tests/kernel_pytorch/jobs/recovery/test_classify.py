from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from job_evidence import EVIDENCE

from kernel_pytorch.jobs.recovery.classify import Failure, classify, suspect
from kernel_pytorch.jobs.recovery.evidence import Beat, Evidence, RankError
from kernel_pytorch.jobs.recovery.messages import KINDS, TYPES

SILENT = Beat(phase="training", step=8, since_s=900, median_step_s=1)
LIVELY = Beat(phase="training", step=8, since_s=1, median_step_s=1)
BY_KIND: dict[str, dict[str, object]] = {
    "cancelled": {"cancelled": True},
    "no_space": {"errors": {0: RankError(text="[Errno 28] No space left on device", type="OSError")}},
    "oom": {"oom_kills": {"n1": 2}},
    "user": {"node_lines": ("sbatch: error: Batch job submission failed: Invalid qos specification",)},
    "timeout": {"slurm_state": "TIMEOUT"},
    "stopped": {"stop_requested": "preemption"},
    "gpu": {"log_lines": {1: ("CUDA error: uncorrectable ECC error encountered",)}},
    "first_node_lost": {"nodes_lost": ("n1",), "first_node": "n1"},
    "node_lost": {"slurm_reason": "NodeDown"},
    "hang": {"beats": {2: SILENT, 3: LIVELY}},
    "crash": {"log_lines": {5: ("ValueError: loss is nan",)}},
    "network": {"log_lines": {4: ("ConnectionResetError: [Errno 104] Connection reset by peer",)}},
}
"""One kind each, the causes first."""


def merged(*parts: dict[str, object]) -> Evidence:
    """All at once; errors, logs and beats are of different ranks."""
    values: dict[str, object] = {"exit_codes": {7: 1}}
    for name, value in (item for part in parts for item in part.items()):
        values[name] = {**values[name], **value} if isinstance(value, dict) and name in values else value  # type: ignore[dict-item]
    return Evidence(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BY_KIND)
def test_one_fact_decides(kind: str):
    failure = classify(merged(BY_KIND[kind]), attempt=3)
    assert (failure.kind, failure.type, failure.attempt) == (kind, TYPES[kind], 3)
    assert failure.evidence


@pytest.mark.parametrize(("cause", "effect"), list(itertools.combinations(BY_KIND, 2)), ids=lambda kind: kind)
def test_of_two_the_cause_is_chosen(cause: str, effect: str):
    assert classify(merged(BY_KIND[effect], BY_KIND[cause])).kind == cause


def test_the_tables_have_every_kind():
    assert list(BY_KIND) == [kind for kind in KINDS if kind not in ("unknown", "done")]


@pytest.mark.parametrize(
    ("evidence", "kind", "text"),
    [
        (Evidence(), "unknown", "nothing is known about how it ended"),
        (Evidence(agent_exit_code=1), "unknown", "torchrun returned 1"),
        (Evidence(slurm_state="FAILED"), "unknown", "Slurm's state FAILED"),
        (Evidence(exit_codes={0: 0, 1: 0}), "done", "all ranks returned 0"),
        (Evidence(agent_exit_code=0), "done", "all ranks returned 0"),
        (Evidence(slurm_state="COMPLETED"), "done", "all ranks returned 0"),
        (Evidence(exit_codes={0: 0}, left={0: None}), "done", "all ranks returned 0"),
        (Evidence(exit_codes={0: 0}, left={0: 7}), "stopped", "asked to stop, saved and left"),
        (
            Evidence(exit_codes={0: 0}, left={0: None}, stop_requested="time limit"),
            "stopped",
            "asked to stop (time limit), saved and left",
        ),
        (
            Evidence(exit_codes={0: 0, 1: -9}, left={0: 7}, stop_requested="time limit"),
            "stopped",
            "asked to stop (time limit), but not all ranks had saved",
        ),
        (Evidence(slurm_state="CANCELLED by 1000"), "cancelled", "Slurm: CANCELLED by 1000"),
        (Evidence(slurm_state="NODE_FAIL"), "node_lost", "Slurm: NODE_FAIL"),
        (Evidence(slurm_state="OUT_OF_MEMORY"), "oom", "Slurm: OUT_OF_MEMORY"),
        (Evidence(slurm_state="PREEMPTED"), "stopped", "Slurm: PREEMPTED"),
        (Evidence(exit_codes={0: 1}), "crash", "rank 0 returned 1"),
        (Evidence(exit_codes={0: -9}), "crash", "rank 0 was ended by SIGKILL"),
        (Evidence(exit_codes={0: 139}), "crash", "rank 0 was ended by SIGSEGV"),
        (Evidence(exit_codes={0: -40}), "crash", "rank 0 was ended by signal 40"),
        (Evidence(exit_codes={0: 255}), "crash", "rank 0 returned 255"),
        (Evidence(exit_codes={0: -15, 1: -11, 2: -15}), "crash", "rank 1 was ended by SIGSEGV"),
        (Evidence(exit_codes={0: -2, 1: -15}), "cancelled", "interrupted from the keyboard"),
        (Evidence(exit_codes={0: 127}), "user", "rank 0: the program cannot be started"),
        (Evidence(exit_codes={0: 2}), "user", "rank 0: bad usage"),
        (
            Evidence(exit_codes={0: 2}, errors={0: RankError(text="no text", type="CommandError")}),
            "user",
            "rank 0: CommandError: no text",
        ),
        (Evidence(exit_codes={0: 2}, beats={0: LIVELY}), "crash", "rank 0 returned 2"),
        (
            Evidence(exit_codes={0: -7}, disk_free={"/dev/shm": 4096}),
            "no_space",
            "rank 0 was ended by SIGBUS, 4096 bytes free in /dev/shm",
        ),
        (Evidence(exit_codes={0: -7}, disk_free={"/a": 1 << 30}), "crash", "rank 0 was ended by SIGBUS"),
        (Evidence(exit_codes={0: -9}, oom_kills={"n1": 0}), "crash", "rank 0 was ended by SIGKILL"),
        (
            Evidence(exit_codes={0: -9}, oom_kills={"n1": 1}),
            "oom",
            "the kernel killed a process on n1 for want of memory",
        ),
        (Evidence(nodes_lost=("n2",), first_node="n1"), "node_lost", "node n2 is lost"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_ends(evidence: Evidence, kind: str, text: str):
    failure = classify(evidence)
    assert (failure.kind, failure.text) == (kind, text)


def test_errors_that_a_job_recovered_from_do_not_count():
    lines = {0: ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "smaller batch")}
    assert classify(Evidence(exit_codes={0: 0}, log_lines=lines, oom_kills={"n1": 1})).kind == "done"
    assert classify(Evidence(exit_codes={0: 1}, log_lines=lines)).kind == "oom"


def test_a_record_says_more_than_the_log_of_the_rank():
    lines = {0: ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "smaller batch")}
    error = RankError(text="loss is nan", type="ValueError", step=812)
    failure = classify(Evidence(exit_codes={0: 1, 1: -15}, log_lines=lines, errors={0: error}))
    assert (failure.kind, failure.text) == (
        "crash",
        "rank 0: an exception was not caught: ValueError: loss is nan",
    )
    assert failure.step == 812


def test_a_traceback_tells_what_an_error_was_raised_from():
    trace = (
        "Traceback (most recent call last):\n"
        '    print("Disk quota exceeded")\n'
        "OSError: [Errno 28] No space left on device\n\n"
        "The above exception was the direct cause of the following exception:\n"
    )
    error = RankError(text="cannot save", type="CheckpointError", traceback=trace, step=9)
    failure = classify(Evidence(exit_codes={0: 1}, errors={0: error}))
    assert failure.kind == "no_space"
    assert failure.evidence == ("record of rank 0: OSError: [Errno 28] No space left on device",)


def test_an_error_without_a_name_is_a_crash():
    failure = classify(Evidence(errors={3: RankError(text="odd", step=None)}))
    assert (failure.kind, failure.rank, failure.text, failure.step) == ("crash", 3, "rank 3: odd", None)


def test_a_missing_file_is_the_users_mistake_only_before_the_first_step():
    def kind(step: int | None) -> str:
        text = "[Errno 2] No such file or directory: 'books'"
        return classify(Evidence(errors={0: RankError(text=text, type="FileNotFoundError", step=step)})).kind

    assert (kind(None), kind(0)) == ("user", "crash")


def test_ranks_that_broke_a_connection_are_not_the_cause():
    gone = "RuntimeError: [/gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:38531"
    failure = classify(
        Evidence(exit_codes={0: 1, 1: 1}, log_lines={0: (gone,), 1: ("ZeroDivisionError: division by zero",)})
    )
    assert (failure.kind, failure.rank) == ("crash", 1)


def test_nodes_of_a_failure():
    lost = classify(Evidence(nodes_lost=("n3", "n2"), first_node="n1"))
    assert lost.nodes == ("n3", "n2")
    faulty = classify(
        Evidence(
            exit_codes={9: 1},
            log_lines={9: ("RuntimeError: CUDA error: uncorrectable ECC error encountered",)},
            node_of={9: "n2"},
        )
    )
    assert faulty.nodes == ("n2",)


def test_a_hang_names_rank_line_and_limit():
    stuck = Beat(phase="training", step=8, since_s=75.4, median_step_s=0.5, where="train.py:31 in load")
    failure = classify(Evidence(beats={0: LIVELY, 1: stuck}))
    limit = "limit 60 s while training: 10 x 0.5 s, the median step, at least 60 s"
    assert failure.text == f"rank 1 hangs at train.py:31 in load: no beat for 75 s, {limit}"
    assert failure.evidence == (f"rank 1: no beat for 75 s, {limit}",)
    assert (failure.rank, failure.step) == (1, 8)


def test_the_rank_that_hangs_may_have_beaten_last():
    waits = Beat(phase="training", step=8, since_s=60.1, median_step_s=1, where="loop.py:9 in all_reduce")
    stopped = replace(waits, since_s=59.9, process_state="T", where="loop.py:8 in load")
    assert classify(Evidence(beats={0: waits, 1: waits, 2: stopped})).rank == 2
    assert classify(Evidence(beats={0: waits, 1: replace(stopped, since_s=1)})).rank == 0
    assert classify(Evidence(beats={2: stopped})).kind != "hang"


def test_a_shorter_limit_for_a_hang():
    silent = Beat(phase="training", step=8, since_s=5, median_step_s=0.1, min_hang_s=4)
    assert classify(Evidence(beats={0: silent})).kind == "hang"
    assert classify(Evidence(beats={0: replace(silent, min_hang_s=None)})).kind != "hang"


@pytest.mark.parametrize(("code", "kind"), [(-int(signal.SIGABRT), "hang"), (0, "crash")])
def test_a_rank_that_ended_well_does_not_hang(code: int, kind: str):
    assert classify(Evidence(exit_codes={0: 1, 1: code}, beats={1: SILENT})).kind == kind


def test_a_rank_that_has_not_ended_is_not_done():
    assert classify(Evidence(exit_codes={0: 0}, beats={0: LIVELY, 1: SILENT})).kind == "hang"


@pytest.mark.parametrize(
    ("beats", "rank"),
    [
        ({0: {}, 1: {"process_state": "T"}, 2: {"step": 1}}, 1),
        ({0: {"where": "all_reduce"}, 1: {"where": "load"}, 2: {"where": "all_reduce", "step": 1}}, 1),
        ({0: {"step": 5}, 1: {"step": 5}, 2: {"step": 4}}, 2),
        ({0: {"step": 5}, 1: {"step": None}}, 1),
        ({0: {"since_s": 70.0}, 1: {"since_s": 90.0}}, 1),
        ({3: {}, 2: {}}, 2),
    ],
    ids=["stopped", "another line", "behind", "before its first step", "silent for longest", "alike"],
)
def test_suspect(beats: dict[int, dict[str, object]], rank: int):
    fields: dict[str, object] = {"phase": "training", "step": 5, "since_s": 80.0}
    assert suspect({each: Beat(**{**fields, **own}) for each, own in beats.items()}) == rank  # type: ignore[arg-type]


@given(EVIDENCE)
def test_any_evidence_has_a_kind_with_facts(evidence: Evidence):
    failure = classify(evidence)
    assert failure.kind in KINDS
    assert failure.type == TYPES[failure.kind]
    assert failure.evidence
    assert not any("\n" in text for text in (failure.text, *failure.evidence))
    assert classify(Evidence.from_dict(json.loads(json.dumps(evidence.to_dict())))) == failure
    assert Failure.from_dict(json.loads(json.dumps(failure.to_dict()))) == failure


def test_only_the_standard_library_is_needed():
    source = Path(classify.__code__.co_filename).parents[3]
    modules = ", ".join(f"kernel_pytorch.jobs.recovery.{name}" for name in ("classify", "plan"))
    command = [sys.executable, "-S", "-W", "error", "-c", f"import {modules}"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(source)})


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"kind must be one of cancelled, .*, got 'boom'"):
        Failure(kind="boom", text="")
