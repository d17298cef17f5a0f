"""Submodules that a strategy can change together, found in a call that was watched. Imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy

from .watching import Tag, Watched

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def shared_input_linears(model: nn.Module, watched: Watched) -> tuple[tuple[str, ...], ...]:
    """Linear layers of one parent that were given the same tensor, in the order of their calls."""
    groups: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for path, module in model.named_modules():
        call = watched.once(path)
        if type(module) is not nn.Linear or _is_special(module) or call is None or call.given is None:
            continue
        weight = module.weight
        kind = (weight.dtype, weight.device, weight.requires_grad, module.bias is None)
        groups.setdefault((_parent(path), call.given, kind), []).append((call.began, path))
    return tuple(tuple(path for _, path in sorted(group)) for group in groups.values() if len(group) > 1)


def conv_batch_norms(model: nn.Module, watched: Watched) -> tuple[tuple[str, str], ...]:
    """A convolution and the batch norm that alone reads its output."""
    given: dict[Tag, str] = {}
    for path, module in model.named_modules():
        if type(module) in _CONVOLUTIONS and not _is_special(module):
            call = watched.once(path)
            if call is not None and call.gave is not None and call.gave[0] not in watched.returned:
                given[call.gave] = path
    pairs = []
    for path, module in model.named_modules():
        call = watched.once(path)
        if type(module) not in _BATCH_NORMS or _is_special(module) or call is None or call.given is None:
            continue
        convolution = given.get(call.given)
        if (
            convolution is not None
            and watched.readers[call.given[0]] == 1
            and module.running_mean is not None
        ):
            pairs.append((convolution, path))
    return tuple(pairs)


def repeated_blocks(model: nn.Module, watched: Watched) -> tuple[str, ...]:
    """Paths of the family of equal blocks with the most parameters, that run one after the other.

    Blocks are of one class and one parent, contain other modules, and have parameters of equal shapes.
    """
    families: dict[tuple[object, ...], list[str]] = {}
    for path, module in model.named_modules():
        if any(is_lazy(parameter) for parameter in module.parameters()):
            continue  # it has no shape yet
        shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in module.named_parameters())
        if path and shapes and watched.calls.get(path) and next(module.children(), None) is not None:
            families.setdefault((_parent(path), type(module), shapes), []).append(path)
    best: tuple[str, ...] = ()
    most = 0
    for family in families.values():
        size = sum(p.numel() for path in family for p in model.get_submodule(path).parameters())
        if len(family) > 1 and size > most and _one_after_the_other(family, watched):
            best, most = tuple(sorted(family, key=lambda path: watched.calls[path][0].began)), size
    return best


def _one_after_the_other(paths: Iterable[str], watched: Watched) -> bool:
    spans = sorted((call.began, call.ended) for path in paths for call in watched.calls[path])
    return all(first[1] < second[0] for first, second in itertools.pairwise(spans))


def _is_special(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS) or hasattr(module, "parametrizations")


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
