"""Exchanges between the ranks of a process group that do not hang when a rank fails.

All ranks of a group call these functions in the same order, each from one thread. Ranks are ranks in the
group.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import KernelPytorchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

Message = tuple[int, "Tensor"]
"""A peer, and the tensor that goes to it or comes from it."""

_BLOCK_BYTES = 1024
_HEAD = struct.Struct("!?I")  # whether the action raised; length of the content in bytes


class GroupError(KernelPytorchError, RuntimeError):
    """A rank of the group failed, did not respond, or disagrees with this one."""


class RankFailed(GroupError):  # noqa: N818  (what happened to another rank)
    """A rank of the group reported why it cannot go on."""


def tell_all(
    action: Callable[[], bytes],
    group: ProcessGroup | None = None,
    *,
    what: str = "go on",
    device: torch.device | None = None,
) -> list[bytes]:
    """Result of ``action`` on each rank, by rank; only this process's outside a process group.

    A rank whose action raises sends the reason instead. KeyboardInterrupt and SystemExit are not sent, since
    they must end a process at once: the others raise when it has ended, or after the group's timeout.

    Args:
        action: returns this rank's answer, of any length. Up to 1,019 bytes need one round of messages.
        group: default: all ranks.
        what: task of ``action``, for the error message "rank ... cannot {what}".
        device: of the messages, if the group has no backend for the CPU; default: the current accelerator.

    Raises:
        Exception: on a rank whose action raised, what it raised.
        RankFailed: elsewhere, naming the first such rank and its reason.
        GroupError: a rank did not answer before its process or the group's timeout ended.
    """
    if group is None and not in_process_group():
        return [action()]
    try:
        answer = action()
    except Exception as error:  # of any kind: the others wait for this rank
        with suppress(GroupError):  # this rank raises its own
            _exchange(True, _reason(error).encode("utf-8", "backslashreplace"), group, device)
        raise
    answers = _exchange(False, answer, group, device)
    for rank, (failed, content) in enumerate(answers):
        if failed:
            raise RankFailed(f"{_name(rank, group)} cannot {what}: {content.decode()}")
    return [content for _, content in answers]


def agree(
    action: Callable[[], Mapping[str, Any]],
    group: ProcessGroup | None = None,
    *,
    what: str = "go on",
    fix: str | None = None,
    device: torch.device | None = None,
) -> list[dict[str, Any]]:
    """:func:`tell_all` of fields that must be the same on all ranks. Tuples become lists, as JSON has none.

    Args:
        action: returns this rank's fields. Those whose name begins with an underscore may differ.
        group, what, device: as for :func:`tell_all`.
        fix: what to do if the ranks disagree.

    Raises:
        GroupError: as of :func:`tell_all`, or the ranks disagree: the same message on all ranks, with two of
            them and their values.
    """
    answers = tell_all(lambda: json.dumps(action()).encode(), group, what=what, device=device)
    first, *others = fields = [json.loads(answer) for answer in answers]
    for rank, other in enumerate(others, 1):
        differing = [
            f"{name} is {first.get(name)} on rank 0 and {other.get(name)} on rank {rank}"
            for name in sorted(first.keys() | other.keys())
            if not name.startswith("_") and first.get(name) != other.get(name)
        ]
        if differing:
            raise GroupError(f"the ranks of the group disagree: {'; '.join(differing)}", fix)
    return fields


_ABANDONED: list[object] = []
"""Messages with one that failed. The others may still be in flight: without their buffers gloo would write
what arrives into freed memory, and a peer that lives would wait for its message to be taken."""


class Pending:
    """Messages in flight. Their tensors must not be used before :meth:`wait` returns."""

    def __init__(self, group: ProcessGroup, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Post messages, in the same order as the peers post theirs: ``(peer, tensor)`` each."""
        import torch.distributed as dist

        ops = [
            dist.P2POp(op, tensor, group=group, group_peer=peer)
            for op, messages in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in messages
        ]
        self._group = group
        self._tensors = [op.tensor for op in ops]
        self._works: list[tuple[dist.Work, list[int]]] = []
        failed: tuple[RuntimeError, list[int]] | None = None
        # With gloo each by itself: what can be posted is, for the peers that wait for it.
        apart = bool(ops) and ops[0].tensor.device.type == "cpu"
        for batch in [[op] for op in ops] if apart else [ops] if ops else []:
            peers = [op.group_peer for op in batch]
            try:
                works = dist.batch_isend_irecv(batch)
            except RuntimeError as error:
                failed = failed or (error, peers)
                continue
            # One work for each message, or one for all of them where the backend coalesces.
            each = [[peer] for peer in peers] if len(works) == len(peers) else [peers] * len(works)
            self._works += zip(works, each, strict=True)
        if failed is not None:
            _ABANDONED.append((self._works, self._tensors))
            first, peers = failed
            raise self._failure("could not post messages to or from", peers, first) from first

    def wait(self) -> None:
        """Return when all have been sent and received.

        Raises:
            GroupError: naming the peer that failed, or did not answer within the group's timeout.
        """
        for work, peers in self._works:
            try:
                work.wait()
            except RuntimeError as error:
                _ABANDONED.append((self._works, self._tensors))
                raise self._failure("waited for", peers, error) from error
        self._works = []
        self._tensors = []

    def _failure(self, did: str, peers: Sequence[int], error: RuntimeError) -> GroupError:
        import torch.distributed as dist

        reason = str(error).split("\n")[0]
        named = [_name(peer, self._group) for peer in sorted(set(peers))]
        who = named[0] if len(named) == 1 else f"one of {', '.join(named)}"
        return GroupError(
            f"{_name(dist.get_rank(self._group), self._group)} {did} {who}, "
            f"which failed or did not answer: {reason}"
        )


def in_process_group() -> bool:
    """Whether torch.distributed runs in this process."""
    torch = sys.modules.get("torch")  # a process group can only be there if torch is
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _exchange(
    failed: bool, answer: bytes, group: ProcessGroup | None, device: torch.device | None
) -> list[tuple[bool, bytes]]:
    """Every rank's ``failed`` and ``answer``, by rank."""
    message = _HEAD.pack(failed, len(answer)) + answer
    blocks = _exchange_equal(message[:_BLOCK_BYTES].ljust(_BLOCK_BYTES, b"\0"), group, device)
    heads = [_HEAD.unpack_from(block) for block in blocks]
    size = _HEAD.size + max(length for _, length in heads)
    if size > _BLOCK_BYTES:  # every rank sees the same lengths
        rests = _exchange_equal(message.ljust(size, b"\0")[_BLOCK_BYTES:size], group, device)
        blocks = [block + rest for block, rest in zip(blocks, rests, strict=True)]
    return [
        (failed, block[_HEAD.size : _HEAD.size + length])
        for (failed, length), block in zip(heads, blocks, strict=True)
    ]


def _exchange_equal(content: bytes, group: ProcessGroup | None, device: torch.device | None) -> list[bytes]:
    """Every rank's ``content``, by rank; equally long on all of them."""
    import torch
    import torch.distributed as dist

    group = group or dist.group.WORLD
    assert group is not None
    direct = "cpu:" in dist.get_backend_config(group)
    if direct:
        device = torch.device("cpu")
    mine = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    mine = mine.to(device or torch.accelerator.current_accelerator())
    theirs = mine.new_empty(dist.get_world_size(group), len(content))
    if direct:
        # Messages between all pairs, so that each rank notices at once which one died: in gloo's all-gather
        # only the neighbours of a dead rank notice, and not which it was.
        rank = dist.get_rank(group)
        peers = [peer for peer in range(len(theirs)) if peer != rank]
        Pending(group, [(peer, mine) for peer in peers], [(peer, theirs[peer]) for peer in peers]).wait()
        theirs[rank] = mine
    else:
        # NCCL does not name the failed rank either way, and connections between all pairs would use GPU
        # memory.
        try:
            dist.all_gather(list(theirs), mine, group=group)
            theirs = theirs.cpu()
        except RuntimeError as error:
            raise GroupError(f"a rank of the group failed or did not answer: {error}") from error
    return [row.tobytes() for row in theirs.numpy()]


def _name(rank: int, group: ProcessGroup | None) -> str:
    import torch.distributed as dist

    name = f"rank {rank} of {dist.get_world_size(group)}"
    everywhere = rank if group is None else dist.get_global_rank(group, rank)
    return name if everywhere == rank else f"{name} (global rank {everywhere})"


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:
        return f"{kind}, whose message cannot be printed"
