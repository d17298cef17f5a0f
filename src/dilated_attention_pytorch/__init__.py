"""LongNet's dilated attention: exact forward and backward, and models that train and run."""

import sys

from kernel_pytorch import __version__ as __version__

from . import attention
from .attention import DilatedAttention, dilated_attention
from .core.memory import UnifiedMemoryPool
from .core.pattern import DilatedPattern
from .factory import create_dilated_attention, create_multihead_dilated_attention
from .kernels.hilbert import hilbert_order
from .legacy import renamed
from .models import LongNetConfig, LongNetEncoder, LongNetLM
from .multihead_dilated_attention import MultiheadDilatedAttention
from .replacement import dense_state_dict, replace_attention
from .ring_attention import (
    BaseRingAttention,
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    RingDistributedDilatedAttention,
    shard_sequence,
    unshard_sequence,
)
from .ring_attention.utils.lse import merge_lse
from .ring_attention.variants.hilbert import HilbertMixin

__all__ = [
    "BaseRingAttention",
    "DilatedAttention",
    "DilatedPattern",
    "HilbertMixin",
    "LongNetConfig",
    "LongNetEncoder",
    "LongNetLM",
    "MultiheadDilatedAttention",
    "RingAttentionConfig",
    "RingDilatedAttention",
    "RingDilatedAttentionHilbert",
    "RingDistributedDilatedAttention",
    "UnifiedMemoryPool",
    "create_dilated_attention",
    "create_multihead_dilated_attention",
    "dense_state_dict",
    "dilated_attention",
    "hilbert_order",
    "merge_lse",
    "replace_attention",
    "shard_sequence",
    "unshard_sequence",
]

# Before it was called attention, the module had the name of its function. Both are still imported by it:
# `from dilated_attention_pytorch.dilated_attention import X` and `import ...dilated_attention as m; m.X`.
sys.modules[f"{__name__}.dilated_attention"] = attention
vars(dilated_attention).update({name: getattr(attention, name) for name in attention.__all__})


def __getattr__(name: str) -> object:
    return renamed(name, __name__)
