"""The condition of this node, as evidence."""

from __future__ import annotations


def evidence() -> str | None:
    """One line about faulty components of this node; None: there are none, or they are not known."""
    return None
