"""Messages between the ranks of a ring: every wait knows whom it waits for.

Ranks here are ranks in the process group, which is always given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

_HEADER_BYTES = 1024
_TROUBLE_CHARACTERS = 400

Message = tuple[int, Tensor]
"""A peer, and the tensor that goes to it or comes from it."""


class RingError(RuntimeError):
    """A rank of the ring has failed, or works on another problem than this one."""


class Pending:
    """Messages under way. Tensors they use must not be touched before :meth:`wait` returns."""

    def __init__(self, group: ProcessGroup, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Post messages, in the same order as the peers post theirs: ``(peer, tensor)`` each."""
        ops = [
            dist.P2POp(op, tensor, group=group, group_peer=peer)
            for op, messages in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in messages
        ]
        self._peers = [peer for peer, _ in (*sends, *receives)]
        self._tensors = [op.tensor for op in ops]
        try:
            self._works = dist.batch_isend_irecv(ops) if ops else []
        except RuntimeError as error:
            peers = sorted(set(self._peers))
            raise RingError(
                f"could not post messages to or from ranks {peers} of the ring: {error}"
            ) from error
        self._group = group

    def wait(self) -> None:
        """Return when all have been sent and received.

        Raises:
            RingError: naming the peer that failed, or did not answer within the group's timeout.
        """
        # One work for each message, or one for all of them where the backend coalesces.
        peers = self._peers if len(self._works) == len(self._peers) else [None] * len(self._works)
        for work, peer in zip(self._works, peers, strict=True):
            try:
                work.wait()
            except RuntimeError as error:
                raise _failure(self._peers if peer is None else [peer], self._group, error) from error
        self._works = []
        self._tensors = []


def _failure(peers: Sequence[int], group: ProcessGroup, error: RuntimeError) -> RingError:
    named = sorted(set(peers))
    who = f"rank {named[0]}" if len(named) == 1 else f"one of the ranks {named}"
    reason = str(error).split("\n")[0]
    return RingError(
        f"rank {dist.get_rank(group)} of the ring waited for {who} of {dist.get_world_size(group)}, "
        f"which failed or did not answer: {reason}"
    )


def agree(
    group: ProcessGroup, header: Mapping[str, Any], device: torch.device, trouble: str | None = None
) -> list[dict[str, Any]]:
    """Exchange headers with every rank, and return them by rank.

    Args:
        group: all of its ranks call this.
        header: what must be the same everywhere, but for fields whose name begins with an underscore.
        device: one that the group's backend sends from.
        trouble: why this rank cannot go on; the others then raise it.

    Raises:
        RingError: naming the rank whose header differs, and what differs in it; or the rank that failed.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if trouble is not None:  # short, and of characters that JSON does not write as six
        trouble = trouble.encode("ascii", "replace").decode()[:_TROUBLE_CHARACTERS]
    told = {**header, "_trouble": trouble}
    mine = _encode(told).to(device)
    theirs = torch.empty(world, _HEADER_BYTES, dtype=torch.uint8, device=device)
    peers = [peer for peer in range(world) if peer != rank]
    Pending(group, [(peer, mine) for peer in peers], [(peer, theirs[peer]) for peer in peers]).wait()
    theirs[rank] = mine
    headers = [json.loads(bytes(row).rstrip(b"\0")) for row in theirs.tolist()]
    for peer, other in enumerate(headers):
        if other["_trouble"] is not None:
            raise RingError(f"rank {peer} of the ring cannot go on: {other['_trouble']}")
    for peer, other in enumerate(headers):
        differing = [
            f"{name} is {headers[rank].get(name)} on rank {rank} and {other.get(name)} on rank {peer}"
            for name in sorted(headers[rank].keys() | other.keys())
            if not name.startswith("_") and headers[rank].get(name) != other.get(name)
        ]
        if differing:
            raise RingError(f"the ranks of the ring disagree: {'; '.join(differing)}")
    return headers


def tell(group: ProcessGroup, device: torch.device, trouble: str) -> None:
    """Say in the place of :func:`agree` why this rank cannot go on, so that nobody waits for it."""
    with suppress(RingError):
        agree(group, {}, device, trouble)


def _encode(header: Mapping[str, Any]) -> Tensor:
    text = json.dumps(header)
    if len(text) > _HEADER_BYTES:  # many branches: digests of what is long
        parts = {name: json.dumps(value) for name, value in header.items()}
        long = {name for name, part in parts.items() if len(part) > 100 and name != "_trouble"}
        digests = {name: hashlib.sha256(parts[name].encode()).hexdigest()[:16] for name in long}
        text = json.dumps({**header, **digests})
    assert len(text) <= _HEADER_BYTES
    return torch.tensor(list(text.encode().ljust(_HEADER_BYTES, b"\0")), dtype=torch.uint8)
