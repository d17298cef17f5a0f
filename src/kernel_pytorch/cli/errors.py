from __future__ import annotations


class CommandError(Exception):
    """A user's mistake: the command ends with its message and status 2."""
