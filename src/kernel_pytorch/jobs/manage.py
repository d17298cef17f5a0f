"""Submitting jobs, and asking for them, on any target."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KernelPytorchError
from .atomic import lock_file, one_line
from .facts import JobState, JobStatus
from .folder import (
    JobFolder,
    JobFolderError,
    find_job,
    job_folders,
    jobs_folder,
    new_job_id,
)
from .logs import follow_events, log_lines
from .request import absolute, job_of, refuse_secrets, without_values
from .request import plan_of as plan_of
from .run_folder import refuse_in_array, run_folder
from .spec import TrainingJobSpec
from .status import FINAL, LOST, ClusterWord, FolderRecords, status_of
from .target import ClusterUnavailableError, SubmissionUnknownError, Target, target_named

_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 5.0
_PATIENCE_S = 5.0
"""For a cluster's answer to a question that the folder answers too."""
_LEAVES_S = 60.0
_LOCK_S = 10.0


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
            SubmissionUnknownError: whether it was accepted is not known. Its folder is kept.
            KernelPytorchError: it was not accepted. Nothing of it is left.
        """
        # Sizes as they are, for programs that do not know how they follow from each other.
        spec = spec.with_options(
            nodes=spec.num_nodes,
            ranks_per_node=spec.num_ranks_per_node,
            gpus_per_node=spec.num_gpus_per_node,
        )
        refuse_secrets(spec.secrets, inherit_env)
        where = absolute(cwd)
        plan, indices = plan_of(spec), target.indices(spec)
        ids = self._ids(spec, indices)
        job = {**job_of(spec, target.name, plan, where), "inherit_env": inherit_env}
        refuse_in_array(job["argv"], job["cwd"], len(ids))
        rendered = target.render(spec, self.root / ids[0], {**without_values(job), "id": ids[0]})
        if dry_run:
            return [
                Submitted(job_id=id, folder=self.root / id, native_id=None, rendered=rendered, plan=plan)
                for id in ids
            ]
        notes = target.check(spec, plan)
        folders: list[JobFolder] = []
        try:
            with self._alone():
                self._refuse_shared_run(job["argv"], job["cwd"])
                for id in ids:  # one by one: what was made before one fails is removed too
                    folders.append(JobFolder.create(self.root, {**job, "id": id}))
            for folder in folders:
                folder.event("submitted", f"submitted to {target.name}")
            native_ids = target.submit(spec, folders, inherit_env=inherit_env)
        except SubmissionUnknownError:  # without its folder, the job would fail if the cluster has it
            raise
        except BaseException:
            for folder in folders:
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        for folder, native_id in zip(folders, native_ids, strict=True):
            _note(folder, target.name, native_id)
        return [
            Submitted(
                job_id=folder.id,
                folder=folder.path,
                native_id=native_id,
                rendered=rendered,
                plan=plan,
                notes=notes,
                estimated_start_time=_estimated_start(target, folder),
            )
            for folder, native_id in zip(folders, native_ids, strict=True)
        ]

    def status(self, id: str) -> JobStatus:
        """How a job is. Where the cluster does not answer: how it was when its folder was last written."""
        folder = self.folder(id)
        return self._status(folder, self._words([folder]).get(folder.id))

    def list(self) -> list[JobStatus]:
        """How all jobs are, the newest first; of one whose folder is broken only that it is."""
        folders = job_folders(self.root)
        words = self._words(folders)
        found = []
        for folder in folders:
            submitted_at = math.inf
            try:
                submitted_at = folder.job()["submitted_at"]
                status = self._status(folder, words.get(folder.id))
            except JobFolderError as error:
                status = JobStatus(job_id=folder.id, reason=str(error))
            found.append((submitted_at, status))
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

        Raises:
            ValueError: the job has no such rank.
        """
        folder = self.folder(id)
        ranks = folder.job()["spec"]["world_size"]
        if rank is not None and not 0 <= rank < ranks:
            raise ValueError(f"rank must be one of the {ranks} of {folder.id}, from 0 on, got {rank}")
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
            JobFolderError: it is cancelled, but its folder could not be written.
            KernelPytorchError: a process is left.
        """
        folder = self.folder(id)
        if (folder.ended() or {"state": "cancelled"})["state"] == "cancelled":
            target = self._target(folder)
            target.words([folder])  # a cluster that does not answer leaves the job as it is
            unwritten = _record_cancelled(folder)
            target.cancel(folder)  # also the second time: the first may have left a process
            if unwritten is not None:
                raise JobFolderError(
                    f"{folder.id} was cancelled, but that is not recorded: {unwritten.why}",
                    f"mend that, then kernel-pytorch cancel {folder.id} records it",
                ) from unwritten
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
        if folder.ended() is not None:
            _wait_until_left(target, folder)
        kept = folder.reopen()
        try:
            if kept is not None:
                folder.event("note", "runs again on request", reopened=True)
            native_id = target.requeue(folder, exclude)
        except BaseException:
            if kept is not None and folder.ended() is None:
                os.replace(kept, folder.path / "end.json")
            raise
        if kept is not None or native_id != (folder.native() or {}).get("native_id"):
            _note(folder, target.name, native_id)
        return native_id

    def _target(self, folder: JobFolder) -> Target:
        return target_named(folder.job()["target"])

    def _words(self, folders: Sequence[JobFolder]) -> dict[str, ClusterWord]:
        """What the clusters say of those that have not ended; nothing where a cluster does not answer."""
        by_target: dict[str, list[JobFolder]] = {}
        for folder in folders:
            with suppress(JobFolderError):
                if folder.ended() is None:
                    target = (folder.native() or folder.job())["target"]
                    by_target.setdefault(target, []).append(folder)
        words: dict[str, ClusterWord] = {}
        for name, own in by_target.items():
            words |= _words_of(target_named(name), own)
        return words

    def _status(self, folder: JobFolder, word: ClusterWord | None) -> JobStatus:
        """``word`` is to be asked for before: what ends afterwards has written its end by now."""
        return status_of(folder.id, records_of(folder), word)

    def _until_over(self, folder: JobFolder) -> Iterator[None]:
        """A turn every now and then, until the job has ended or the cluster says that it will not go on."""
        ask_at = time.monotonic()
        while folder.ended() is None:
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + _ASK_EVERY_S
                folder.job()  # a folder that has vanished would never end
                word = self._words([folder]).get(folder.id)
                if word is not None and (word.state in FINAL or word.native_state in (None, LOST)):
                    return
            yield
            time.sleep(_LOOK_EVERY_S)

    def _ids(self, spec: TrainingJobSpec, indices: Sequence[int] | None) -> Sequence[str]:
        """Ids of new jobs: one, or one for each index."""
        while True:
            base = spec.job_id or new_job_id(spec.name)
            ids = [base] if indices is None else [f"{base}-{index}" for index in indices]
            if spec.job_id or not any((self.root / id).exists() for id in ids):
                return ids

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other job of this folder is made meanwhile."""
        with one_line(self.root, "made"):
            os.makedirs(self.root, mode=0o700, exist_ok=True)
        with one_line(self.root / ".lock", "written"):
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock_file(descriptor, _LOCK_S)
            yield
        finally:
            os.close(descriptor)

    def _refuse_shared_run(self, argv: Sequence[str], cwd: str, but: str | None = None) -> None:
        """Two jobs that write to one run folder would overwrite each other's checkpoints."""
        if (run := run_folder(argv, cwd)) is None:
            return
        for folder in job_folders(self.root):
            with suppress(JobFolderError):
                job = folder.job()
                same = folder.id != but and run_folder(job["argv"], job["cwd"]) == run
                if same and folder.ended() is None and self.status(folder.id).state not in FINAL:
                    raise ValueError(
                        f"the run folder {os.fsdecode(run)} is used by {folder.id}, which has not ended: "
                        "wait for it, cancel it, or give another one"
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


def _record_cancelled(folder: JobFolder) -> JobFolderError | None:
    """Write that a job is cancelled; why not, where the folder cannot be written."""
    attempt = max(folder.attempt_numbers(), default=None)
    try:
        if folder.end("cancelled", "cancelled on request", attempt=attempt):
            folder.event("cancelled", "cancelled on request", attempt=attempt)
    except JobFolderError as error:
        return error
    return None


def _wait_until_left(target: Target, folder: JobFolder) -> None:
    """What wrote the end may still be about to leave, and would not stay for another attempt."""
    until = time.monotonic() + _LEAVES_S
    while (word := target.words([folder]).get(folder.id)) and word.state is JobState.RUNNING:
        if time.monotonic() > until:
            raise KernelPytorchError(
                f"{folder.id} has ended, but {target.name} still runs it", "try again later"
            )
        time.sleep(_LOOK_EVERY_S)


def _words_of(target: Target, folders: Sequence[JobFolder]) -> Mapping[str, ClusterWord]:
    """What a cluster says of jobs; where it refuses, of those of which it does when asked one by one."""
    try:
        return target.words(folders, _PATIENCE_S)
    except ClusterUnavailableError:
        return {}
    except KernelPytorchError:
        if len(folders) == 1:
            return {}
    words: dict[str, ClusterWord] = {}
    for folder in folders:
        words |= _words_of(target, [folder])
    return words


def _estimated_start(target: Target, folder: JobFolder) -> float | None:
    """None also where the cluster does not answer: the job is submitted all the same."""
    try:
        return target.estimated_start(folder)
    except KernelPytorchError:
        return None


def _note(folder: JobFolder, target: str, native_id: str) -> None:
    try:
        folder.write_native(target, native_id)
    except JobFolderError as error:
        fix = f"end it by the means of {target}"
        raise JobFolderError(f"{target} runs {folder.id} as {native_id}, but: {error.why}", fix) from error
