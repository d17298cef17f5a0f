"""LongNet's dilated attention: exact forward and backward, and models that train and run."""

from .core.pattern import DilatedPattern
from .dilated_attention import DilatedAttention, dilated_attention
from .factory import create_dilated_attention, create_multihead_dilated_attention
from .models import LongNetConfig, LongNetEncoder, LongNetLM
from .multihead_dilated_attention import MultiheadDilatedAttention

__all__ = [
    "DilatedAttention",
    "DilatedPattern",
    "LongNetConfig",
    "LongNetEncoder",
    "LongNetLM",
    "MultiheadDilatedAttention",
    "create_dilated_attention",
    "create_multihead_dilated_attention",
    "dilated_attention",
]
