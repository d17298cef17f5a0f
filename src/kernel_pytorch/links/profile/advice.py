"""What the cost model expects of other patterns and orders than those that a job used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..collectives.steps import plan
from ..cost import expected
from ..facts import MeasuredLinks
from ..methods import CommunicationPattern, Operation
from ..order import rank_order
from .join import Collective, Run, named

_LEAST_SHARE = 0.1
"""Of the time that a collective takes: the cost model is not exact enough for less."""

Kind = tuple[Operation, int]
"""An operation of all ranks, and its bytes."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Something else to do, with what the cost model expects of it."""

    text: str
    operation: str
    nbytes: int
    pattern: CommunicationPattern
    order: tuple[int, ...]
    """The ranks in a ring, a tree or a butterfly."""
    expected_ms: float
    expected_now_ms: float
    """Of a ring in the order of the ranks, which is what gloo does."""
    gain_ms_per_step: float
    """The same share of the time that the collectives really took, but no more than the model expects."""


def recommendations(run: Run, links: MeasuredLinks) -> list[Recommendation]:
    """For each operation and size the best pattern, if the model expects a gain; the greatest gain first.

    Only for operations of all ranks that are known to take time: the links are those between all ranks.
    """
    found = []
    order = rank_order(links).ranks
    for (operation, nbytes), collectives in kinds(run, links.size).items():
        in_steps = [each for each in collectives if each.first.step]
        steps = {each.first.step for each in in_steps}
        now = pattern_s(operation, nbytes, links, CommunicationPattern.RING)
        if not steps or not now:
            continue
        options = [
            (seconds, pattern, ranks)
            for pattern in CommunicationPattern
            if pattern is not CommunicationPattern.ADAPTIVE
            for ranks in (tuple(range(links.size)), order)
            if (seconds := pattern_s(operation, nbytes, links, pattern, ranks)) is not None
        ]
        best, pattern, ranks = min(options, key=lambda option: option[0])
        moving = sum(min(each.moving_s or 0.0, now) for each in in_steps)
        gain = 1e3 * moving * (1 - best / now) / len(steps)
        if best > (1 - _LEAST_SHARE) * now:
            continue
        how = pattern.value
        if ranks != tuple(range(links.size)) and pattern is not CommunicationPattern.HIERARCHICAL:
            how += f" in the order {' '.join(map(str, ranks))}"
        found.append(
            Recommendation(
                text=f"{named(operation.value, nbytes)}: {how}, expected {1e3 * best:.3g} ms instead of "
                f"{1e3 * now:.3g}: {gain:.3g} ms less in each step",
                operation=operation.value,
                nbytes=nbytes,
                pattern=pattern,
                order=ranks,
                expected_ms=1e3 * best,
                expected_now_ms=1e3 * now,
                gain_ms_per_step=gain,
            )
        )
    return sorted(found, key=lambda each: -each.gain_ms_per_step)


def kinds(run: Run, size: int) -> dict[Kind, list[Collective]]:
    """The collectives of all ranks that the cost model knows."""
    known = {operation.value for operation in Operation} - {Operation.ALL_TO_ALL.value}
    found: dict[Kind, list[Collective]] = defaultdict(list)
    for each in run.collectives:
        call = each.first
        of_all = each.moving_s is not None and each.ranks == tuple(range(size))
        if of_all and call.operation in known and call.nbytes:
            found[Operation(call.operation), call.nbytes].append(each)
    return found


def pattern_s(
    operation: Operation,
    nbytes: int,
    links: MeasuredLinks,
    pattern: CommunicationPattern,
    order: Sequence[int] | None = None,
) -> float | None:
    """What the cost model expects of a collective of all ranks; None: a link was not measured."""
    edges = [nbytes * rank // links.size for rank in range(links.size + 1)]
    (steps,) = plan(operation, pattern, edges, links.hosts, order) or [[]]
    return expected(steps, links, 1.0).seconds
