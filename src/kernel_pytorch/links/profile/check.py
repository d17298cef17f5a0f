"""Agreeing on a call before it is made: slow, but it raises on every rank where the call would go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ...groups import GroupError, tell_all

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .calls import What
    from .record import CallRecord


class Intent(msgspec.Struct, kw_only=True):
    """The call that a rank is about to make."""

    operation: str
    reduce: str | None
    dtype: str | None
    sizes: list[int]
    """Elements of each tensor of the input, where the operation wants them the same on all ranks."""
    root: int | None
    number: int
    step: int
    site: str
    sent: list[int] | None = None
    """Elements to each rank; of an all_to_all only."""
    received: list[int] | None = None

    def told(self) -> str:
        """In words."""
        parts = [self.operation]
        if self.reduce is not None:
            parts.append(self.reduce)
        parts.append(f"of {' '.join(map(str, self.sizes))}" if self.sizes else "")
        parts.append(self.dtype or "")
        parts.append("" if self.root is None else f"root {self.root}")
        where = self.site or "an unknown line"
        return f"{' '.join(part for part in parts if part)} at {where} in step {self.step}"


class Checker:
    """Compares the calls of a group's ranks.

    Args:
        group: another one of the same ranks, on which nothing else is sent.
        ranks: in the job, of the group's ranks.
    """

    def __init__(self, group: ProcessGroup, ranks: Sequence[int]) -> None:
        self._group, self._ranks = group, ranks

    def check(self, what: What, record: CallRecord) -> None:
        """Return when all ranks are about to make this call.

        Raises:
            GroupError: on all ranks alike: they are about to make different ones. Or a rank has failed, or
                makes no call within the group's timeout.
        """
        unequal = what.sent is not None or (what.operation, what.peer) == ("scatter", None)
        mine = Intent(
            operation=what.operation,
            reduce=what.reduce,
            dtype=record.dtype,
            sizes=[] if unequal else self._sizes(what),
            root=record.peer,
            number=record.number,
            step=record.step,
            site=record.site,
            sent=what.sent,
            received=what.received,
        )
        self.agree(mine)

    def agree(self, mine: Intent) -> None:
        """As :meth:`check`, of a call that is made of others."""
        try:
            answers = tell_all(lambda: msgspec.json.encode(mine), self._group, what="say what it calls")
        except GroupError as error:
            raise GroupError(f"before {mine.told()}: {error}") from error
        found = differences([msgspec.json.decode(answer, type=Intent) for answer in answers], self._ranks)
        if found is not None:
            raise GroupError(f"the ranks are about to make different calls: {found}")

    def _sizes(self, what: What) -> list[int]:
        sizes = [tensor.numel() for tensor in what.tensors]
        if what.operation == "scatter" and len(sizes) > 1:  # the root's, of which each rank gets one
            return sizes[:1]
        return sizes


def differences(calls: Sequence[Intent], ranks: Sequence[int]) -> str | None:
    """Which ranks differ from the others, and how; None: none does.

    Args:
        calls: by place in the group.
        ranks: in the job, by place in the group.
    """
    fields = ("operation", "reduce", "dtype", "sizes", "root", "step")
    # Where there is a root, right programs call from different lines: the root's, and that of the others.
    keys = [
        (*(repr(getattr(call, field)) for field in fields), _short(call.site) if call.root is None else "")
        for call in calls
    ]
    counted = Counter(keys).most_common()
    if len(counted) > 1:
        parts = []
        for key, _ in reversed(counted):  # the odd ones first
            places = [place for place, other in enumerate(keys) if other == key]
            parts.append(f"{_names([ranks[place] for place in places])} {calls[places[0]].told()}")
        return "; ".join(parts)
    for place, call in enumerate(calls):
        for other, theirs in enumerate(calls):
            sent, wanted = (call.sent or [])[other:][:1], (theirs.received or [])[place:][:1]
            if sent != wanted:
                return (
                    f"{call.operation} at {call.site}: rank {ranks[place]} has {sent[0] if sent else 0} "
                    f"elements for rank {ranks[other]}, which expects {wanted[0] if wanted else 0}"
                )
    return None


def _short(site: str) -> str:
    """Without the folder, which may differ between hosts."""
    return site.replace("\\", "/").rpartition("/")[2]


def _names(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}:" if len(ranks) == 1 else f"ranks {' '.join(map(str, ranks))}:"
