"""Which rank this process is, and what it says of itself in the job's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..folder import JobFolder, JobFolderError

_SAVES_KEPT = 100
_TRACEBACK_KEPT = 20_000


@dataclass(frozen=True)
class RankRecord:
    """The record of one rank in one attempt."""

    folder: JobFolder
    attempt: int
    rank: int
    local_rank: int
    restart: int
    """How often torchrun has restarted the ranks in this attempt."""

    @classmethod
    def of_this_process(cls) -> RankRecord:
        """From the environment that the node program and torchrun set.

        Raises:
            JobFolderError: a variable is missing or not a number.
        """
        return cls(
            folder=JobFolder(variable("KERNEL_PYTORCH_JOB")),
            attempt=_whole("KERNEL_PYTORCH_ATTEMPT"),
            rank=_whole("RANK"),
            local_rank=_whole("LOCAL_RANK"),
            restart=_whole("TORCHELASTIC_RESTART_COUNT"),
        )

    def saved(self, step: int, seconds: float) -> None:
        """Add a save. What the rank said last, before a restart, is dropped: it has come further."""
        saves = [*self._saves(), {"step": step, "seconds": seconds}]
        self._write({"saved": saves[-_SAVES_KEPT:]})

    def left(self, step: int | None) -> None:
        """The rank leaves because it was asked to, with all up to ``step`` saved."""
        self._last_word({"left": step})

    def failed(self, error: BaseException, traceback: str = "", step: int | None = None) -> None:
        """The rank ends by an exception. Values of the job's secrets are left out of the text."""
        text = str(error)
        try:
            secrets = self.folder.job().get("secrets") or {}
        except JobFolderError:
            secrets, traceback = {}, ""
            if not isinstance(error, JobFolderError):  # ours have none
                text = "(not written, as job.json, which names the secrets, cannot be read)"
        for name in secrets:
            if value := os.environ.get(name):
                text, traceback = text.replace(value, f"({name})"), traceback.replace(value, f"({name})")
        self._last_word(
            {
                "error": text,
                "type": type(error).__name__,
                "traceback": traceback[-_TRACEBACK_KEPT:],
                "step": step,
            }
        )

    def _last_word(self, word: dict[str, Any]) -> None:
        self._write({"saved": self._saves(), **word, "pid": os.getpid()})

    def _saves(self) -> list[dict[str, Any]]:
        saves: list[dict[str, Any]] = (self.folder.record(self.attempt, self.rank) or {}).get("saved", [])
        return saves

    def _write(self, record: dict[str, Any]) -> None:
        self.folder.write_record(self.attempt, self.rank, {**record, "restart": self.restart})


def variable(name: str) -> str:
    """An environment variable that every rank of a job has.

    Raises:
        JobFolderError: it is not set.
    """
    if value := os.environ.get(name):
        return value
    raise JobFolderError(
        f"KERNEL_PYTORCH_JOB is set, but {name} is not",
        "start ranks by kernel-pytorch submit, or unset KERNEL_PYTORCH_JOB",
    )


def _whole(name: str) -> int:
    value = variable(name)
    try:
        return int(value)
    except ValueError:
        raise JobFolderError(f"{name} must be a number, got {value!r}") from None
