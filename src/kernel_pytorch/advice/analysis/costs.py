"""A call's costs by submodule and by operator, from what was counted and measured. Imports torch."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ..facts import ModuleCost, OperatorCost
from .flops import FlopCount
from .places import place_of_forward
from .profile import Profile
from .survey import Survey


def module_costs(model: nn.Module, spent: Profile | None, flops: FlopCount | None) -> tuple[ModuleCost, ...]:
    """Of the submodules that ran, in the model's order; of all if nothing is known."""
    costs = []
    for path, module in model.named_modules():
        times = spent.modules.get(path) if spent else None
        count = flops.by_module.get(path) if flops else None
        if times is None and count is None and (spent or flops):
            continue
        costs.append(
            ModuleCost(
                path=path,
                kind=type(module).__name__,
                place=place_of_forward(type(module)),
                calls=times.calls if times else 0,
                seconds=times.seconds if times else None,
                flops=(count or 0) if flops else None,
            )
        )
    return tuple(costs)


def operator_costs(
    spent: Profile | None, found: Survey | None, flops: FlopCount | None, moved: dict[str, int] | None
) -> tuple[OperatorCost, ...]:
    """The dearest first: by seconds, or by FLOPs and bytes where they were not measured."""
    counted = Counter(operation.name for operation in found.operations) if found else Counter[str]()
    times = spent.operators if spent else {}
    costs = []
    for name in dict.fromkeys((*times, *counted)):
        known = name in counted  # the fused encoder layer is timed whole and counted in parts
        costs.append(
            OperatorCost(
                name=name,
                calls=times[name].calls if name in times else counted[name],
                seconds=times[name].seconds if name in times else None,
                flops=flops.by_operator.get(name, 0) if flops and known else None,
                bytes=moved.get(name, 0) if moved is not None and known else None,
            )
        )
    return tuple(sorted(costs, key=lambda c: (-(c.seconds or 0.0), -(c.flops or 0), -(c.bytes or 0))))
