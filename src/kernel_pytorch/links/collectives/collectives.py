"""Collectives of a process group, with the results of torch's, by the fastest of several patterns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from ...groups import GroupError, in_process_group
from ..facts import MeasuredLinks
from ..measure import check_seconds, home_of_this_rank, measure_links
from ..methods import CommunicationPattern, CompressionMethod, Operation
from ..schedule.worker import Worker
from ..topology import regrouped
from . import gather
from .carry import Carrier
from .counters import Call
from .dense import check, check_op, check_writable, flat, write_back
from .device import Ready
from .groups import Group, alone, make_group, names_of, ordered
from .handle import Handle
from .settings import Settings

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
_WITH_FEEDBACK = (CompressionMethod.TOPK, CompressionMethod.POWERSGD)


class Collectives:
    """Collectives of the ranks of a process group.

    All ranks make it together, and make the same calls in the same order, each from one thread. Each rank
    carries out its calls one after the other, on one thread and a group of their own: other groups go on
    meanwhile. After a call has failed, all later ones raise, for what was on its way is lost.
    """

    def __init__(
        self,
        process_group: ProcessGroup | None = None,
        *,
        links: MeasuredLinks | Callable[[], MeasuredLinks | None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Make the group. All ranks call this; alone, without a process group, a rank is a world of one.

        Args:
            process_group: default: all ranks.
            links: of its ranks, as measured or given; those of the first rank count. Its hosts are believed.
                Or a function that returns them; what it raises is told to the other ranks. Default: hosts are
                found, nothing is known of their links.
            settings: default: ADAPTIVE, nothing compressed.

        Raises:
            GroupError: the ranks disagree, or one did not answer within the timeout.
            ValueError: links of another number of ranks, or a compression that needs error feedback.
        """
        settings = settings or Settings()

        def known() -> MeasuredLinks | None:
            if settings.compression in _WITH_FEEDBACK:
                raise ValueError(
                    f"compression {settings.compression.value} needs error feedback, which a call has not: "
                    "use register_comm_hook"
                )
            return links() if callable(links) else links

        if in_process_group():
            group = make_group(process_group, known, home_of_this_rank, {"settings": repr(settings)})
        else:
            group = alone(known())
        self._parent = process_group
        self._carrier = Carrier(group, settings)
        self._worker = Worker("collectives")
        self._failed: GroupError | None = None
        # At exit too: the other ranks wait for what was begun.
        self._close = weakref.finalize(self, self._worker.close)

    @property
    def group(self) -> Group:
        """Its ranks, hosts and links."""
        return self._carrier.group

    @property
    def communication_groups(self) -> dict[str, list[int]]:
        """Who works with whom, as global ranks: each host, those that exchange between hosts, the ring."""
        return names_of(self.group)

    @property
    def last(self) -> Call | None:
        """What the last call did that is done."""
        return self._carrier.counters.last

    def stats(self) -> dict[str, Any]:
        """As of :meth:`.counters.Counters.stats`."""
        return self._carrier.counters.stats()

    def all_reduce(
        self, tensor: Tensor, op: str = "sum", *, pattern: CommunicationPattern | None = None
    ) -> Handle[Tensor]:
        """Reduce ``tensor`` over all ranks, in place, and return it: the same bits on all ranks.

        Integers, and floats whose sums are whole, are as torch's ``all_reduce`` gives them bit by bit, other
        floats within rounding. Compression, if the settings have it, is of the sums and means of floats of 32
        bits or more.

        Args:
            tensor: of the same shape and dtype on all ranks, in any layout in which elements share no memory.
            op: sum, mean (of floats), max, min or product.
            pattern: default: that of the settings.

        Raises:
            TypeError: not dense, or without that reduction. ValueError: unknown ``op``, or elements share
            memory. GroupError: an earlier call failed. From the handle, GroupError: this one did.
        """
        check(tensor)
        check_op(tensor, op)
        check_writable(tensor)

        def reduce() -> Tensor:
            values = flat(tensor)
            self._carrier.carry(
                Operation.ALL_REDUCE, values, (values.numel(),), "sum" if op == "mean" else op, pattern
            )
            if op == "mean":
                values /= self.group.size
            write_back(values, tensor)
            return tensor

        return self._submit(Operation.ALL_REDUCE, tensor, reduce, lambda: tensor, op)

    def all_gather(
        self,
        tensor: Tensor,
        out: Sequence[Tensor] | None = None,
        *,
        pattern: CommunicationPattern | None = None,
    ) -> Handle[list[Tensor]]:
        """What all ranks have, by rank. First dimensions may differ; ranks tell each other their shapes.

        Args:
            tensor: of any dtype, the same on all ranks.
            out: where to put it, which also tells the shapes. Given on all ranks or on none.
            pattern: default: that of the settings.

        Raises:
            As :meth:`all_reduce`; ValueError: ``out`` is not of a tensor for each rank, of its dtype.
        """
        check(tensor)
        gather.check_outputs(tensor, out, self.group)
        return self._submit(
            Operation.ALL_GATHER,
            tensor,
            lambda: gather.all_gather(self._carrier, tensor, out, pattern),
            lambda: gather.placed([flat(tensor).clone().view(tensor.shape)], out),
        )

    def reduce_scatter(
        self,
        tensor: Tensor,
        op: str = "sum",
        sizes: Sequence[int] | None = None,
        *,
        pattern: CommunicationPattern | None = None,
    ) -> Handle[Tensor]:
        """This rank's rows of the reduction of ``tensor`` over all ranks. ``tensor`` stays as it is.

        Args:
            tensor: [N, ...], of the same shape and dtype on all ranks.
            op: sum, mean (of floats), max, min or product.
            sizes: how many rows each rank gets; default: as equally many as possible.
            pattern: default: that of the settings.

        Raises:
            As :meth:`all_reduce`; ValueError: no rows, or sizes that are not theirs.
        """
        check(tensor)
        check_op(tensor, op)
        sizes = gather.rows_of(tensor, sizes, self.group.size)
        return self._submit(
            Operation.REDUCE_SCATTER,
            tensor,
            lambda: gather.reduce_scatter(self._carrier, tensor, op, sizes, pattern),
            lambda: flat(tensor).clone().view(tensor.shape),
            op,
        )

    def all_to_all(
        self,
        tensor: Tensor,
        output_sizes: Sequence[int] | None = None,
        input_sizes: Sequence[int] | None = None,
    ) -> Handle[Tensor]:
        """The rows that the ranks have for this one, by rank, as torch's ``all_to_all_single``.

        Args:
            tensor: [N, ...], of the same dtype and row shape on all ranks.
            output_sizes: how many rows each rank has for this one. Given on all ranks or on none; default:
                ranks tell each other.
            input_sizes: how many rows this rank has for each; default: equally many.

        Raises:
            As :meth:`all_reduce`; ValueError: no rows, sizes that are not theirs, or no equal shares.
        """
        check(tensor)
        sizes = gather.shares_of(tensor, input_sizes, self.group.size)
        gather.check_sizes(output_sizes, self.group.size, "output_sizes")
        own = sizes[self.group.place]
        if output_sizes is not None and output_sizes[self.group.place] != own:
            raise ValueError(
                f"output_sizes must have {own} for this rank, as input_sizes have, got {list(output_sizes)}"
            )
        return self._submit(
            Operation.ALL_TO_ALL,
            tensor,
            lambda: gather.all_to_all(self._carrier, tensor, sizes, output_sizes),
            lambda: flat(tensor).clone().view(tensor.shape),
        )

    def measure(self, seconds: float = 3.0) -> MeasuredLinks:
        """Measure the links, on which choices are based from now on. All ranks call this and wait for it.

        Nothing else may use the process group that this was made from meanwhile. Hosts that were given are
        still believed: the links are those between them (:func:`..topology.regrouped`).

        Raises:
            As :func:`..measure.measure_links`.
        """
        check_seconds(seconds)

        def measure() -> MeasuredLinks:
            parent = self._parent or dist.group.WORLD
            assert parent is not None
            links = regrouped(measure_links(parent, seconds=seconds), self.group.links.hosts)
            self._carrier.regroup(ordered(replace(self.group, links=links), parent))
            return links

        if self.group.group is None:
            return self.group.links
        return self._submit(None, None, measure, lambda: self.group.links).result()

    def close(self) -> None:
        """Wait for what was begun, and end the thread."""
        self._close()

    def _submit(
        self,
        operation: Operation | None,
        tensor: Tensor | None,
        action: Callable[[], T],
        alone: Callable[[], T],
        op: str | None = None,
    ) -> Handle[T]:
        """Have the worker do it; ``alone`` in a world of one. With an ``op`` all ranks have one shape."""
        if self.group.group is None:
            done: Future[T] = Future()
            done.set_result(alone())
            return Handle(done)
        if self._failed is not None:
            raise GroupError(f"an earlier call failed, and made the group useless: {self._failed}")
        if tensor is not None:
            self._check_device(tensor)
        what, agree = "measuring" if operation is None else operation.value, None
        if tensor is not None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            if (agreement := getattr(self.group.group, "agreement", None)) is not None:  # a recording group's
                agree = agreement(what, op, dtype, [tensor.numel()] if op else [])
            what = f"{what} of {dtype} {list(tensor.shape)}"
        ready = Ready(tensor)

        def act() -> T:
            if self._failed is not None:
                raise GroupError(f"{what}: an earlier call failed: {self._failed}")
            try:
                with ready:
                    if agree is not None:
                        agree()
                    return action()
            except gather.DisagreementError:
                raise  # all ranks found it, and sent nothing since
            except Exception as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                self._failed = GroupError(f"{what} among global ranks {list(self.group.ranks)}: {reason}")
                raise self._failed from error

        return Handle(self._worker.submit(act))

    def _check_device(self, tensor: Tensor) -> None:
        backend = self.group.backend(tensor.device)
        if backend is None or (backend == "gloo" and tensor.device.type != "cpu"):
            raise ValueError(
                f"tensor is on {tensor.device}, for which the process group has {backend or 'no backend'}: "
                "use another group, or tensor.cpu()"
            )
