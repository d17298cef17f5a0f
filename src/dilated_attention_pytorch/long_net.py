"""Module of earlier versions: see :mod:`dilated_attention_pytorch.legacy`."""

from .legacy import renamed


def __getattr__(name: str) -> object:
    return renamed(name, __name__)
