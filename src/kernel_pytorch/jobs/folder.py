"""The folder of a job: all that is known about it besides what the cluster says. Standard library only.

::

    job.json               what was submitted; only its owner can read it
    native.json            the cluster's id of it, once the cluster has acknowledged it
    attempts/              a file by attempt, 1 and on: the newest may write, an older one stops
    events.jsonl           what happened, one event a line
    records/attempt-1/     a file by rank: what it saved, and what it said last
    logs/  stacks/         by attempt, as the records
    stop                   exists while the attempt that runs is asked to save and leave; may say why
    end.json               how it ended
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import time
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .atomic import JobFolderError as JobFolderError
from .atomic import append_line, create_atomically, one_line, parse_json, read_json, sync_folder
from .atomic import write_atomically as write_atomically

VERSION = 1
_ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class JobNotFoundError(JobFolderError, LookupError):
    """No job, or more than one, has the id that was given."""


class JobFolder:
    """One job's folder. Any number of processes on any node may use it at once.

    Every method raises JobFolderError, in one line, where it cannot do its work; no file is half-written.

    Args:
        path: the folder; its name is the job's id.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.id = self.path.name

    @classmethod
    def create(cls, jobs: Path, job: Mapping[str, Any]) -> JobFolder:
        """Make the folder of a new job, with its ``job.json``.

        Args:
            jobs: the folder of all jobs, made if it does not exist.
            job: as :meth:`write_job` takes it. Its ``id``, if it has one, must be new; else one is made
                from its ``name``.
        """
        with one_line(jobs, "made"):
            os.makedirs(jobs, mode=0o700, exist_ok=True)
            _refuse_others(jobs, os.stat(jobs), sticky=True)
        given = job.get("id")
        if given is not None and not _ID.fullmatch(given):
            raise ValueError(f"id must consist of letters, digits, '.', '_' and '-', got {given!r}")
        while True:
            folder = cls(jobs / (given or new_job_id(job["name"])))
            try:
                with one_line(folder.path, "made"):
                    os.mkdir(folder.path, 0o700)
                break
            except JobFolderError as error:
                if not isinstance(error.__cause__, FileExistsError):
                    raise
                if given is not None:
                    raise JobFolderError(f"{jobs} already has a job {given}", "choose another id") from error
        try:
            for name in ("attempts", "records", "logs", "stacks"):
                with one_line(folder.path / name, "made"):
                    os.mkdir(folder.path / name, 0o700)
            folder.write_job({**job, "id": folder.id})
            with one_line(jobs, "written"):
                sync_folder(jobs)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        return folder

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Write ``job.json``. Its strings are as :func:`as_text` makes them."""
        write_atomically(self.path / "job.json", _dump({"version": VERSION, **job}), 0o600)

    def job(self) -> dict[str, Any]:
        """What was submitted: the content of ``job.json``.

        Raises:
            JobFolderError: also if others could have written it.
        """
        path = self.path / "job.json"
        with one_line(path, "read"):
            _refuse_others(self.path, os.stat(self.path))
            with path.open("rb") as file:  # the file itself too: the folder may be another one by now
                _refuse_others(path, os.fstat(file.fileno()))
                data = file.read()
        job = parse_json(path, data)
        if not isinstance(job, dict) or job.get("version") != VERSION:
            raise JobFolderError(
                f"{path} is not of version {VERSION}", "use the release that submitted the job"
            )
        return job

    def write_native(self, target: str, native_id: str) -> None:
        """Note the id by which the cluster has acknowledged the job."""
        native = {"target": target, "native_id": native_id, "submitted_at": time.time()}
        write_atomically(self.path / "native.json", _dump(native))

    def native(self) -> dict[str, Any] | None:
        """``target``, ``native_id`` and ``submitted_at``; None if no cluster has acknowledged the job."""
        return _read_if_there(self.path / "native.json")

    def claim_attempt(self, facts: Mapping[str, Any]) -> int:
        """Begin the next attempt, which ends the right of the earlier ones to write.

        Args:
            facts: ``nodes``, ``native``.

        Returns:
            Its number, from 1 on; no two callers get the same.
        """
        attempt = max(self.attempt_numbers(), default=0) + 1
        while not create_atomically(
            self._attempt(attempt), _dump({"attempt": attempt, "started_at": time.time(), **facts})
        ):
            attempt += 1
        return attempt

    def claim_decision(self, attempt: int) -> bool:
        """Whether this is the first to decide what follows on an attempt whose first node is lost."""
        return create_atomically(self.path / "attempts" / f"{attempt}.decided", b"")

    def attempt_numbers(self) -> list[int]:
        """The numbers of the attempts so far, in order."""
        # Listed, not looked up by name: when a folder is opened, NFS asks the server for news of it, while
        # it may go on for a minute to say that a file does not exist.
        return _numbered(self.path / "attempts")

    def attempts(self) -> list[dict[str, Any]]:
        """``attempt``, ``started_at`` (seconds since 1970) and the facts of each attempt, in order."""
        return [read_json(self._attempt(attempt)) for attempt in self.attempt_numbers()]

    def event(self, kind: str, text: str, *, attempt: int | None = None, **facts: Any) -> None:
        """Append to the events, with the time."""
        event = {"at": time.time(), "attempt": attempt, "kind": kind, "text": text, **facts}
        append_line(self.path / "events.jsonl", _dump(event))

    def events(self) -> list[dict[str, Any]]:
        """The events in the order of writing, without lines that a power failure tore."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        with one_line(path, "read"):
            lines = path.read_bytes().splitlines()
        events = []
        for line in lines:
            with suppress(ValueError):
                events.append(json.loads(line))
        return events

    def write_record(self, attempt: int, rank: int, record: Mapping[str, Any]) -> None:
        """Replace what a rank says of itself: ``saved``, ``restart``, and ``left`` or ``error``."""
        path = self._record(attempt, rank)
        with one_line(path, "written"):
            path.parent.mkdir(0o700, exist_ok=True)
        write_atomically(path, _dump(record))

    def record(self, attempt: int, rank: int) -> dict[str, Any] | None:
        """What a rank said of itself; None if it said nothing."""
        return _read_if_there(self._record(attempt, rank))

    def records(self, attempt: int) -> dict[int, dict[str, Any]]:
        """What the ranks of an attempt said, by rank."""
        folder = self._record(attempt, 0).parent
        if not folder.exists():
            return {}
        return {rank: read_json(self._record(attempt, rank)) for rank in _numbered(folder, "rank-")}

    def request_stop(self, why: str = "") -> None:
        """Ask the attempt that runs to save and leave; the job is requeued and goes on from there.

        Args:
            why: one line for the user; empty: a stop file.
        """
        write_atomically(self.path / "stop", why.encode())

    def stop_requested(self) -> bool:
        """Whether somebody, or :meth:`request_stop`, has made the stop file."""
        return self._has("stop")

    def stop_reason(self) -> str | None:
        """Why a stop is requested: the first line of the stop file, or "stop file"; None: it is not."""
        if not self.stop_requested():
            return None
        try:
            with (self.path / "stop").open("rb") as file:
                line = file.read(200).decode(errors="replace").partition("\n")[0].strip()
        except OSError:  # it cannot be read, or is gone again
            line = ""
        return line or "stop file"

    def clear_stop(self) -> None:
        """Forget a request to stop, as every new attempt does; nothing happens where there is none."""
        with one_line(self.path / "stop", "removed"):
            (self.path / "stop").unlink(missing_ok=True)

    def end(self, state: str, reason: str, *, step: int | None = None, attempt: int | None = None) -> bool:
        """Write how the job ended; the first call wins.

        Args:
            state: the value of a JobState.

        Returns:
            Whether this was the first.
        """
        end = {"state": state, "reason": reason, "step": step, "attempt": attempt, "at": time.time()}
        return create_atomically(self.path / "end.json", _dump(end))

    def ended(self) -> dict[str, Any] | None:
        """How the job ended; None if it has not."""
        return _read_if_there(self.path / "end.json") if self._has("end.json") else None

    def reopen(self) -> Path | None:
        """Keep the end record under another name, so that the job can run again.

        Returns:
            Where it is now; None: there was none.
        """
        self.clear_stop()
        end = self.path / "end.json"
        number = 1
        while (kept := self.path / f"end-{number}.json").exists():
            number += 1
        with one_line(end, "renamed"):
            try:
                os.rename(end, kept)
            except FileNotFoundError:
                return None
            sync_folder(self.path)
        return kept

    def _has(self, name: str) -> bool:
        """Whether a file is there now. Listed, as :meth:`attempt_numbers`."""
        with one_line(self.path / name, "read"):
            return name in os.listdir(self.path)

    def _attempt(self, attempt: int) -> Path:
        return self.path / "attempts" / f"{attempt}.json"

    def _record(self, attempt: int, rank: int) -> Path:
        return self.path / "records" / f"attempt-{attempt}" / f"rank-{rank}.json"


def jobs_folder(job_dir: str | Path | None = None) -> Path:
    """The folder of all jobs: ``job_dir``, else ``$KERNEL_PYTORCH_JOBS``, else one in the home folder."""
    given = job_dir or os.environ.get("KERNEL_PYTORCH_JOBS") or "~/.kernel-pytorch/jobs"
    return Path(os.path.abspath(os.path.expanduser(given)))


def job_folders(jobs: Path) -> list[JobFolder]:
    """The folders of all jobs, by id; none if ``jobs`` does not exist."""
    return [JobFolder(path.parent) for path in sorted(jobs.glob("*/job.json"))]


def find_job(jobs: Path, beginning: str) -> JobFolder:
    """The job that a user means.

    Args:
        jobs: the folder of all jobs.
        beginning: an id, the cluster's own id, or the beginning of one id only.

    Raises:
        JobNotFoundError: no job has it, or several do; names those, or the nearest.
    """
    folders = {folder.id: folder for folder in job_folders(jobs)}
    if beginning in folders:
        return folders[beginning]
    found = [id for id, folder in folders.items() if _native_id(folder) == beginning]
    found = found or [id for id in folders if beginning and id.startswith(beginning)]
    if len(found) == 1:
        return folders[found[0]]
    if found:
        raise JobNotFoundError(f"{beginning!r} names {len(found)} jobs", f"choose one of {', '.join(found)}")
    if not folders:
        raise JobNotFoundError(f"no job {beginning!r}: {jobs} has no jobs")
    import difflib

    near = [id for id in folders if difflib.get_close_matches(beginning, [id, id.rpartition("-")[0]])][:3]
    fix = f"did you mean {' or '.join(near)}?" if near else "see the list of jobs"
    raise JobNotFoundError(f"no job {beginning!r} in {jobs}", fix)


def new_job_id(name: str) -> str:
    """An id for a job of this name, such as ``books-7f3a``."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", ascii_name).strip("-")[:40].rstrip("-")
    return f"{slug or 'job'}-{secrets.token_hex(2)}"


def as_text(argument: str) -> str:
    """What a user typed, as ``job.json`` has it: UTF-8 in any locale, other bytes by ``surrogateescape``."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")


def as_bytes(text: str) -> bytes:
    """The bytes that the user typed. The inverse of :func:`as_text`."""
    return text.encode("utf-8", "surrogateescape")


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()  # ASCII, in which any string survives


def _numbered(folder: Path, prefix: str = "") -> list[int]:
    """The numbers in the names of the JSON files that begin with ``prefix``, in order."""
    with one_line(folder, "read"):
        names = os.listdir(folder)
    found = (re.fullmatch(rf"{prefix}([0-9]+)\.json", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _native_id(folder: JobFolder) -> str | None:
    """The cluster's id; None also where it cannot be read: a broken folder does not hide the others."""
    try:
        return (folder.native() or {}).get("native_id")
    except JobFolderError:
        return None


def _read_if_there(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = read_json(path)
    except JobFolderError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return content


def _refuse_others(path: Path, status: os.stat_result, *, sticky: bool = False) -> None:
    """Refuse what another user could have written or, in a folder that is not sticky, replaced."""
    if status.st_uid not in (os.geteuid(), 0):
        raise JobFolderError(f"{path} belongs to another user ({status.st_uid})", "use a folder of your own")
    if status.st_mode & 0o022 and not (sticky and status.st_mode & stat.S_ISVTX):
        raise JobFolderError(
            f"others can write {path} (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod go-w {path}"
        )
