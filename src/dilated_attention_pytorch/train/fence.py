"""Fencing: of the processes that a job has started for a run, only the newest ones write.

The run's folder says whose it is: the job, its attempt, and a word that each start draws anew, since torchrun
may start the ranks several times in one attempt.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_pytorch.jobs.rank import RankJob

from .checkpoint import write_atomically
from .errors import CommandError
from .run_folder import ATTEMPT


@dataclass(frozen=True)
class Fence:
    """What the first rank of one start of a job's attempt asks before it writes."""

    folder: Path
    """Of the run."""
    job: RankJob
    """The job, as this attempt sees it."""
    claim: dict[str, Any]
    """What ``attempt.json`` said when this start began."""

    def check(self) -> None:
        """Raise CommandError if others have begun since, who may write instead."""
        if not self.job.newest():
            raise CommandError(
                f"a newer attempt of job {self.job.id} has begun: attempt {self.job.attempt} stops without "
                "writing",
                status=1,
            )
        if (found := read_claim(self.folder)) != self.claim:
            whose = f"attempt {found.get('attempt')} of job {found.get('job')}" if found else "no job"
            raise CommandError(
                f"{self.folder} is of {whose} by now: attempt {self.job.attempt} of job {self.job.id} stops "
                "without writing",
                status=1,
            )


def read_claim(folder: Path) -> dict[str, Any]:
    """What ``attempt.json`` says: ``job``, ``attempt`` and ``start``; empty if there is none."""
    try:
        claim = json.loads((folder / ATTEMPT).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CommandError(f"{folder / ATTEMPT} is damaged: {error}; remove it") from error
    return claim if isinstance(claim, dict) else {}


def claim_folder(folder: Path, job: RankJob) -> Fence | None:
    """Make a run's folder that of this process, and end the right of earlier ones to write.

    Returns:
        None outside a job, where the lock of the metrics must do.

    Raises:
        CommandError: a newer attempt of the job has it.
        OSError: it cannot be written.
    """
    if job.attempt is None:
        (folder / ATTEMPT).unlink(missing_ok=True)
        return None
    before = read_claim(folder)
    if before.get("job") == job.id and before.get("attempt", 0) > job.attempt:
        Fence(folder, job, {}).check()
    claim = {"job": job.id, "attempt": job.attempt, "start": secrets.token_hex(8)}
    write_atomically(folder / ATTEMPT, lambda file: file.write(json.dumps(claim).encode() + b"\n"))
    return Fence(folder, job, claim)
