"""The report of a run folder: ``profile.json``, ``trace.json`` and ``report.html``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from .. import saved
from ..facts import MeasuredLinks, host_of
from ..hosts import RankHome, group_by_host, host_names
from .advice import Recommendation, recommendations
from .chrome import trace
from .clocks import Offset, offsets
from .finding import SHARE
from .findings import Finding, find
from .html import page
from .join import Run, join
from .read import read_folder, read_standing
from .statistics import OperationStats, StepStats, operation_stats, step_stats

_FEW_STEPS = 20
"""Of fewer, findings may leave out a rank that is late: it may be chance."""


@dataclass(frozen=True, kw_only=True)
class RankSummary:
    """A rank that has records."""

    rank: int
    host: str
    calls: int
    """Collectives, in all groups."""
    clock: Offset
    error: str | None
    """What it ended with."""


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """The content of ``profile.json``; ``profile.schema.json`` in this package describes it."""

    format: Literal["kernel-pytorch profile"] = "kernel-pytorch profile"
    version: Literal[1] = 1
    """Incremented when a field is removed or changes its meaning, but not when one is added."""
    world_size: int
    ranks: tuple[RankSummary, ...]
    steps: StepStats | None
    """None: no steps were marked, or none came to its end."""
    operations: tuple[OperationStats, ...]
    findings: tuple[Finding, ...]
    recommendations: tuple[Recommendation, ...]
    links: MeasuredLinks | None
    """Measured links, on which the last two are based; None: there are none."""
    notes: tuple[str, ...]
    """What is missing or could not be read, or cannot be told."""


def report(run: Run, links: MeasuredLinks | None = None) -> ProfileReport:
    """What a run has to tell."""
    clocks = offsets(run)
    fitting = links if links is not None and links.size == run.world_size else None
    counts = {rank: sum(count.get(rank, 0) for count in run.counts.values()) for rank in run.headers}
    steps, found = step_stats(run), find(run, fitting)
    return ProfileReport(
        world_size=run.world_size,
        ranks=tuple(
            RankSummary(
                rank=rank,
                host=header.host,
                calls=counts[rank],
                clock=clocks[rank],
                error=end.error if (end := run.ends.get(rank)) else None,
            )
            for rank, header in sorted(run.headers.items())
        ),
        steps=steps,
        operations=operation_stats(run.collectives),
        findings=tuple(found),
        recommendations=tuple(recommendations(run, fitting)) if fitting else (),
        links=fitting,
        notes=(*run.notes, *_too_few(steps, found)),
    )


def _too_few(steps: StepStats | None, found: Sequence[Finding]) -> Iterator[str]:
    """What to do where ranks wait, and nothing says for whom."""
    if found or steps is None or steps.steps >= _FEW_STEPS:
        return
    if steps.waiting_ms.value > SHARE * steps.ms.value:
        count = f"{steps.steps} step{'s are' if steps.steps > 1 else ' is'}"
        yield f"{count} too few to tell whom the ranks wait for: record {_FEW_STEPS} or more"


def write_report(folder: str | Path, links: MeasuredLinks | None = None) -> str:
    """Read the records in a run folder and write what they tell, each file whole or not at all.

    Args:
        links: between all ranks; default: those that were measured last on the same hosts, if any were.

    Returns:
        What a user is told, in lines.

    Raises:
        OSError: the folder cannot be read, or a file not written.
        ValueError: there are no records in it.
    """
    folder = Path(folder)
    ranks, notes = read_folder(folder)
    if not ranks:
        raise ValueError(
            "; ".join([f"{folder} has no records: a rank has some once it has a process group", *notes])
        )
    run = join(ranks, notes, read_standing(folder))
    found = report(run, _saved_links(run) if links is None else links)
    paths = [folder / name for name in ("profile.json", "trace.json", "report.html")]
    write_whole(paths[0], msgspec.json.format(msgspec.json.encode(found), indent=1))
    write_pictures(run, found, *paths[1:])
    return "\n".join([*lines(found), f"{paths[0]}  {paths[1]} (Perfetto)  {paths[2]}"])


def _saved_links(run: Run) -> MeasuredLinks | None:
    """What was measured last between the hosts of a run."""
    if run.missing:
        return None
    homes = [
        RankHome(boot_id=header.boot_id, network_namespace=header.network_namespace, hostname=header.host)
        for _, header in sorted(run.headers.items())
    ]
    hosts = group_by_host(homes)
    names = host_names(homes, hosts)
    links = saved.load(saved.key_of([names[host] for host in host_of(hosts)]))
    return links if links is not None and links.hosts == hosts else None


def lines(found: ProfileReport) -> list[str]:
    """A report for people: the steps, the findings, what may be gained, and what is missing."""
    told = [first_line(found)]
    told += [finding.text for finding in found.findings]
    told += [each.text for each in found.recommendations]
    return [*told, *(f"note: {note}" for note in found.notes)]


def first_line(found: ProfileReport) -> str:
    """The median step."""
    steps = found.steps
    if steps is None:
        calls = sum(each.calls for each in found.operations)
        return (
            f"{calls} collectives of {len(found.ranks)} ranks; no whole step: one goes from a step of an "
            "optimizer of torch to its next"
        )
    return (
        f"step {steps.ms.value:.3g} ms: {steps.collectives_ms.value:.3g} ms of collectives, "
        f"{100 * steps.hidden_share:.0f} % hidden behind compute, "
        f"{steps.waiting_ms.value:.3g} ms spent waiting for another rank"
    )


def write_pictures(run: Run, found: ProfileReport, trace_path: Path, page_path: Path) -> None:
    """Write the Chrome trace and the HTML page of a run.

    Raises:
        OSError: that is not possible.
    """
    clocks = {each.rank: each.clock for each in found.ranks}
    write_whole(trace_path, msgspec.json.encode(trace(run, clocks)))
    write_whole(page_path, page(run, found, clocks).encode("utf-8", "replace"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole, or leave it as it was.

    Raises:
        OSError: that is not possible.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
