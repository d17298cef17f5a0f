"""Copies of a model: equal, and in higher precision. Imports torch."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..sample import Sample
from .compare import compare_outputs
from .limits import describe
from .reach import reachable

MOST_DIFFERENCE = 0.05
"""Relative error of a model against its float64 twin above which they are different functions."""

_ANEW: dict[type, Callable[[Any], Any]] = {
    type(threading.Lock()): lambda _: threading.Lock(),
    type(threading.RLock()): lambda _: threading.RLock(),
    threading.Condition: lambda _: threading.Condition(),
    threading.Semaphore: lambda old: threading.Semaphore(old._value),
    threading.BoundedSemaphore: lambda old: threading.BoundedSemaphore(old._initial_value),
    threading.Event: lambda old: _event(old.is_set()),
}
"""A free lock for each."""
_WIDE = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


class UncopyableError(Exception):
    """A model of which there is no copy; the message says why."""


def copy_of(model: nn.Module) -> nn.Module:
    """An equal model that shares nothing that changes with the given one.

    Where ``deepcopy`` fails, as on stored tensors with a history, locks, generators of torch and modules of
    Python, these are copied, made anew or shared. Parameters of one memory stay so. Gradients, and marks of
    ``model.compile()``, are not copied.

    Raises:
        UncopyableError: with the reason.
    """
    held = list(reachable(model))
    memo = made_anew(held) | dict(_tensor_copies([x for x in held if isinstance(x, torch.Tensor)]))
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise UncopyableError(describe(error)) from error
    _check_apart(model, copied)
    return copied


def made_anew(held: Iterable[Any]) -> dict[int, Any]:
    """By id, a copy of each generator of torch and lock, and each module of Python itself."""
    memo: dict[int, Any] = {}
    for value in held:
        if isinstance(value, torch.Generator):
            memo[id(value)] = value.clone_state()
        elif isinstance(value, ModuleType):
            memo[id(value)] = value
        elif type(value) in _ANEW:
            memo[id(value)] = _ANEW[type(value)](value)
    return memo


def double_of(model: nn.Module, sample: Sample) -> nn.Module | str:
    """A copy in float64 and complex128, buffers and stored tensors included, or why there is none.

    It is run once, in evaluation mode, beside another copy: one that casts inside raises, and one that is
    another function in float64, as with masks of ``finfo.min``, gives other outputs.

    Raises:
        UncopyableError: the model cannot be copied.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if isinstance(model, torch.jit.ScriptModule) or any(t.is_quantized for t in tensors):
        return "it is quantised or scripted"
    narrow, twin = copy_of(model).eval(), widened(copy_of(model)).eval()
    devices = {t.device for t in (*tensors, *sample.tensors()) if t.device.type not in ("cpu", "meta")}
    try:
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            torch.manual_seed(0)
            expected = sample.clone().call(narrow)
            torch.manual_seed(0)
            got = widened_sample(sample).call(twin)
    except Exception as error:
        return f"it does not run in float64: {describe(error)}"
    eps = max((torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point()), default=0.0)
    near = compare_outputs(None, expected, got, lossless=False, max_error=max(MOST_DIFFERENCE, 16 * eps))
    if not near.equal:
        return f"it is another function in float64: {near.reason}"
    return widened(copy_of(model))


def widened(model: nn.Module) -> nn.Module:
    """The model itself, with its floating tensors in float64 and its complex ones in complex128."""
    model._apply(wide)  # type: ignore[no-untyped-call]
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                vars(module)[name] = _widened(value)
    return model


def widened_sample(sample: Sample) -> Sample:
    """The same of inputs, which are not changed."""
    return sample.map(lambda t: wide(t.detach()).clone().requires_grad_(t.requires_grad))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float64 or complex128; others as they are."""
    kind = torch.float64 if tensor.is_floating_point() else _WIDE.get(tensor.dtype)
    return tensor if kind is None else tensor.to(kind)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return wide(value)
    if type(value) in (list, tuple):
        return type(value)(_widened(one) for one in value)
    if type(value) is dict:
        return {key: _widened(one) for key, one in value.items()}
    return value


def _tensor_copies(tensors: list[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """By id, what ``deepcopy`` would fail on or would give a memory of its own."""
    users: dict[int, int] = {}
    plain = [t for t in tensors if not is_lazy(t) and t.layout is torch.strided and type(t) in _PLAIN]
    for tensor in plain:
        key = tensor.untyped_storage()._cdata
        users[key] = users.get(key, 0) + 1
    memories: dict[int, torch.UntypedStorage] = {}
    for tensor in plain:
        storage = tensor.untyped_storage()
        if users[storage._cdata] > 1:
            memory = memories.setdefault(storage._cdata, storage.clone())  # type: ignore[no-untyped-call]
            yield id(tensor), _on(memory, tensor)
        elif not tensor.is_leaf:
            yield id(tensor), tensor.detach().clone().requires_grad_(tensor.requires_grad)


_PLAIN = (torch.Tensor, nn.Parameter)


def _on(memory: torch.UntypedStorage, tensor: torch.Tensor) -> torch.Tensor:
    shape, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(memory, offset, shape, strides)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def _check_apart(model: nn.Module, copied: nn.Module) -> None:
    held = {_address(t): name for name, t in _tensors(model)}
    for name, tensor in _tensors(copied):
        if tensor.numel() and _address(tensor) in held:
            raise UncopyableError(f"its copy shares {name} with it")


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_lazy(tensor) and tensor.layout is torch.strided and not tensor.is_meta:
            yield name, tensor


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _event(is_set: bool) -> threading.Event:
    made = threading.Event()
    if is_set:
        made.set()
    return made
