"""The settings of Dynamo, AOTAutograd and inductor, where they are loaded. Imports torch."""

from __future__ import annotations

import copy
import sys
from typing import Any

NAMES = ("torch._dynamo.config", "torch._functorch.config", "torch._inductor.config")


def read_configs() -> dict[str, dict[str, Any]]:
    """The settings by module; what is not loaded is not loaded for it."""
    return {name: sys.modules[name].get_config_copy() for name in NAMES if name in sys.modules}


def write_configs(before: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Set what differs as it was, of a module loaded since as its defaults are; names of what differed."""
    found = []
    for module, now in read_configs().items():
        old = before[module] if module in before else _defaults(module)
        for name, value in old.items():
            if name in now and now[name] != value:
                setattr(sys.modules[module], name, copy.deepcopy(value))
                found.append(f"{module}.{name}")
    return tuple(found)


def _defaults(module: str) -> dict[str, Any]:
    """What a module has after it is loaded, the environment regarded; of settings that were written only."""
    known = {}
    for name, entry in sys.modules[module]._config.items():
        if entry.alias is None and not sys.modules[module]._is_default(name):
            ways = (entry.env_value_force, entry.env_value_default, entry.default)
            known[name] = next(value for value in ways if not _is_unset(value))
    return known


def _is_unset(value: object) -> bool:
    from torch.utils._config_module import _UNSET_SENTINEL

    return value is _UNSET_SENTINEL
