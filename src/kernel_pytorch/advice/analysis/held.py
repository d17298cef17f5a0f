"""The memory that operators on fake tensors would hold. Imports torch."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

HIDING = {
    "aten::convolution": "convolutions",
    "aten::_convolution": "convolutions",
    "aten::mkldnn_convolution": "convolutions",
    "aten::convolution_backward": "convolutions",
    "aten::mkldnn_rnn_layer": "LSTM",
    "aten::mkldnn_rnn_layer_backward": "LSTM",
    "aten::_cudnn_rnn": "RNN",
    "aten::_cudnn_rnn_backward": "RNN",
    "aten::_transformer_encoder_layer_fwd": "the encoder layers' fast path",
    "aten::_native_multi_head_attention": "the fast path of attention",
}
"""Operators that allocate inside what no fake tensor shows."""
_WRAPPERS = tuple(str(Path(torch.__file__).with_name(name)) for name in ("_dynamo", "_compile.py"))
"""Files of what PyTorch puts between an operator and a mode."""
_PRODUCTS = ("aten::mm", "aten::bmm")
_OWN = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional")


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operators make, and how much of them lives at once.

    Args:
        known: tensors that are there before, and count for nothing.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Bytes."""
        self.peak = 0
        """Bytes at most."""
        self.hiding: dict[str, None] = {}
        """What ran and allocates more than is seen, in order."""
        self._product: tuple[int | None, object] = (None, None)
        """Storage of the last matrix product, and the instruction of Python that called it."""
        self._before = [tensor.untyped_storage() for tensor in known if tensor.layout is torch.strided]
        self._live: dict[int, object] = {storage._cdata: storage for storage in self._before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note what it made."""
        kwargs = kwargs or {}
        before, peak = self.now, self.peak
        result = func(*args, **kwargs)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        name = func._schema.name if isinstance(func, torch._ops.OpOverload) else func.name()
        at = _instruction()
        if name in _PRODUCTS:
            self._product = (result.untyped_storage()._cdata, at)
        elif name == "aten::add" and self._product == (_key_of(args[0]), at) and _is_row(args[1]):
            # The bias of a linear layer, added in place where no mode watches.
            self.peak = max(peak, self.now - args[0].untyped_storage().nbytes())
        if name in HIDING:
            self.hiding[HIDING[name]] = None
        elif name.partition("::")[0] not in _OWN:
            self.hiding[name] = None
        if name in _SCRATCH:
            self.peak = max(self.peak, max(before, self.now) + _SCRATCH[name](*args))
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided:
            for part in _parts(tensor):
                self._see(part)
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _key_of(tensor: Any) -> int | None:
    strided = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
    return tensor.untyped_storage()._cdata if strided else None


def _is_row(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.dim() == 1


def _instruction() -> tuple[int, int]:
    """Where Python called the operator: equal for all operators of one call into PyTorch."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_WRAPPERS):
        frame = frame.f_back
    return id(frame), frame.f_lasti


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return []


def _attention_scratch(query: torch.Tensor, key: torch.Tensor, *_: object) -> int:
    """Of fused attention on CPU: a block of scores per thread, with sums and outputs of its rows.

    Letters: query (b, h, n, d), key (b, h, m, d).
    """
    rows, columns, width = _block(query, key)
    scores = rows * columns
    reduced = scores * query.element_size() if query.element_size() < 4 else 0
    return torch.get_num_threads() * ((scores + 2 * rows + rows * width) * _accumulator(query) + reduced)


def _attention_backward_scratch(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: object
) -> int:
    """Of its backward: two blocks per thread."""
    rows, columns, _width = _block(query, key)
    reduced = query.element_size() if query.element_size() < 4 else 0
    return torch.get_num_threads() * 2 * rows * columns * (_accumulator(query) + reduced)


def _block(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int, int]:
    """Rows and columns of a block of scores, and the head dimension, in the kernel of PyTorch 2.13."""
    length = query.shape[-2]
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, key.shape[-2]), query.shape[-1]


def _accumulator(query: torch.Tensor) -> int:
    return max(4, query.element_size())


_SCRATCH: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention_scratch,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward_scratch,
    "aten::convolution": lambda images, weight, *_: math.prod(weight.shape) * weight.element_size(),
}
"""Bytes that an operator allocates and frees inside, of its arguments, where that is known."""
