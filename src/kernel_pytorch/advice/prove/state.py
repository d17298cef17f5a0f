"""What a run must leave as it found it: the caller's model, and the state of the process. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .compiler_state import read_configs, write_configs
from .object_state import Memento
from .process_state import same, settings


@dataclass(kw_only=True)
class Preserved:
    """What was found at the end."""

    restored: tuple[str, ...] = ()
    """Names of what had changed, as "the default dtype" or a parameter's."""
    changed: tuple[str, ...] = ()
    """Names of what had changed and could not be restored, with the reason where there is one."""


@contextmanager
def preserved(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Preserved]:
    """Restore a model, its optimizer and the state of the process at the end, also after an exception.

    Of the model: values, gradients, requires_grad, modes, hooks, attributes and what they contain. Of the
    process: generators, default dtype and device, grad mode, autocast, deterministic flags, threads,
    precision, backends, the filters of warnings, and the settings of the compilers that are loaded.
    Closures are not watched, and neither are Dynamo's caches.

    Returns:
        What had changed, known when the context has ended.
    """
    found = Preserved()
    known = [(setting, setting.read()) for setting in settings()]
    configs = read_configs()
    held = Memento(*([model] if optimizer is None else [model, optimizer]))
    with warnings.catch_warnings():
        try:
            yield found
        finally:
            restored: list[str] = []
            lost: list[str] = []
            for setting, old in known:
                if same(setting.read(), old):
                    continue
                if setting.write is not None:
                    setting.write(old)
                back = same(setting.read(), old)
                (restored if back else lost).append(setting.name)
            restored += write_configs(configs)
            names, unrestored = held.restore()
            found.restored = (*restored, *names)
            found.changed = (*lost, *unrestored)
