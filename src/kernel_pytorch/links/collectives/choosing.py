"""What the calls of an operation, a dtype and a size do, agreed on between the ranks of a group."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ..choose import Choice, Chooser
from ..facts import MeasuredLinks
from ..methods import CommunicationPattern, CompressionMethod
from .groups import Group

_WORTH = 0.9
"""Of the expected time without compression: what it must be below for ADAPTIVE to compress."""


class Choosing:
    """A chooser, and the agreement that is on its way."""

    def __init__(
        self,
        expected_s: Mapping[CommunicationPattern, float | None],
        compression: CompressionMethod,
        note: str = "",
        only: str = "as asked for",
    ) -> None:
        """``expected_s``: as of :class:`..choose.Chooser`.

        Args:
            note: what each reason ends with.
            only: the reason, if there is one pattern.
        """
        self.compression, self.note, self._why = compression, note, only
        self._chooser = Chooser(expected_s)
        self._asked = len(expected_s) == 1
        self._only = next(iter(expected_s))
        self._agreement: tuple[dist.Work, Tensor] | None = None

    def next(self) -> Choice:
        """What the next call does."""
        if self._asked:
            return Choice(pattern=self._only, reason=self._why)
        if self._chooser.due:
            assert self._agreement is not None
            work, times = self._agreement
            work.wait()
            self._chooser.agreed(times.tolist())
            self._agreement = None
        return self._chooser.next()

    def took(self, seconds: float, group: Group, device: torch.device) -> None:
        """Tell what the call took; the slowest rank's times travel while the next calls go on."""
        times = None if self._asked else self._chooser.took(seconds)
        if times is None:
            return
        mine = torch.tensor(times, device=device)
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=group.group, async_op=True)
        assert work is not None
        self._agreement = work, mine


def worth_it(
    raw: Mapping[CommunicationPattern, float | None],
    encoded: Mapping[CommunicationPattern, float | None],
    links: MeasuredLinks,
    below_gbit_s: float,
) -> tuple[bool, str]:
    """Whether to compress, and why, to be added to a reason."""
    without = [seconds for seconds in raw.values() if seconds is not None]
    with_it = [seconds for seconds in encoded.values() if seconds is not None]
    if not without or not with_it:
        return False, "; not compressed: the links are not known"
    between = [link.gbit_s.value for link in links.links if link.source != link.target]
    if min(between, default=below_gbit_s) >= below_gbit_s:
        return False, f"; not compressed: links between hosts have {below_gbit_s:g} Gbit/s or more"
    told = f"{min(with_it) * 1e3:.3g} ms expected, {min(without) * 1e3:.3g} ms without"
    worth = min(with_it) < _WORTH * min(without)
    return worth, f"; compressed: {told}" if worth else f"; not compressed: {told}"
