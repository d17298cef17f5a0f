"""The first node's decisions: reports in, orders out, events in the job's folder. No processes."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node.head import CLOSING_S, GPU_S, SETTLE_S, STACKS_S, Contract, Head
from kernel_pytorch.jobs.node.history import requeues_by_faults
from kernel_pytorch.jobs.recovery.evidence import Beat, Evidence, RankError
from kernel_pytorch.jobs.recovery.timing import ASSUMED_LEAD_S

NAMES = ("n1", "n2")
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4242"
FULL = "[Errno 28] No space left on device"
CONTRACT = Contract(min_nodes=2, max_retries=3, max_requeues=20)
ANY_SIZE = Contract(min_nodes=1, max_retries=3, max_requeues=20)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path, {"name": "books"})


def begun(folder: JobFolder, contract: Contract = CONTRACT, **options) -> Head:
    attempt = folder.claim_attempt({"nodes": list(NAMES), "native": "1"})
    return Head(folder, attempt, NAMES, [0, 1], contract, **options)


def crash(step: int | None = 7, rank: int = 1) -> dict:
    beats = {rank: Beat(phase="starting" if step is None else "training", step=step)}
    return failed(Evidence(exit_codes={rank: -9}, beats=beats))


def faulty_gpu(index: int = 1) -> dict:
    return failed(
        Evidence(exit_codes={index: 1}, log_lines={index: (ECC,)}, node_of={index: f"n{index + 1}"})
    )


def failed(evidence: Evidence) -> dict:
    return {"kind": "failed", "evidence": evidence.to_dict()}


def ended(code: int, **evidence) -> dict:
    return {"kind": "ended", "code": code, "evidence": Evidence(agent_exit_code=code, **evidence).to_dict()}


def kinds(folder: JobFolder) -> list[str]:
    return [event["kind"] for event in folder.events()]


def test_all_ranks_are_done(folder):
    head = begun(folder)
    head.take(0, ended(0), 1.0)
    assert head.orders(1.0, 0.0) == []
    head.take(1, ended(0), 2.0)
    (order,) = head.orders(2.0, 0.0)
    assert (order["kind"], order["code"]) == ("end", 0)
    assert folder.ended()["state"] == "completed"


def test_asked_to_stop_all_leave_and_the_job_is_requeued(folder):
    head = begun(folder)
    head.take(1, {"kind": "asked", "why": "SIGUSR1"}, 1.0)
    assert [order["kind"] for order in head.orders(1.0, 0.0)] == ["stop"]
    head.take(0, {"kind": "asked", "why": "SIGTERM"}, 1.1)
    assert head.orders(1.1, 0.0) == []
    head.take(0, ended(0, left={0: 5}), 2.0)
    head.take(1, ended(0, left={1: 5}), 2.0)
    (order,) = head.orders(2.0, 0.0)
    assert (order["code"], order["exclude"]) == (75, [])
    assert folder.ended() is None
    requeue = folder.events()[-1]
    assert (requeue["kind"], requeue["because"], requeue["failure"]["step"]) == ("requeue", "asked", 5)


@pytest.mark.parametrize(("left", "lost"), [({0: 5, 1: 5}, 0), ({}, 3)])
def test_steps_that_a_stop_loses_are_told(folder, left, lost):
    """None where all ranks left in good order, whether they told of the save itself or not."""
    head = begun(folder)
    folder.write_record(head.attempt, 0, {"saved": [{"step": 2, "seconds": 0.1}], "restart": 0})
    head.take(0, {"kind": "asked", "why": "SIGTERM"}, 1.0)
    head.orders(1.0, 0.0)
    beats = {0: Beat(phase="training", step=5), 1: Beat(phase="training", step=5)}
    for rank, step in left.items():
        folder.write_record(head.attempt, rank, {"left": step, "restart": 0})
    code = 0 if left else 1
    head.take(0, ended(code, left=left, beats=beats), 2.0)
    head.take(1, ended(code), 2.0)
    assert head.orders(2.0, 0.0)[0]["code"] == 75
    assert folder.events()[-1]["steps_lost"] == lost


def test_a_crash_is_judged_when_its_cause_has_had_time_to_show(folder):
    head = begun(folder)
    broken = {0: RankError(text=GLOO, type="RuntimeError", step=7)}
    head.take(0, failed(Evidence(errors=broken)), 1.0)
    assert head.orders(1.0, 0.0) == []
    head.take(1, crash(), 1.0 + SETTLE_S / 2)
    assert head.orders(1.0 + SETTLE_S / 2, 0.0) == []
    assert head.orders(1.0 + SETTLE_S, 0.0) == [{"kind": "allow_restart"}]
    failure, restart = folder.events()
    assert (failure["failure"]["kind"], failure["failure"]["rank"]) == ("crash", 1)
    assert restart["kind"] == "restart"
    assert "restart 1 of 3" in restart["text"]


def test_a_node_that_still_ends_its_ranks_is_heard_first(folder):
    """Else what they leave on others would be judged, and counted, as a failure of its own."""
    head = begun(folder)
    head.take(1, {"kind": "closing"}, 0.9)
    head.take(0, failed(Evidence(errors={0: RankError(text=GLOO, type="RuntimeError", step=7)})), 1.0)
    assert head.orders(1.0 + 2 * SETTLE_S, 0.0) == []
    head.take(1, crash(), 4.0)
    assert head.orders(4.0, 0.0) == [{"kind": "allow_restart"}]
    assert kinds(folder) == ["failure", "restart"]
    assert folder.events()[0]["failure"]["kind"] == "crash"


@pytest.mark.parametrize("then", ["began", "lost", "patience"])
def test_a_node_that_ends_its_ranks_is_not_waited_for_for_ever(folder, then):
    head = begun(folder, ANY_SIZE)
    head.take(1, {"kind": "closing"}, 0.9)
    head.take(0, crash(rank=0), 1.0)
    now = 1.0 + SETTLE_S
    assert head.orders(now, 0.0) == []
    if then == "began":
        head.take(1, {"kind": "began"}, now)
    elif then == "lost":
        head.lose(1, "it was silent for 5 s", now)
    else:
        now += CLOSING_S
    restart = {"kind": "restart", "nodes": 1, "without": []}
    assert head.orders(now, 0.0) == [restart if then == "lost" else {"kind": "allow_restart"}]


def test_where_a_node_had_done_its_part_the_job_is_requeued(folder):
    head = begun(folder)
    head.take(1, crash(), 1.0)
    assert head.orders(1.0 + SETTLE_S, 0.0) == [{"kind": "allow_restart"}]
    head.take(0, {"kind": "stalled"}, 5.0)
    (order,) = head.orders(5.0, 0.0)
    assert (order["kind"], order["code"], order["exclude"]) == ("end", 75, [])
    assert kinds(folder) == ["failure", "restart", "requeue"]
    assert "all ranks of n1 had left" in order["why"]
    assert requeues_by_faults(folder) == 1


def test_steps_since_the_last_checkpoint_are_lost(folder):
    head = begun(folder)
    folder.write_record(head.attempt, 0, {"saved": [{"step": 4, "seconds": 0.1}], "restart": 0})
    head.take(1, crash(step=7), 1.0)
    head.orders(9.0, 0.0)
    assert folder.events()[0]["steps_lost"] == 3


def test_the_same_crash_three_times_ends_the_job(folder):
    head = begun(folder)
    for moment in (10.0, 20.0):
        head.take(1, crash(), moment)
        assert head.orders(moment + SETTLE_S, 0.0) == [{"kind": "allow_restart"}]
    head.take(1, crash(), 30.0)
    (order,) = head.orders(30.0 + SETTLE_S, 0.0)
    assert (order["kind"], order["code"]) == ("end", 1)
    assert "3 times at step 7" in folder.ended()["reason"]


def test_the_same_crash_three_times_over_attempts(folder):
    for _ in range(2):
        head = begun(folder)
        head.take(1, crash(), 1.0)
        head.take(0, ended(1), 1.5)
        head.take(1, ended(1), 1.5)
        (order,) = head.orders(1.5, 0.0)  # all have ended: nothing is to come
        assert order["code"] == 75
    head = begun(folder)
    head.take(1, crash(), 1.0)
    (order,) = head.orders(5.0, 0.0)
    assert order["code"] == 1


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (Evidence(oom_kills={"n2": 1}, exit_codes={1: -9}), 1),
        (
            Evidence(errors={1: RankError(text=FULL, type="OSError", step=3)}),
            1,
        ),
        (Evidence(exit_codes={1: 127}), 2),
    ],
)
def test_what_a_restart_does_not_help_ends_the_job_at_once(folder, evidence, code):
    head = begun(folder)
    head.take(1, failed(evidence), 1.0)
    (order,) = head.orders(1.0 + SETTLE_S, 0.0)
    assert (order["kind"], order["code"]) == ("end", code)
    assert folder.ended()["state"] == "failed"


def test_without_a_node_the_job_is_requeued_elsewhere(folder):
    head = begun(folder)
    head.take(0, failed(Evidence(errors={0: RankError(text=GLOO, type="RuntimeError", step=7)})), 1.0)
    head.lose(1, "it closed the connection", 1.5)
    (order,) = head.orders(1.0 + SETTLE_S, 0.0)
    assert (order["code"], order["exclude"]) == (75, ["n2"])
    failure, requeue = folder.events()
    assert failure["lost"] == {"n2": "it closed the connection"}
    assert (requeue["because"], requeue["exclude"]) == ("fault", ["n2"])


def test_a_node_that_gives_up_says_why(folder):
    head = begun(folder)
    head.take(1, {"kind": "gave_up", "why": "its node program failed: no space"}, 1.0)
    head.lose(1, "the connection ended", 1.1)
    assert head.orders(1.0 + SETTLE_S, 0.0)[0]["code"] == 75
    assert folder.events()[0]["lost"] == {"n2": "its node program failed: no space"}


def test_on_one_machine_there_is_no_other_node(folder):
    spec = {"restart_policy": "OnFailure", "max_retries": 3, "nodes": [2, 2]}
    head = begun(folder, Contract.of({"spec": spec, "target": "local"}, 2))
    head.lose(1, "the connection ended", 1.0)
    (order,) = head.orders(1.0 + SETTLE_S, 0.0)
    assert (order["code"], order["exclude"]) == (75, [])
    assert order["why"] == "node n2 is lost; requeue 1 of 20"


def test_without_a_node_the_others_go_on_where_they_are_enough(folder):
    head = begun(folder, ANY_SIZE)
    head.lose(1, "it was silent for 5 s", 1.0)
    head.take(0, failed(Evidence(exit_codes={0: 1})), 1.5)
    assert head.orders(1.5, 0.0) == []
    assert head.orders(1.0 + SETTLE_S, 0.0) == [{"kind": "restart", "nodes": 1, "without": []}]
    assert kinds(folder) == ["failure", "go_on_smaller"]
    head.lose(1, "it was silent for 5 s", 9.0)  # told again at each turn
    assert head.orders(60.0, 0.0) == []
    head.take(0, ended(0), 61.0)
    assert head.orders(61.0, 0.0)[0]["code"] == 0


@pytest.mark.parametrize(("index", "least", "action"), [(1, 2, "go"), (1, 3, "requeue"), (0, 1, "requeue")])
def test_a_node_with_a_faulty_gpu_leaves(folder, index, least, action):
    """Not the first one: the others need its store."""
    attempt = folder.claim_attempt({"nodes": ["n1", "n2", "n3"], "native": "1"})
    contract = replace(CONTRACT, min_nodes=least)
    head = Head(folder, attempt, ("n1", "n2", "n3"), [0, 1, 2], contract)
    head.take(index, faulty_gpu(index), 1.0)
    head.take(index, {"kind": "health", "text": "gpu:0 failed: Xid 79"}, 1.5)
    assert head.orders(1.0 + SETTLE_S, 0.0) == []  # torchrun starts the ranks of all nodes again
    head.take(index, {"kind": "began"}, 3.0)
    (order,) = head.orders(3.0, 0.0)
    health, failure, decision = folder.events()
    known = {f"n{index + 1}": "gpu:0 failed: Xid 79"}
    assert (health["kind"], failure["health"], decision["health"]) == ("health", known, known)
    if action == "requeue":
        assert (order["code"], order["exclude"], decision["kind"]) == (75, [f"n{index + 1}"], "requeue")
        return
    assert order == {"kind": "restart", "nodes": 2, "without": [1]}
    assert (decision["kind"], decision["nodes"]) == ("go_on_smaller", ["n1", "n3"])
    head.take(1, ended(1), 4.0)  # of the node that leaves, nothing counts any more
    head.lose(1, "the connection ended", 4.0)
    assert head.orders(60.0, 0.0) == []
    head.take(2, crash(rank=2), 61.0)
    assert head.orders(61.0 + SETTLE_S, 0.0) == [{"kind": "allow_restart"}]
    assert "health" not in folder.events()[-2]


@pytest.mark.parametrize("then", ["no fault", "no answer", "lost", "all ended"])
def test_the_health_of_a_faulty_gpu_is_not_waited_for_for_long(folder, then):
    head = begun(folder)
    head.take(1, faulty_gpu(), 1.0)
    head.take(1, {"kind": "began"}, 1.2)
    now = 1.0 + SETTLE_S
    assert head.orders(now, 0.0) == []
    if then == "no fault":
        head.take(1, {"kind": "health", "text": None}, now)
    elif then == "lost":
        head.lose(1, "silent for 5 s", now)
    elif then == "all ended":
        for index in (0, 1):
            head.take(index, ended(1), now)
        assert head.orders(now, 0.0) == []
    if then in ("no answer", "all ended"):
        now += GPU_S
    (order,) = head.orders(now, 0.0)
    assert (order["code"], order["exclude"]) == (75, ["n2"])
    assert kinds(folder) == ["failure", "requeue"]
    assert "health" not in folder.events()[-1]


def test_a_note_of_a_node_is_told(folder):
    begun(folder).take(1, {"kind": "note", "text": "no NUMA binding"}, 1.0)
    (note,) = folder.events()
    assert (note["kind"], note["text"], note["nodes"]) == ("note", "n2: no NUMA binding", ["n2"])


def test_a_hang_names_rank_and_line_and_restarts(folder):
    head = begun(folder)
    beats = {
        0: Beat(phase="training", step=8, since_s=70.0, median_step_s=1.0),
        1: Beat(phase="training", step=7, since_s=71.0, median_step_s=1.0, process_state="T"),
    }
    head.take(0, {"kind": "late", "evidence": Evidence(beats={0: beats[0]}).to_dict()}, 1.0)
    assert head.orders(1.0, 0.0) == [{"kind": "stacks"}]
    head.take(1, {"kind": "late", "evidence": Evidence(beats={1: beats[1]}).to_dict()}, 1.1)
    assert head.orders(1.1, 0.0) == []
    for index, line in enumerate(("train.py:90 in main", "train.py:88 in step")):
        evidence = Evidence(beats={index: replace(beats[index], where=line)})
        head.take(index, {"kind": "stacks", "evidence": evidence.to_dict()}, 1.5)
    head.take(1, failed(Evidence(exit_codes={1: -6})), 1.7)  # by what writes the stacks
    assert head.orders(1.5 + SETTLE_S, 0.0) == [{"kind": "allow_restart"}]
    failure, restart = folder.events()
    assert failure["failure"]["kind"] == "hang"
    assert "rank 1 hangs at train.py:88 in step" in failure["text"]
    assert restart["kind"] == "restart"


def test_a_hang_is_judged_also_when_a_node_writes_no_stacks(folder):
    head = begun(folder)
    beat = Beat(phase="training", step=8, since_s=70.0, median_step_s=1.0)
    head.take(0, {"kind": "late", "evidence": Evidence(beats={0: beat}).to_dict()}, 1.0)
    head.orders(1.0, 0.0)
    assert head.orders(1.0 + STACKS_S, 0.0) == [{"kind": "allow_restart"}]
    assert kinds(folder) == ["failure", "restart"]


def test_the_time_limit_asks_to_stop_a_lead_before(folder):
    end = time.time() + 3600
    head = begun(folder, ends_at=end)
    assert head.orders(1.0, end - ASSUMED_LEAD_S - 1) == []
    head.take(0, {"kind": "seen", "step": 3, "save_s": 2.0, "median_step_s": 0.5}, 2.0)
    assert head.orders(2.5, end - 8) == []
    (order,) = head.orders(4.0, end - 7)  # 3 saves and 2 steps
    assert order["kind"] == "stop"
    assert "3 x 2 s" in order["why"]


def test_without_a_measured_save_the_lead_is_assumed(folder):
    end = time.time() + 3600
    (order,) = begun(folder, ends_at=end).orders(1.0, end - ASSUMED_LEAD_S)
    assert "assumed" in order["why"]
    folder.write_record(1, 0, {"saved": [{"step": 4, "seconds": 2.0}], "restart": 0})
    head = begun(folder, ends_at=end)  # measured by the attempt before
    assert head.orders(1.0, end - 7) == []
    assert "3 x 2 s" in head.orders(1.0, end - 6)[0]["why"]


def test_a_short_attempt_is_not_stopped_before_it_begins(folder):
    begin = time.time()
    head = begun(folder, ends_at=begin + 40)
    assert head.orders(1.0, begin + 15) == []
    assert head.orders(1.0, begin + 25)[0]["kind"] == "stop"


def test_a_time_limit_that_comes_before_the_save_is_a_fault(folder):
    """As often as the job may be requeued."""
    head = begun(folder)
    head.take(0, {"kind": "seen", "step": 7, "save_s": None, "median_step_s": None}, 1.0)
    assert head.end_by_limit().exit_code == 75
    failure, requeue = folder.events()
    assert (failure["failure"]["kind"], failure["steps_lost"]) == ("timeout", 7)
    assert (requeue["kind"], requeue["because"]) == ("requeue", "fault")
    assert begun(folder, replace(CONTRACT, max_requeues=1)).end_by_limit().action == "fail"
    assert folder.ended()["reason"].endswith("not all ranks have saved and left; all 1 requeues are used")


def test_a_stop_file_asks_and_a_cancelled_job_is_not_requeued(folder):
    head = begun(folder)
    folder.request_stop("Slurm sent USR1")
    assert [order["kind"] for order in head.orders(1.0, 0.0)] == ["stop"]
    assert folder.events()[-1]["text"] == "asked to stop: Slurm sent USR1"
    folder.end("cancelled", "by the user")
    head.take(0, ended(0, left={0: 5}), 2.0)
    head.take(1, ended(0, left={1: 5}), 2.0)
    assert head.orders(2.0, 0.0)[0]["code"] == 0
    assert folder.ended()["reason"] == "by the user"


def test_never_means_that_faults_end_the_job(folder):
    spec = {"restart_policy": "Never", "max_retries": 3, "nodes": [1, 2]}
    head = begun(folder, Contract.of({"spec": spec, "target": "slurm"}, 2))
    head.take(1, crash(), 1.0)
    assert head.orders(9.0, 0.0)[0]["code"] == 1


def test_never_does_not_mean_that_a_request_to_stop_does(folder):
    spec = {"restart_policy": "Never", "max_retries": 3, "nodes": [1, 2]}
    head = begun(folder, Contract.of({"spec": spec, "target": "slurm"}, 2))
    head.take(0, {"kind": "asked", "why": "the time limit is near"}, 1.0)
    head.orders(1.0, 0.0)
    for index in (0, 1):
        head.take(index, ended(0, left={index: 5}), 2.0)
    assert head.orders(2.0, 0.0)[0]["code"] == 75
    assert kinds(folder) == ["stop", "requeue"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_asked_to_stop_before_any_rank_began(folder, cancelled):
    head = begun(folder)
    if cancelled:
        folder.end("cancelled", "by the user")
    order = head.stop_before_begin("SIGTERM")
    assert (order["kind"], order["code"]) == ("end", 0 if cancelled else 75)
    if not cancelled:
        requeue = folder.events()[-1]
        assert (requeue["kind"], requeue["because"], requeue["failure"]["kind"]) == (
            "requeue",
            "asked",
            "stopped",
        )


def test_a_folder_that_vanishes_does_not_stop_a_decision(folder, capsys):
    head = begun(folder)
    head.take(1, crash(), 1.0)
    shutil.rmtree(folder.path)
    assert head.orders(9.0, 0.0) == [{"kind": "allow_restart"}]
    assert "has vanished" in capsys.readouterr().err


def test_a_folder_that_takes_no_events_does_not_stop_the_job(folder, capsys):
    head = begun(folder)
    head.take(1, crash(), 1.0)
    (folder.path / "events.jsonl").mkdir()
    folder.events = lambda: []  # as before
    assert head.orders(9.0, 0.0) == [{"kind": "allow_restart"}]
    assert "the event was not written" in capsys.readouterr().err
