"""Configuration of ring attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

from kernel_pytorch.legacy import warn_or_refuse

from ..core.memory.unified_pool import STRATEGIES
from ..core.sharding import Sharding, check_sharding
from ..core.validation import check_branches, check_no_dropout, check_softmax_scale
from ..kernels.backends import Backend
from .group import Ring

T = TypeVar("T")


def _also_by_position(cls: type[T]) -> type[T]:
    """Let a keyword-only dataclass take its fields by position too, with a DeprecationWarning."""
    by_keyword = cls.__init__

    @wraps(by_keyword)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        named = dict(zip(names, args, strict=False))
        if args:
            call = _call(cls.__name__, {**named, **kwargs})
            warn_or_refuse(
                f"{cls.__name__} takes keywords: {call}; positions are refused",
                DeprecationWarning,
                TypeError,
                stacklevel=2,
            )
        by_keyword(self, *args[len(names) :], **named, **kwargs)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


def _call(name: str, keywords: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in keywords.items())})"


@_also_by_position
@dataclass(frozen=True, kw_only=True)
class RingAttentionConfig:
    """What all ranks of a ring must agree on.

    Raises:
        TypeError, ValueError: naming the field and its value.
    """

    segment_lengths: Sequence[int]
    """Segment length of each branch, in tokens of the whole sequence."""
    dilation_rates: Sequence[int]
    """Dilation rate of each branch."""
    dropout: float = 0.0
    """Must be 0.0."""
    ring_size: int | None = None
    """Ranks in the ring, checked against the group's; without a group: key blocks merged on one device."""
    softmax_scale: float | None = None
    """Factor on the dot products; None for ``head_dim ** -0.5``."""
    sharding: Sharding = "contiguous"
    """Which positions a rank holds: see ``shard_sequence``."""
    overlap_communication: bool = True
    """Send the next block of keys and values while computing with the current one."""
    memory_pool_strategy: str | None = None
    """Strategy of the :class:`UnifiedMemoryPool` that message buffers come from; None: the allocator."""
    backend: Backend = "auto"
    """``"auto"``, ``"sdpa"`` or ``"triton"``."""

    def __post_init__(self) -> None:
        segments, rates = check_branches(self.segment_lengths, self.dilation_rates)
        object.__setattr__(self, "segment_lengths", segments)
        object.__setattr__(self, "dilation_rates", rates)
        check_no_dropout("dropout", self.dropout)
        check_softmax_scale(self.softmax_scale)
        check_sharding(self.sharding)
        if not isinstance(self.overlap_communication, bool):
            raise TypeError(f"overlap_communication must be bool, got {self.overlap_communication!r}")
        size = self.ring_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"ring_size must be None or an int of at least 1, got {self.ring_size!r}")
        if self.memory_pool_strategy not in (None, *STRATEGIES):
            raise ValueError(
                f"memory_pool_strategy must be None or one of {', '.join(STRATEGIES)}, "
                f"got {self.memory_pool_strategy!r}"
            )
        if self.backend not in ("auto", "sdpa", "triton"):
            raise ValueError(
                f"backend must be 'auto', 'sdpa' or 'triton' around a ring, got {self.backend!r}"
            )


def of_old_call(
    name: str, config: RingAttentionConfig | None, process_group: Ring, old: dict[str, Any]
) -> tuple[RingAttentionConfig | None, Ring]:
    """The configuration and the group from a module's arguments, old or new.

    Earlier versions of the modules took what is now in the configuration: segment lengths and dilation rates
    instead of ``config`` and ``process_group``, or all of it by keyword (``old``).

    Args:
        name: of the module's class.

    Raises:
        TypeError: ``old`` holds something else, there is a configuration too, or old calls are removed.
    """
    if isinstance(config, (list, tuple)):
        by_position, config = {"segment_lengths": config}, None
        if isinstance(process_group, (list, tuple)):
            by_position["dilation_rates"], process_group = process_group, None
        old = dict(**by_position, **old)
    if not old:
        return config, process_group
    ignored = [key for key in ("device", "dtype") if key in old and "segment_lengths" in old]
    old = {key: value for key, value in old.items() if key not in ignored}
    known = [field.name for field in fields(RingAttentionConfig)]
    unknown = [key for key in old if key not in (*known, "enable_memory_pool")]
    if unknown:
        raise TypeError(
            f"{name} takes a config and a process_group: {name}(RingAttentionConfig(segment_lengths=..., "
            f"dilation_rates=...), process_group); got {', '.join(unknown)}"
        )
    if config is not None:
        raise TypeError(f"{name} takes a config or what older versions took, got both: {', '.join(old)}")
    if old.pop("enable_memory_pool", False):
        old.setdefault("memory_pool_strategy", "adaptive")
    new = _call("RingAttentionConfig", old) + (", process_group" if process_group else "")
    no_effect = f"{' and '.join(ignored)} without effect (the module has no parameters); " if ignored else ""
    warn_or_refuse(
        f"{name} takes a config: {name}({new}); {no_effect}the old call is refused",
        DeprecationWarning,
        TypeError,
        stacklevel=3,
    )
    return RingAttentionConfig(**old), process_group
