"""Figures as people read them. Without torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from .facts import Fact

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """A number with three digits and a prefix, as "3.2 M"; whole ones below 1,000 as they are."""
    for scale, prefix in _DECIMAL:
        if abs(number) >= scale:
            return f"{_short(number / scale)} {prefix}"
    return _short(number)


def size(num_bytes: float) -> str:
    """As "16.8 MB", of 1e6 bytes each."""
    text = count(num_bytes)
    return f"{text}B" if " " in text else f"{text} B"


def seconds(value: float) -> str:
    """As "206 ms"."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{_short(value / scale)} {unit}"
    return f"{_short(1e9 * value)} ns"


def error(value: float | None) -> str:
    """A relative error with two digits, as "6.4e-7" or "0.012"; "-": unknown."""
    if value is None:
        return "-"
    if value == 0 or value >= 1e-3 or not math.isfinite(value):
        return f"{value:.2g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def percent(share: float) -> str:
    """As "17 %", below 1 % with two digits."""
    return f"{100 * share:.2g} %" if 0 < abs(share) < 0.01 else f"{100 * share:.0f} %"


def interval(gain: float | None, low: float | None, high: float | None) -> str:
    """As "1.80 (1.71 to 1.92)"; "-": not measured."""
    if gain is None:
        return "-"
    return f"{gain:.2f}" if low is None or high is None else f"{gain:.2f} ({low:.2f} to {high:.2f})"


def fact(known: Fact, as_text: Callable[[float], str] = count) -> str:
    """A fact's value with how it was got, or "unknown" with the reason."""
    if known.value is None:
        return f"unknown ({known.why})" if known.why else "unknown"
    least = "at least " if known.at_least else ""
    return f"{least}{as_text(known.value)}" + (f" ({known.basis})" if known.basis else "")


def printable(text: str) -> str:
    """One line without control characters: those of a terminal are shown, not obeyed."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(" " if c.isspace() else one for c, one in zip(text, shown, strict=True))


def _short(value: float) -> str:
    """Three digits, without zeros at the end of a fraction."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
