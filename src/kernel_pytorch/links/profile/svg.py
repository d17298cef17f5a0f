"""Pieces of an inline SVG. Colours are those of the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def picture(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """A whole picture; ``label`` is read out in its place."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def words(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text; ``kind``: its class."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
