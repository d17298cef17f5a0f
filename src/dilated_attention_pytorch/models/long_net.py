"""LongNet (arXiv:2307.02486): its configuration and its two models, under the name of one module.

Models that were pickled whole look up their classes here.
"""

from .blocks import Attend, _Block, _FeedForward
from .config import LongNetConfig
from .encoder import LongNetEncoder
from .language_model import LongNetLM

__all__ = ["Attend", "LongNetConfig", "LongNetEncoder", "LongNetLM", "_Block", "_FeedForward"]
