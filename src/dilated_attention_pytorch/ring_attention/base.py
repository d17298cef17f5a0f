"""What every attention around a ring is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..core.memory.unified_pool import UnifiedMemoryPool
from ..legacy import OldMethods
from .config import RingAttentionConfig


class BaseRingAttention(OldMethods, nn.Module, ABC):
    """Attention whose sequence is spread over ranks. Abstract: subclasses say how.

    Args:
        config: what all ranks agree on.
    """

    def __init__(self, config: RingAttentionConfig | None) -> None:
        super().__init__()
        if not isinstance(config, RingAttentionConfig):
            raise TypeError(f"config must be a RingAttentionConfig, got {type(config).__name__}")
        self.config = config
        strategy = config.memory_pool_strategy
        self.memory_pool = None if strategy is None else UnifiedMemoryPool(strategy)

    @abstractmethod
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map this rank's q ``[b, n/P, h, d]`` and k, v ``[b, n/P, h_kv, d]`` to its ``[b, n/P, h, d]``.

        Args:
            q, k, v: this rank's.
            is_causal: no query sees a later token.
            key_padding_mask: this rank's, ``[b, n/P]``, keys that nobody sees, as for
                :func:`~dilated_attention_pytorch.dilated_attention`.
            return_lse: also return the log-sum-exp of each query's scores, ``[b, h, n/P]``, float32 (float64
                for float64), -inf where nothing is served, not differentiable.
        """

    def extra_repr(self) -> str:
        return repr(self.config)
