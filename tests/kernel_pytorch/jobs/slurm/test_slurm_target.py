"""Jobs on a real Slurm: submitted, asked for, stopped, requeued, cancelled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.cluster.slurm.cluster import SlurmCluster

from kernel_pytorch.jobs.facts import JobState
from kernel_pytorch.jobs.folder import JobFolder, job_folders
from kernel_pytorch.jobs.manage import Jobs, plan_of
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.slurm import commands
from kernel_pytorch.jobs.slurm.nodes import nodes, partitions, seconds_of
from kernel_pytorch.jobs.slurm.requeue import ASKS_FOR_S, requeue, requeue_other
from kernel_pytorch.jobs.slurm.script import script_of
from kernel_pytorch.jobs.slurm.target import SlurmTarget
from kernel_pytorch.jobs.target import SubmissionUnknownError

Submit = Callable[..., list[JobFolder]]


def until(done: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


def lines(folder: JobFolder, name: str) -> list[str]:
    path = folder.path / name
    return path.read_text().splitlines() if path.exists() else []


def started(folder: JobFolder, count: int) -> list[dict[str, Any]]:
    until(lambda: len(lines(folder, "started")) >= count, f"{count} node programs")
    return [json.loads(line) for line in lines(folder, "started")]


def native_id(folder: JobFolder) -> str:
    native = folder.native()
    assert native is not None
    return str(native["native_id"])


def word(folder: JobFolder) -> Any:
    return SlurmTarget().words([folder])[folder.id]


def until_state(folder: JobFolder, state: JobState) -> Any:
    until(lambda: word(folder).state is state, f"{state} of {folder.id}")
    return word(folder)


def processes(folder: JobFolder) -> list[str]:
    name, found = os.fsencode(folder.path), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            pass
    return found


def test_a_job_from_submission_to_end(submit: Submit, on_slurm: SlurmCluster):
    (folder,) = submit({"nodes": 2, "gpus_per_node": 2, "resources": {"cpu_cores": 4}})
    assert stat.S_IMODE((folder.path / "script.sh").stat().st_mode) == 0o700
    programs = started(folder, 2)
    assert len({program["node"] for program in programs}) == 2
    running = word(folder)
    assert (running.native_state, running.state) == ("RUNNING", JobState.RUNNING)
    assert sorted(running.nodes) == sorted(program["node"] for program in programs)
    assert (running.num_gpus, running.end_time, running.reason) == (4, None, None)
    assert abs(running.start_time - time.time()) < 600
    assert SlurmTarget().estimated_start(folder) == running.start_time
    shown = commands.run("squeue", "-h", "-j", native_id(folder), "-o", "%j|%k")
    assert shown == f"books|kernel-pytorch:{folder.id}\n"
    (folder.path / "code").write_text("75")
    ended = until_state(folder, JobState.FAILED)
    assert (ended.native_state, ended.reason) == ("FAILED", "NonZeroExitCode")
    assert ended.end_time >= ended.start_time
    exit_code = (commands.show_job(native_id(folder)) or {})["ExitCode"]
    assert exit_code == "75:0"


def test_signals_to_the_script(submit: Submit):
    """USR1 and TERM ask to stop; the script waits on, and its code is that of the node program."""
    (folder,) = submit()
    started(folder, 1)
    for name in ("USR1", "TERM", "USR1"):
        (folder.path / "stop").unlink(missing_ok=True)
        commands.run("scancel", "--batch", f"--signal={name}", native_id(folder))
        until(lambda told=f"Slurm sent {name}": folder.stop_reason() == told, name)
    assert word(folder).state is JobState.RUNNING
    assert lines(folder, "signals") == []
    (folder.path / "code").write_text("0")
    assert until_state(folder, JobState.COMPLETED).native_state == "COMPLETED"


def test_requeue_from_inside_by_all_nodes_at_once(submit: Submit):
    (folder,) = submit({"nodes": 3})
    before = started(folder, 3)
    (folder.path / "stubborn").touch()
    avoid = before[0]["node"]
    (folder.path / "again").write_text(avoid)
    after = started(folder, 6)[3:]
    assert {program["restarts"] for program in after} == {"1"}
    assert avoid not in {program["node"] for program in after}
    assert lines(folder, "requeued") == [avoid] * 3
    job = commands.show_job(native_id(folder))
    assert job is not None
    assert (job["ExcNodeList"], job["Restarts"]) == (avoid, "1")


def test_requeue_where_slurm_is_not_to_and_too_few_nodes_would_be_left(submit: Submit):
    (folder,) = submit({"nodes": 4, "restart_policy": "Never"})
    started(folder, 4)
    (folder.path / "stubborn").touch()
    assert (commands.show_job(native_id(folder)) or {})["Requeue"] == "0"
    (folder.path / "again").write_text("n1 n2")
    assert {program["restarts"] for program in started(folder, 8)[4:]} == {"1"}
    assert lines(folder, "requeued") == [""] * 4


def test_nodes_that_the_user_excluded_stay_excluded(submit: Submit):
    """Where too few would be left, only what earlier requeues added is given up."""

    def excluded(nodes: int, **options: Any) -> str:
        fields = {"nodes": nodes, "options": {"slurm": {"sbatch": ["--hold"], **options}}}
        job = native_id(submit(fields)[0])
        for lost in ("n2", "n3"):
            assert requeue_other(job, [lost])
        return (commands.show_job(job) or {})["ExcNodeList"]

    assert excluded(3, exclude="n1") == "n1"
    assert excluded(2, exclude="n[1-1]") == "n1,n3"
    assert excluded(2, sbatch=["--hold", "--exclud n1"]) == "n1,n3"
    assert excluded(3) == "n3"


def test_a_slurmctld_is_waited_for_until_its_backup_has_taken_over(on_slurm: SlurmCluster):
    takeover_s = seconds_of(commands.config()["SlurmctldTimeout"])
    assert takeover_s is not None
    assert takeover_s < ASKS_FOR_S


def test_a_cancelled_job_is_not_requeued_from_inside(submit: Submit):
    (folder,) = submit()
    SlurmTarget().cancel(folder)
    with pytest.raises(commands.SlurmError, match=r"job \d+ is not requeued: it is CANCELLED"):
        requeue(native_id(folder))


def test_cancel(submit: Submit):
    """Also of what does not end by itself; it is told first, and has KillWait to save."""
    (folder,) = submit({"nodes": 2})
    started(folder, 2)
    (folder.path / "stubborn").touch()
    SlurmTarget().cancel(folder)
    assert processes(folder) == []
    assert word(folder).state is JobState.CANCELLED
    assert "SIGTERM" in lines(folder, "signals")
    SlurmTarget().cancel(folder)  # again: nothing to do


def test_requeue_from_outside(submit: Submit, monkeypatch: pytest.MonkeyPatch):
    target = SlurmTarget()
    (folder,) = submit({"options": {"slurm": {"exclude": "n4"}}})
    (first,) = started(folder, 1)
    assert target.requeue(folder, [first["node"]]) == native_id(folder)
    second = started(folder, 2)[1]
    assert second["restarts"] == "1"
    assert second["node"] not in (first["node"], "n4")
    folder.claim_attempt({})
    assert target.requeue(folder) == native_id(folder)
    assert folder.stop_requested()  # without nodes to avoid it is asked to save and leave
    (folder.path / "code").write_text("0")
    until_state(folder, JobState.COMPLETED)
    (folder.path / "code").unlink()
    assert target.requeue(folder) == native_id(folder)  # ended, and Slurm still knows it
    assert started(folder, 3)[2]["restarts"] == "2"
    target.cancel(folder)
    folder.write_native("slurm", "987654")
    assert (word(folder).state, word(folder).native_state) == (None, None)
    again = target.requeue(folder, ["n1"])
    assert again not in ("987654", "")
    folder.write_native("slurm", again)
    fourth = started(folder, 4)[3]
    assert (fourth["restarts"], fourth["node"] in ("n2", "n3")) == ("0", True)


def test_an_array(submit: Submit):
    folders = submit({"options": {"slurm": {"array": "1,3-5:2"}}})
    assert [folder.id[-2:] for folder in folders] == ["-1", "-3", "-5"]
    assert len({native_id(folder).partition("_")[0] for folder in folders}) == 1
    for folder in folders:
        started(folder, 1)
        logs = list((folder.path / "logs").glob("slurm-*.out"))
        assert [log.name for log in logs] == [f"slurm-{native_id(folder)}.out"]
    found = SlurmTarget().words(folders)
    assert {word.state for word in found.values()} == {JobState.RUNNING}
    SlurmTarget().cancel(folders[1])
    assert [word(folder).state for folder in folders] == [
        JobState.RUNNING,
        JobState.CANCELLED,
        JobState.RUNNING,
    ]
    folders[1].write_native("slurm", "987654_3")
    again = SlurmTarget().requeue(folders[1])
    assert again.endswith("_3")
    folders[1].write_native("slurm", again)
    started(folders[1], 2)
    assert len(commands.queue([again.partition("_")[0]], "T")) == 1


def test_a_node_that_is_lost_with_the_script_on_it(
    submit: Submit, on_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
):
    """Nobody is in charge any more; a survivor requeues the job, for as many nodes as were asked for."""
    monkeypatch.setenv("LEAST", "2")
    (folder,) = submit({"nodes": "2:3"})
    started(folder, 2)
    job = commands.show_job(native_id(folder)) or {}
    host, count = job["BatchHost"], int(job["NumNodes"])
    started(folder, count)
    on_slurm.kill_node(host)
    until(lambda: on_slurm.node_states()[host] == "down*", "down")
    assert word(folder).native_state == "RUNNING"
    assert lines(folder, "signals") == []
    (folder.path / "again").write_text(host)

    def on_two_nodes() -> bool:
        again = [program["restarts"] for program in started(folder, count)[count:]]
        return len(again) > 1 and again[-1] == again[-2]

    until(on_two_nodes, "second attempt")
    assert lines(folder, "failed") == []
    assert host not in {program["node"] for program in started(folder, count)[count:]}


def test_a_job_that_nobody_is_in_charge_of_goes_on_when_asked(submit: Submit, on_slurm: SlurmCluster):
    """srun's helper has had its step killed everywhere, and the node of the script is down."""
    (folder,) = submit({"nodes": "2:3"})
    started(folder, 2)
    job = commands.show_job(native_id(folder)) or {}
    host, count = job["BatchHost"], int(job["NumNodes"])
    started(folder, count)
    for pid in on_slurm.processes(host):
        if b"slurm_script" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGSTOP)  # it would end the job
    commands.run("scancel", "--signal=KILL", f"{native_id(folder)}.0")
    until(lambda: processes(folder) == [], "end of the step")
    on_slurm.kill_node(host)
    until(lambda: on_slurm.node_states()[host] == "down*", "down")
    assert word(folder).native_state == "RUNNING"
    SlurmTarget().requeue(folder, [host])
    (program, *_) = started(folder, count + 1)[count:]
    assert (program["restarts"], program["node"] != host) == ("1", True)


# What a user may type: no surrogates that stand for no byte, no NUL.
TEXT = st.text(
    st.one_of(
        st.sampled_from("\"'\\ #$`%;&|\n\t=,:*?~!()[]{}<>^@-"),
        st.characters(codec="utf-8", exclude_characters="\0"),
        st.integers(0xDC80, 0xDCFF).map(chr),
    ),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() != "" and "\0" not in text)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXT, folder=TEXT)
@example(name="a \"b' \\ %j #x $(touch x)", folder="a \"b' %j #x $(touch x)`")
def test_any_name_and_path_arrive(on_slurm: SlurmCluster, tmp_path: Path, name: str, folder: str):
    """Read back from a job that is held; a name's control characters are blanks."""
    path = tmp_path / folder.replace("/", "_") / "books-7f3a"
    spec = spec_of({"name": name, "command": ["true"], "options": {"slurm": {"sbatch": ["--hold"]}}})
    control = r"[\x00-\x1f\x7f]"
    if re.search(control + r"|\\", str(path)):
        with pytest.raises(ValueError, match="has a backslash or a control character"):
            script_of(spec, path, python="python", lead_s=60)
        path = tmp_path / "x"
    script = script_of(spec, path, python="python", lead_s=60)
    job = commands.run("sbatch", "--parsable", stdin=script).strip()
    shown = commands.run("squeue", "-h", "-j", job, "-o", "%j\x1f%k")
    told = f"{re.sub(f'{control}+', ' ', name).strip() or 'job'}\x1fkernel-pytorch:{path.name}\n"
    assert os.fsencode(shown) == os.fsencode(told)
    if "%" not in str(path):  # scontrol shows other replacements than Slurm makes; see the next test
        out = commands.run("scontrol", "show", "job", "-o", job)
        assert os.fsencode(f" StdOut={path}/logs/slurm-{job}.out ") in os.fsencode(out)
    commands.run("scancel", job)


def test_folders_that_a_shell_would_misread(on_slurm: SlurmCluster, tmp_path: Path):
    jobs = Jobs(tmp_path / "a b'c \"d $(touch x) `y` %j ; é")
    spec = spec_of({"name": "books", "command": ["true"]})
    (submitted,) = jobs.submit(spec, SlurmTarget())
    folder = JobFolder(submitted.folder)
    started(folder, 1)
    (folder.path / "code").write_text("0")
    until_state(folder, JobState.COMPLETED)
    assert [log.name for log in (folder.path / "logs").iterdir()] == [f"slurm-{native_id(folder)}.out"]


def test_the_environment_arrives_or_not(submit: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    values = {"TRICKY": "a 'b' \"c\" $(x)\n;\udcff\\", "LC_ALL": "C.UTF-8", "SLURM_MEM_PER_CPU": "7"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_JOB_NAME", "other")
    monkeypatch.setenv("SBATCH_PARTITION", "small")
    (inherits,) = submit({"time": "30m"})
    (program,) = started(inherits, 1)
    environment = {bytes.fromhex(name): bytes.fromhex(value) for name, value in program["env"].items()}
    assert environment[b"TRICKY"] == os.fsencode(values["TRICKY"])
    assert environment[b"LC_ALL"] == b"C.UTF-8"
    assert b"SLURM_MEM_PER_CPU" not in environment
    assert environment[b"SLURM_JOB_NAME"] == b"books"
    assert environment[b"SLURM_JOB_PARTITION"] == b"small"
    python = tmp_path / "python"  # a clean environment has no PYTHONPATH
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{os.environ["PYTHONPATH"]}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (clean,) = submit({"options": {"slurm": {"partition": "main"}}}, inherit_env=False)
    (program,) = started(clean, 1)
    names = {bytes.fromhex(name) for name in program["env"]}
    assert b"TRICKY" not in names
    assert b"PATH" in names
    assert bytes.fromhex(program["env"][b"SLURM_JOB_PARTITION".hex()]) == b"main"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"options": {"slurm": {"partition": "big"}}},
            "unknown partition 'big': the cluster has main, small",
        ),
        ({"gpus_per_node": 3}, r"gpus_per_node=3 are more than any node of partition main has \(2\)"),
        ({"nodes": "5:6"}, "nodes=5 are more than the 4 of partition main"),
        ({"nodes": 2, "options": {"slurm": {"partition": "small"}}}, "nodes=2 are more than the 1 that"),
        ({"time": "2h", "options": {"slurm": {"sbatch": ["-p small"]}}}, "time limit of 120 minutes is more"),
        ({"options": {"slurm": {"constraint": "a100"}}}, "Slurm would refuse the job: .*feature"),
        ({"options": {"slurm": {"exclude": "n9"}}}, "Slurm would refuse the job: .*node name"),
        ({"resources": {"cpu_cores": 5}}, "node configuration is not available: ask for fewer cores"),
    ],
)
def test_what_can_never_run_is_refused(on_slurm: SlurmCluster, tmp_path: Path, fields: Any, told: str):
    spec = spec_of({"name": "books", "command": ["true"], **fields})
    with pytest.raises(ValueError, match=told):
        Jobs(tmp_path / "jobs").submit(spec, SlurmTarget())
    assert not (tmp_path / "jobs").exists()
    assert commands.run("squeue", "-h") == ""


def test_nodes_that_are_down_are_waited_for(on_slurm: SlurmCluster):
    on_slurm.run("scontrol", "update", "NodeName=n4", "State=DRAIN", "Reason=broken fan")
    spec = spec_of({"name": "books", "command": ["true"], "nodes": 4})
    notes = SlurmTarget().check(spec, plan_of(spec))
    assert notes[0] == "the job waits until nodes are back that get no jobs now: n4"
    assert any("KillWait=5 s" in note for note in notes)
    info = SlurmTarget().cluster_info()
    (drained,) = (node for node in info["nodes"] if node.node_id == "n4")
    assert drained.taints == ["drain: broken fan [root@" + drained.taints[0].partition("[root@")[2]]
    assert (drained.total_gpus, drained.available_gpus) == (2, 0)
    assert {partition.name for partition in info["partitions"]} == {"main", "small"}


def test_a_hidden_partition(on_slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """sbatch takes it; root sees it in any case, so another user asks."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\nexec setpriv --reuid=65534 --clear-groups {shutil.which("scontrol")} "$@"\n'
    )
    scontrol.chmod(0o755)
    on_slurm.run("scontrol", "create", "PartitionName=secret", "Nodes=n1", "Hidden=YES")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            assert [node.node_id for node in partitions(nodes())["secret"].nodes] == ["n1"]
    finally:
        on_slurm.run("scontrol", "delete", "PartitionName=secret")


def test_a_refusal_of_sbatch_leaves_nothing(on_slurm: SlurmCluster, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(SlurmTarget, "check", lambda self, spec, plan: ())
    spec = spec_of({"name": "books", "command": ["true"], "options": {"slurm": {"partition": "big"}}})
    with pytest.raises(commands.SlurmError, match=r"^sbatch: .*invalid partition") as caught:
        Jobs(tmp_path / "jobs").submit(spec, SlurmTarget())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "jobs").glob("*/*")) == []


@pytest.fixture
def no_word_of_sbatch(on_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Have the error that is given be raised after sbatch has submitted a job."""
    run = commands.run

    def replace(error: BaseException) -> None:
        def run_and_raise(*argv: str, **options: Any) -> str:
            answer = run(*argv, **options)
            if argv[0] == "sbatch" and "--test-only" not in argv:
                raise error
            return answer

        monkeypatch.setattr(commands, "run", run_and_raise)

    return replace


@pytest.mark.parametrize("array", [None, "1,3"])
def test_a_job_that_sbatch_did_not_acknowledge_is_found_again(
    no_word_of_sbatch: Callable[[Any], None], tmp_path: Path, array: str | None
):
    no_word_of_sbatch(commands.NoAnswerError("sbatch had no answer in 30 s"))
    jobs, options = Jobs(tmp_path / "jobs"), {"slurm": {"array": array} if array else {}}
    spec = spec_of({"name": "books", "command": ["true"], "options": options})
    told = r"not known whether .*: sbatch had no answer in 30 s: see kernel-pytorch status books-.*squeue$"
    with pytest.raises(SubmissionUnknownError, match=told):
        jobs.submit(spec, SlurmTarget())
    folders = job_folders(jobs.root)
    assert len(folders) == (2 if array else 1)
    for folder in folders:
        started(folder, 1)
        assert jobs.status(folder.id).state is JobState.RUNNING
        assert jobs.folder(native_id(folder)).id == folder.id
        assert jobs.cancel(folder.id).state is JobState.CANCELLED


def test_ctrl_c_while_sbatch_runs_keeps_the_folder(
    no_word_of_sbatch: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    no_word_of_sbatch(KeyboardInterrupt())
    jobs = Jobs(tmp_path / "jobs")
    with pytest.raises(SubmissionUnknownError, match="sbatch was interrupted"):
        jobs.submit(spec_of({"name": "books", "command": ["true"]}), SlurmTarget())
    (folder,) = job_folders(jobs.root)
    folder.claim_attempt({"nodes": ["n1"], "native": "987654"})  # also where squeue has forgotten the job
    monkeypatch.setattr(commands, "of_comments", lambda beginning, patience_s: {})
    SlurmTarget().words([folder])
    assert native_id(folder) == "987654"


def test_jobs_that_never_start_say_so(submit: Submit):
    failed = commands.run("sbatch", "--parsable", "--wrap=exit 1", "--output=/dev/null").strip()
    until(lambda: commands.queue([failed], "T")[failed] == ["FAILED"], "failure")
    waits = {"options": {"slurm": {"dependency": f"afterok:{failed}"}}}
    (folder,) = submit(waits)
    until(lambda: "DependencyNeverSatisfied" in (word(folder).reason or ""), "reason")
    assert word(folder).reason.startswith("DependencyNeverSatisfied: it will not start: the job it waits for")
    assert (word(folder).state, word(folder).nodes, word(folder).start_time) == (JobState.PENDING, None, None)


def test_the_dry_run_is_a_script_that_sbatch_takes(on_slurm: SlurmCluster, tmp_path: Path):
    spec = spec_of({"name": "books", "command": ["echo", "a\nb"], "env_vars": {"TOKEN": "hush"}, "nodes": 2})
    (submitted,) = Jobs(tmp_path / "jobs").submit(spec, SlurmTarget(), dry_run=True)
    assert not (tmp_path / "jobs").exists()
    assert "hush" not in submitted.rendered
    asked = subprocess.run(
        ["sbatch", "--test-only"], input=submitted.rendered, capture_output=True, text=True
    )
    assert (asked.returncode, "using 2 processors" in asked.stderr) == (0, True), asked.stderr
