"""Models that use dilated attention."""

from .long_net import LongNetConfig, LongNetEncoder, LongNetLM

__all__ = ["LongNetConfig", "LongNetEncoder", "LongNetLM"]
