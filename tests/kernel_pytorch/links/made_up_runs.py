"""Records of jobs that are made up for tests: the truth is known, and no clock agrees with another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kernel_pytorch.links.profile.record import (
    CallRecord,
    EndRecord,
    GroupRecord,
    Header,
    OverRecord,
    RankRecords,
    Record,
    StepRecord,
    rank_file,
)

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the program that is called once in each step."""

    site: str = "/home/me/train.py:88"
    operation: str = "all_reduce"
    nbytes: int = 25 << 20
    compute_ms: float = 20.0
    """Of each rank before the call."""
    moving_ms: float = 8.0
    times: int = 1
    """In a loop."""


def made_up_run(
    *lines: Line,
    ranks: int = 4,
    steps: int = 30,
    late_ms: Mapping[int, float] | Callable[[int, int], float] | None = None,
    noise: float = 0.1,
    seed: int = 0,
    clocks: Sequence[float] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    slow: Mapping[str, float] | None = None,
    marked: bool = True,
) -> list[RankRecords]:
    """A job of synchronous collectives.

    Args:
        lines: called one after the other in each step, in each of the groups of a rank.
        late_ms: what ranks compute longer before the first line, by rank or by step and rank.
        noise: of all times, as a share of them: of a log-normal distribution, so now and then far more.
        clocks: what each rank's clock shows more; default: anything.
        groups: the ranks of each.
        slow: factor by which data move slower in a group.
    """
    lines = lines or (Line(),)
    random = np.random.default_rng(seed)
    offsets = random.uniform(-1e5, 1e5, ranks).tolist() if clocks is None else list(clocks)
    groups = {ALL: range(ranks)} if groups is None else groups
    records: list[list[Record]] = [
        [GroupRecord(name=name, ranks=list(of), backend="gloo") for name, of in groups.items() if rank in of]
        for rank in range(ranks)
    ]
    late_ms, slow = late_ms or {}, slow or {}
    now, numbers, ids = np.zeros(ranks), dict.fromkeys(groups, 0), [0] * ranks

    def spent(ms: float) -> float:
        return 1e-3 * ms * float(random.lognormal(0, noise))

    for step in range(1, steps + 1):
        if marked:
            for rank in range(ranks):
                records[rank].append(StepRecord(step=step, at=float(now[rank] + offsets[rank])))
        for number, line in enumerate([each for each in lines for _ in range(each.times)]):
            for rank in range(ranks):
                extra = late_ms(step, rank) if callable(late_ms) else late_ms.get(rank, 0.0)
                now[rank] += spent(line.compute_ms) + (spent(extra) if number == 0 else 0.0)
            for name, of in groups.items():
                done = max(now[list(of)]) + spent(line.moving_ms) * slow.get(name, 1.0)
                for rank in of:
                    over = done + spent(0.05)
                    records[rank].append(
                        CallRecord(
                            id=ids[rank],
                            group=name,
                            number=numbers[name],
                            operation=line.operation,
                            reduce="sum" if "reduce" in line.operation else None,
                            shape=[line.nbytes // 4],
                            dtype="float32",
                            nbytes=line.nbytes,
                            step=step if marked else 0,
                            site=line.site,
                            posted=float(now[rank] + offsets[rank]),
                            done=float(over + offsets[rank]),
                            waited=float(over - now[rank]),
                        )
                    )
                    now[rank], ids[rank] = over, ids[rank] + 1
                numbers[name] += 1
    for rank in range(ranks):
        records[rank].append(EndRecord(at=float(now[rank] + offsets[rank])))
    headers = [
        Header(
            rank=rank,
            world_size=ranks,
            host="a",
            boot_id="boot",
            network_namespace="net:[1]",
            pid=100 + rank,
            started_at=1.7e9,
            started=offsets[rank],
        )
        for rank in range(ranks)
    ]
    return [RankRecords(header=h, records=r) for h, r in zip(headers, records, strict=True)]


def calls_of(rank: RankRecords, group: str = ALL) -> list[CallRecord]:
    """A rank's calls in a group."""
    return [r for r in rank.records if isinstance(r, CallRecord) and r.group == group]


def changed(
    run: Sequence[RankRecords], rank: int, change: Callable[[list[CallRecord]], None]
) -> list[RankRecords]:
    """A copy in which the calls of one rank were changed in place."""
    run = copy.deepcopy(list(run))
    change(calls_of(run[rank]))
    return run


def with_skip(run: Sequence[RankRecords], rank: int, number: int) -> list[RankRecords]:
    """A copy in which a rank skipped a call: its later ones met others, which hang in their last one."""
    run = copy.deepcopy(list(run))
    own = calls_of(run[rank])
    run[rank].records.remove(own[number])
    for call in own[number + 1 :]:
        call.number -= 1
    for other in run:
        if other.header.rank != rank:
            last = calls_of(other)[-1]
            last.done, last.error = None, "Timed out waiting 60000ms for recv operation to complete"
    return run


def killed(run: Sequence[RankRecords], rank: int, number: int) -> list[RankRecords]:
    """A copy in which a rank was killed before a call, in which the others failed."""
    run = copy.deepcopy(list(run))
    for each in run:
        if each.header.rank == rank:
            later = [r for r in each.records if isinstance(r, CallRecord) and r.number >= number]
            each.records = [r for r in each.records if r not in later and not isinstance(r, EndRecord)]
        else:
            each.records = [r for r in each.records if not isinstance(r, CallRecord) or r.number <= number]
            calls_of(each)[-1].error = "Connection closed by peer"
            each.records.append(EndRecord(at=0.0, error="RuntimeError: Connection closed by peer"))
    return run


def saved_run(folder: Path, run: Sequence[RankRecords]) -> Path:
    """The folder, with the file of each rank as the rank itself writes it."""
    folder.mkdir(exist_ok=True)
    for rank in run:
        lines: list[Header | Record] = [rank.header]
        for record in rank.records:
            if isinstance(record, CallRecord):
                over = OverRecord(id=record.id, done=record.done, waited=record.waited, error=record.error)
                lines += [msgspec.structs.replace(record, done=None, waited=0.0, error=None), over]
            else:
                lines.append(record)
        content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        (folder / rank_file(rank.header.rank, rank.header.restart)).write_bytes(content)
    return folder
