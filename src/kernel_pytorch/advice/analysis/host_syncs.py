"""Finds the calls for which the host waits for the device. Imports torch."""

from __future__ import annotations

import torch

from . import blame, source
from .calls_watch import FunctionCall
from .observations import HostSync
from .operators import Operator, Where

_SHOWN = {
    "item": ".item()",
    "tolist": ".tolist()",
    "cpu": ".cpu()",
    "numpy": ".numpy()",
    "__array__": "numpy.asarray()",
    "__bool__": "bool()",
    "__int__": "int()",
    "__float__": "float()",
    "__index__": "an index",
    "__repr__": "printing a tensor",
    "__format__": "formatting a tensor",
    "nonzero": "nonzero()",
    "argwhere": "argwhere()",
    "masked_select": "masked_select()",
    "unique": "unique()",
    "equal": "torch.equal()",
    "allclose": "torch.allclose()",
    "is_nonzero": "is_nonzero()",
}
_SEEN = {name.strip("_") for name in _SHOWN} | {"getitem", "setitem"}


class HostSyncs:
    """Observes calls, and operators inside of other calls."""

    def __init__(self) -> None:
        self.found_at: dict[Where, tuple[str, int]] = {}

    def saw(self, call: FunctionCall) -> None:
        shown = _SHOWN.get(call.full_name)
        if call.name == "to" and _moves_to_cpu(call):
            shown = '.to("cpu")'
        if call.name in ("getitem", "setitem") and len(call.args) > 1 and _has_mask(call.args[1]):
            shown = "an index of booleans"
        if shown is not None:
            site = call.sites[-1]
            self._add((site.file, site.line), shown)

    def see(self, operator: Operator) -> None:
        call = operator.run.call
        if operator.name != "_local_scalar_dense" or operator.where is None:
            return
        if call is None or call.name not in _SEEN:
            self._add(operator.where, f"{call.name}()" if call is not None else ".item()")

    def _add(self, where: Where, shown: str) -> None:
        first, calls = self.found_at.get(where, (shown, 0))
        self.found_at[where] = (first, calls + 1)

    def found(self) -> tuple[HostSync, ...]:
        return tuple(
            HostSync(place=blame.place(*where), call=shown, calls=calls, statement=source.text(*where))
            for where, (shown, calls) in self.found_at.items()
        )


def _moves_to_cpu(call: FunctionCall) -> bool:
    return bool(
        call.inputs and call.outputs and call.inputs[0].device.type != "cpu" == call.outputs[0].device.type
    )


def _has_mask(index: object) -> bool:
    parts = index if isinstance(index, (tuple, list)) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)
