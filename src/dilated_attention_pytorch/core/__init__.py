"""The pattern, shards, argument checks and the buffer pool."""

from ..legacy import renamed


def __getattr__(name: str) -> object:
    return renamed(name, __name__)
