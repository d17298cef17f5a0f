"""The state of the process that torch and its users share: read, and set again. Imports torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One part of the state."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None
    """None: it can be set once only."""


def settings() -> list[Setting]:
    """All parts but the compilers' settings."""
    known = [
        Setting(name="torch's generator", read=torch.get_rng_state, write=torch.set_rng_state),
        Setting(name="random's generator", read=random.getstate, write=random.setstate),
        Setting(name="numpy's generator", read=_numpy_state, write=np.random.set_state),
        Setting(name="the default dtype", read=torch.get_default_dtype, write=torch.set_default_dtype),
        Setting(name="the default device", read=torch.get_default_device, write=_set_device),
        Setting(name="grad mode", read=torch.is_grad_enabled, write=torch._C._set_grad_enabled),
        Setting(name="anomaly mode", read=_anomaly, write=lambda old: torch.set_anomaly_enabled(*old)),
        Setting(name="deterministic algorithms", read=_deterministic, write=_set_deterministic),
        Setting(name="the number of threads", read=torch.get_num_threads, write=torch.set_num_threads),
        Setting(name="the number of interoperator threads", read=torch.get_num_interop_threads, write=None),
        Setting(
            name="float32 matmul precision",
            read=torch.get_float32_matmul_precision,
            write=torch.set_float32_matmul_precision,
        ),
        Setting(
            name="the fast path of attention",
            read=torch.backends.mha.get_fastpath_enabled,
            write=torch.backends.mha.set_fastpath_enabled,
        ),
        Setting(
            name="autocast's cache",
            read=torch.is_autocast_cache_enabled,
            write=torch.set_autocast_cache_enabled,
        ),
        Setting(name="the hooks of all modules", read=_global_hooks, write=_set_global_hooks),
        *_autocast(),
        *_attention(),
        *_cudnn(),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        known.append(
            Setting(
                name="the generators of CUDA",
                read=torch.cuda.get_rng_state_all,
                write=torch.cuda.set_rng_state_all,
            )
        )
    return known


def same(first: Any, second: Any) -> bool:
    """Whether two readings are equal, with tensors and arrays in them."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def _numpy_state() -> Any:
    return np.random.get_state(legacy=True)


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # the CPU needs no function mode


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _deterministic() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def _set_deterministic(old: tuple[bool, bool, bool]) -> None:
    torch.use_deterministic_algorithms(old[0], warn_only=old[1])
    torch.utils.deterministic.fill_uninitialized_memory = old[2]  # type: ignore[attr-defined]


def _autocast() -> Iterator[Setting]:
    for device in ("cpu", "cuda"):

        def read(device: str = device) -> tuple[bool, torch.dtype]:
            return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def write(old: tuple[bool, torch.dtype], device: str = device) -> None:
            torch.set_autocast_enabled(device, old[0])
            torch.set_autocast_dtype(device, old[1])

        yield Setting(name=f"autocast on {device}", read=read, write=write)


def _attention() -> Iterator[Setting]:
    of = torch.backends.cuda
    for name, read, write in (
        ("flash", of.flash_sdp_enabled, of.enable_flash_sdp),
        ("memory-efficient", of.mem_efficient_sdp_enabled, of.enable_mem_efficient_sdp),
        ("unfused", of.math_sdp_enabled, of.enable_math_sdp),
        ("cuDNN's", of.cudnn_sdp_enabled, of.enable_cudnn_sdp),
    ):
        yield Setting(name=f"{name} attention", read=read, write=write)


def _cudnn() -> Iterator[Setting]:
    of = torch.backends.cudnn
    for name in ("enabled", "benchmark", "deterministic"):
        yield Setting(
            name=f"torch.backends.cudnn.{name}",
            read=partial(getattr, of, name),
            write=partial(setattr, of, name),
        )


def _global_hooks() -> dict[str, dict[Any, Any]]:
    return {
        name: dict(getattr(torch.nn.modules.module, name))
        for name in _HOOKS
        if hasattr(torch.nn.modules.module, name)
    }


def _set_global_hooks(old: dict[str, dict[Any, Any]]) -> None:
    for name, hooks in old.items():
        now = getattr(torch.nn.modules.module, name)
        now.clear()
        now.update(hooks)
