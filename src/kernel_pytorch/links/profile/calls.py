"""What a call of a process group's method is about, from its arguments.

Tensors are only asked for their shape, dtype and size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Arguments = Sequence[Any]


class What(NamedTuple):
    """A call, as its rank sees it."""

    operation: str
    reduce: str | None
    tensors: list[Tensor]
    """This rank's input; of a rank that gives none, what it receives."""
    nbytes: int | None
    """As of :attr:`.CallRecord.nbytes`."""
    peer: int | None
    """In the group: the root, or the other rank of a message."""
    sent: list[int] | None = None
    """Elements to each rank of the group, in an all_to_all."""
    received: list[int] | None = None


def flat(tensors: Any) -> list[Tensor]:
    """A tensor, a list of them, or lists in a list, as one list."""
    if not isinstance(tensors, (list, tuple)):
        return [tensors]
    if tensors and isinstance(tensors[0], (list, tuple)):
        return [tensor for inner in tensors for tensor in inner]
    return list(tensors)


def total(tensors: Sequence[Tensor]) -> int:
    """Bytes."""
    return tensors[0].nbytes if len(tensors) == 1 else sum(tensor.nbytes for tensor in tensors)


_REDUCTIONS: dict[object, str] = {}


def _reduction(options: Any) -> str:
    """sum, avg, max and so on, of options, a ReduceOp, or None for the default."""
    if options is None:
        return "sum"
    kind = getattr(options, "reduceOp", options)
    kind = getattr(kind, "op", kind)
    name = _REDUCTIONS.get(kind)
    if name is None:
        name = _REDUCTIONS[kind] = str(kind).rpartition(".")[2].lower()
    return name


def _option(given: Arguments, named: Mapping[str, Any], at: int, *names: str) -> Any:
    if len(given) > at:
        return given[at]
    return next((named[name] for name in ("opts", *names) if name in named), None)


def _root(options: Any) -> int | None:
    root = getattr(options, "rootRank", options)
    return root if isinstance(root, int) else None


def _all_reduce(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    tensors = flat(given[0])
    reduce = _reduction(_option(given, named, 1, "op"))
    return What("all_reduce", reduce, tensors, total(tensors), None)


def _reduce(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    tensors, options = flat(given[0]), _option(given, named, 1, "root")
    op = options if hasattr(options, "reduceOp") else _option(given, named, 2, "op")
    return What("reduce", _reduction(op), tensors, total(tensors), _root(options))


def _broadcast(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    tensors, options = flat(given[0]), _option(given, named, 1, "root")
    root = 0 if options is None else _root(options)
    return What("broadcast", None, tensors, total(tensors), root)


def _all_gather(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    return What("all_gather", None, flat(given[1]), total(flat(given[0])), None)


def _gather(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    outputs, inputs = flat(given[0]), flat(given[1])
    nbytes = total(outputs) if outputs else size * total(inputs)
    return What("gather", None, inputs, nbytes, _root(_option(given, named, 2, "root")))


def _scatter(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    outputs, inputs = flat(given[0]), flat(given[1])
    nbytes = total(inputs) if inputs else size * total(outputs)
    return What("scatter", None, inputs or outputs, nbytes, _root(_option(given, named, 2, "root")))


def _reduce_scatter(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    inputs = flat(given[1])
    return What("reduce_scatter", _reduction(_option(given, named, 2, "op")), inputs, total(inputs), None)


def _all_to_all(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    outputs, inputs = flat(given[0]), flat(given[1])
    received = [tensor.numel() for tensor in outputs]
    sent = [tensor.numel() for tensor in inputs]
    return What("all_to_all", None, inputs, total(inputs), None, sent, received)


def _all_to_all_single(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    output, input, received, sent = given[:4]
    return What(
        "all_to_all",
        None,
        [input],
        input.nbytes,
        None,
        _pieces(input, sent, size),
        _pieces(output, received, size),
    )


def _pieces(tensor: Tensor, splits: Sequence[int], size: int) -> list[int]:
    """Elements of each piece along the first dimension."""
    if not splits:
        return [tensor.numel() // size] * size
    row = tensor.numel() // max(sum(splits), 1)
    return [row * split for split in splits]


def _send(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    tensors = flat(given[0])
    return What("send", None, tensors, total(tensors), given[1])


def _recv(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    tensors = flat(given[0])
    return What("recv", None, tensors, total(tensors), given[1])


def _recv_anysource(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    tensors = flat(given[0])
    return What("recv", None, tensors, total(tensors), None)


def _barrier(given: Arguments, named: Mapping[str, Any], size: int) -> What:
    return What("barrier", None, [], 0, None)


DESCRIPTIONS: dict[str, Callable[[Arguments, Mapping[str, Any], int], What]] = {
    "allreduce": _all_reduce,
    "allreduce_coalesced": _all_reduce,
    "reduce": _reduce,
    "broadcast": _broadcast,
    "allgather": _all_gather,
    "all_gather_single": _all_gather,
    "_allgather_base": _all_gather,
    "allgather_coalesced": _all_gather,
    "all_gather_single_coalesced": _all_gather,
    "allgather_into_tensor_coalesced": _all_gather,
    "gather": _gather,
    "scatter": _scatter,
    "reduce_scatter": _reduce_scatter,
    "reduce_scatter_single": _reduce_scatter,
    "_reduce_scatter_base": _reduce_scatter,
    "reduce_scatter_single_coalesced": _reduce_scatter,
    "reduce_scatter_tensor_coalesced": _reduce_scatter,
    "alltoall": _all_to_all,
    "all_to_all_single": _all_to_all_single,
    "alltoall_base": _all_to_all_single,
    "send": _send,
    "recv": _recv,
    "recv_anysource": _recv_anysource,
    "barrier": _barrier,
}
"""By the name of the method, in any PyTorch from 2.11 on. Arguments: by position, by name, ranks."""


def positional(args: Arguments, named: Mapping[str, Any]) -> Arguments:
    """The arguments by position, also where all were given by name."""
    return args or list(named.values())
