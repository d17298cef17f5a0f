"""Submitting jobs, and asking for them, on any target."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .facts import JobState, JobStatus
from .folder import JobFolder, JobFolderError, as_text, find_job, job_folders, jobs_folder, new_job_id
from .logs import follow_events, log_lines
from .recovery.plan import Limits
from .recovery.timing import DEFAULT_INTERVAL_S, checkpoint_interval, lead_time
from .spec import TrainingJobSpec
from .status import FINAL, ClusterWord, FolderRecords, status_of
from .target import ClusterUnavailableError, Target, target_named

_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What was submitted, or would have been."""

    job_id: str
    folder: Path
    native_id: str | None
    """The cluster's id; None in a dry run."""
    rendered: str
    """As :meth:`.Target.render` made it."""
    plan: Mapping[str, Any]
    notes: Sequence[str] = ()
    estimated_start_time: float | None = None
    """The cluster's own, in seconds since 1970."""


def plan_of(spec: TrainingJobSpec) -> dict[str, Any]:
    """When the job saves, when it is asked to stop, and how often it is restarted; each with the reason."""
    asked_s = spec.checkpoint_interval_minutes * 60
    every = checkpoint_interval(None if asked_s == DEFAULT_INTERVAL_S else asked_s, None, spec.num_nodes[1])
    lead = lead_time(None)
    never = spec.restart_policy == "Never"
    return {
        "checkpoint_every_s": every.value,
        "checkpoint_every_why": every.why,
        "lead_s": lead.value,
        "lead_why": lead.why,
        "restarts": 0 if never else spec.max_retries,
        "restarts_why": "restart policy Never" if never else "max_retries, in each attempt",
        "requeues": 0 if never else Limits.max_requeues,
    }


class Jobs:
    """The jobs of a folder.

    Methods that take an id take its beginning too, or the cluster's id, and raise JobNotFoundError.

    Args:
        root: default: ``$KERNEL_PYTORCH_JOBS``, else a folder in the home folder.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = jobs_folder(root)

    def submit(
        self,
        spec: TrainingJobSpec,
        target: Target,
        *,
        dry_run: bool = False,
        inherit_env: bool = True,
        cwd: str | Path | None = None,
    ) -> list[Submitted]:
        """Submit a job, or each of an array.

        Args:
            spec: what to run.
            target: where.
            dry_run: touch nothing, and ask no cluster.
            inherit_env: whether the ranks get this process's environment, which is written nowhere.
            cwd: where the command runs; default: here.

        Returns:
            One, or one for each index of an array.

        Raises:
            ValueError: the job can never run; says why.
            ClusterUnavailableError: the cluster does not answer.
            KernelPytorchError: it was not accepted. Nothing of it is left.
        """
        # Nodes and ranks as they are, for programs that do not know how they follow from each other.
        spec = spec.with_options(nodes=spec.num_nodes, ranks_per_node=spec.num_ranks_per_node)
        if not inherit_env and (lost := [name for name, of in spec.secrets.items() if of.startswith("env:")]):
            raise ValueError(
                f"secret {lost[0]} is in the environment, which the ranks do not get: use file:PATH"
            )
        where = os.path.abspath(os.fspath(cwd or os.getcwd()))
        plan, indices = plan_of(spec), target.indices(spec)
        base = spec.job_id or new_job_id(spec.name)
        ids = [base] if indices is None else [f"{base}-{index}" for index in indices]
        job = _job_of(spec, target.name, plan, where)
        rendered = target.render(spec, self.root / ids[0], {**_without_values(job), "id": ids[0]})
        if dry_run:
            return [
                Submitted(job_id=id, folder=self.root / id, native_id=None, rendered=rendered, plan=plan)
                for id in ids
            ]
        notes = target.check(spec, plan)
        self._refuse_shared_run(spec.command, where)
        folders: list[JobFolder] = []
        try:
            for id in ids:
                folders.append(JobFolder.create(self.root, {**job, "id": id}))
                folders[-1].event("submitted", f"submitted to {target.name}: {shlex.join(spec.command)}")
            native_ids = target.submit(spec, folders, inherit_env=inherit_env)
        except BaseException:
            for folder in folders:
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        for folder, native_id in zip(folders, native_ids, strict=True):
            folder.write_native(target.name, native_id)
        return [
            Submitted(
                job_id=folder.id,
                folder=folder.path,
                native_id=native_id,
                rendered=rendered,
                plan=plan,
                notes=notes,
                estimated_start_time=target.estimated_start(folder),
            )
            for folder, native_id in zip(folders, native_ids, strict=True)
        ]

    def status(self, id: str) -> JobStatus:
        """How a job is. Where the cluster does not answer: how it was when its folder was last written."""
        folder = self.folder(id)
        return status_of(folder.id, records_of(folder), self._words([folder]).get(folder.id))

    def list(self) -> list[JobStatus]:
        """How all jobs are, the newest first. Those with broken folders are left out."""
        folders = job_folders(self.root)
        words = self._words(folders)
        found = []
        for folder in folders:
            with suppress(JobFolderError):
                submitted = (folder.native() or {}).get("submitted_at", 0.0)
                found.append((submitted, status_of(folder.id, records_of(folder), words.get(folder.id))))
        return [status for _, status in sorted(found, key=lambda each: each[0], reverse=True)]

    def folder(self, id: str) -> JobFolder:
        """The folder of a job."""
        return find_job(self.root, id)

    def logs(self, id: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """Lines of the ranks' logs.

        Args:
            id: the job's.
            rank: default: all, each line with its rank.
            follow: until the job ends.
        """
        folder = self.folder(id)
        return log_lines(folder, rank, self._until_over(folder) if follow else None)

    def events(self, id: str, follow: bool = False) -> Iterator[dict[str, Any]]:
        """What happened, the oldest first; with ``follow`` until the job ends."""
        folder = self.folder(id)
        return follow_events(folder, self._until_over(folder) if follow else None)

    def wait(self, id: str) -> JobStatus:
        """How a job ended, when it has."""
        folder = self.folder(id)
        for _ in self._until_over(folder):
            pass
        return self.status(folder.id)

    def cancel(self, id: str) -> JobStatus:
        """End a job, whose ranks may save first for as long as the cluster waits, and have it stay ended.

        Raises:
            ClusterUnavailableError: nothing was done.
            KernelPytorchError: a process is left.
        """
        folder = self.folder(id)
        if folder.ended() is None:
            target = self._target(folder)
            target.words([folder])  # a cluster that does not answer leaves the job as it is
            attempt = max(folder.attempt_numbers(), default=None)
            if folder.end("cancelled", "cancelled on request", attempt=attempt):
                folder.event("cancelled", "cancelled on request", attempt=attempt)
            target.cancel(folder)
        return self.status(folder.id)

    def requeue(self, id: str, exclude: Sequence[str] = ()) -> str:
        """Have a job save, stop and run again, or run one that has ended again from its checkpoint.

        Args:
            id: the job's.
            exclude: nodes that are not to be used.

        Returns:
            The cluster's id.
        """
        folder = self.folder(id)
        target = self._target(folder)
        target.words([folder])
        self._refuse_shared_run(folder.job()["argv"], folder.job()["cwd"], but=folder.id)
        again = folder.reopen()
        native_id = target.requeue(folder, exclude)
        if again or native_id != (folder.native() or {}).get("native_id"):
            folder.write_native(target.name, native_id)
        return native_id

    def _target(self, folder: JobFolder) -> Target:
        return target_named(folder.job()["target"])

    def _words(self, folders: Sequence[JobFolder]) -> dict[str, ClusterWord]:
        """What the clusters say of those that have not ended; nothing where a cluster does not answer."""
        by_target: dict[str, list[JobFolder]] = {}
        for folder in folders:
            with suppress(JobFolderError):
                if folder.ended() is None and (native := folder.native()):
                    by_target.setdefault(native["target"], []).append(folder)
        words: dict[str, ClusterWord] = {}
        for name, own in by_target.items():
            with suppress(ClusterUnavailableError):
                words |= target_named(name).words(own)
        return words

    def _until_over(self, folder: JobFolder) -> Iterator[None]:
        """A turn every now and then, until the job has ended or the cluster says that it will not go on."""
        ask_at = time.monotonic() + _ASK_EVERY_S
        while folder.ended() is None:
            yield
            time.sleep(_LOOK_EVERY_S)
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + _ASK_EVERY_S
                word = self._words([folder]).get(folder.id)
                if word is not None and word.state in FINAL:
                    return

    def _refuse_shared_run(self, command: Sequence[str], cwd: str, but: str | None = None) -> None:
        """Two jobs that write to one run folder would overwrite each other's checkpoints."""
        if (run := _run_folder(command, cwd)) is None:
            return
        for folder in job_folders(self.root):
            with suppress(JobFolderError):
                job = folder.job()
                same = folder.id != but and _run_folder(job["argv"], job["cwd"]) == run
                if same and folder.ended() is None and self.status(folder.id).state not in FINAL:
                    raise ValueError(
                        f"the run folder {run} is used by the job {folder.id}, which has not ended: "
                        "cancel it, or give another --run"
                    )


def records_of(folder: JobFolder) -> FolderRecords:
    """What a job's folder has, for :func:`.status.status_of`."""
    attempts = folder.attempts()
    records: dict[int, Mapping[int, Mapping[str, Any]]] = {}
    for attempt in reversed(attempts):
        records[attempt["attempt"]] = found = folder.records(attempt["attempt"])
        if any(record.get("saved") for record in found.values()):
            break
    return FolderRecords(
        native=folder.native(),
        attempts=attempts,
        events=folder.events(),
        records=records,
        end=folder.ended(),
    )


def exit_status(status: JobStatus) -> int:
    """Of a program that waited for a job: 0 completed, 1 failed or not known, 130 cancelled."""
    return {JobState.COMPLETED: 0, JobState.CANCELLED: 130}.get(status.state, 1) if status.state else 1


def _job_of(spec: TrainingJobSpec, target: str, plan: Mapping[str, Any], cwd: str) -> dict[str, Any]:
    """The content of ``job.json``, but for the id."""
    # What was typed travels as argv and environment; a second copy of it would need the same care.
    facts = replace(spec, command=["-"], env_vars={}, secrets={}).to_dict()
    return {
        "name": spec.name,
        "spec": facts,
        "argv": [as_text(word) for word in spec.command],
        "environment": {as_text(name): as_text(value) for name, value in spec.env_vars.items()},
        "secrets": {as_text(name): as_text(value) for name, value in spec.secrets.items()},
        "cwd": as_text(cwd),
        "python": sys.executable,
        "token": secrets.token_hex(16),
        "target": target,
        "submitted_at": time.time(),
        "plan": dict(plan),
    }


def _without_values(job: Mapping[str, Any]) -> dict[str, Any]:
    """``job.json`` to be shown: without the token, and with the names of variables only."""
    shown = {name: value for name, value in job.items() if name != "token"}
    return {**shown, "environment": dict.fromkeys(job["environment"], "(not shown)")}


def _run_folder(command: Sequence[str], cwd: str) -> str | None:
    """The value of ``--run``; None: the command has none."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, has_value, value = word.partition("=")
        if name == "--run" and (value if has_value else following):
            return os.path.normpath(os.path.join(cwd, value if has_value else following))
    return None
