"""Measured rows, appended to a file as soon as each is there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..measure import progress
from ..report import hardware_name
from ..verify import REPOSITORY

Row = Mapping[str, Any]
Case = Mapping[str, Any]
"""What a row is of: hosts, mbit_s, mb and so on."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A file of rows of this machine and commit, among others."""

    path: Path
    quick: bool
    """Whether they are measured with few rounds."""
    again: bool
    """Whether to measure what is there already."""
    machine: str = field(default_factory=lambda: hardware_name(torch.device("cpu")))
    commit: str | None = field(default_factory=lambda: commit())

    def missing(self, part: str, cases: Iterable[Case]) -> Iterator[Case]:
        """The cases to measure, each after the row of the one before was added."""
        for case in cases:
            where = self._where(part, case)
            there = self.commit is not None and not self.again
            if there and any(where.items() <= row.items() for row in read(self.path)):
                progress(f"  {part} {_words(case)}: there already")
            else:
                yield case

    def add(self, part: str, case: Case, **figures: Any) -> None:
        """Append a row; the load is that of the last minute, this benchmark's own included."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {**self._where(part, case), "at": now, "load": round(os.getloadavg()[0], 1), **figures}
        with self.path.open("a") as file:
            print(json.dumps(row), file=file)
        progress(f"  {part} {_words(case)} (load {row['load']})")

    def _where(self, part: str, case: Case) -> dict[str, Any]:
        where = {"machine": self.machine, "commit": self.commit, "quick": self.quick}
        return {"part": part, "case": dict(case), **where}


def read(path: Path) -> list[Row]:
    """The rows of a file; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_of_each(rows: Iterable[Row]) -> list[Row]:
    """The last row of each part and case, in the order of the first ones."""
    found = {(row["part"], json.dumps(row["case"], sort_keys=True)): row for row in rows}
    return list(found.values())


def commit(repository: Path = REPOSITORY) -> str | None:
    """What is measured; None outside of a checkout, and where something but results is not committed."""
    git = ["git", "-C", str(repository)]
    changes = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    changed = subprocess.run(changes, capture_output=True, text=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return None if changed.returncode or head.returncode or changed.stdout else head.stdout.strip()


def _words(case: Case) -> str:
    return " ".join(f"{name}={value}" for name, value in case.items())
