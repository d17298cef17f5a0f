"""Pictures of a report as inline SVG. Colours are those of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from statistics import median

from ..links.profile.svg import picture, words
from .facts import AdviceReport, ModelFacts, ModuleCost, Trial
from .units import count, interval, printable, seconds, size

_WIDTH, _LEFT, _ROW, _PLOT = 960, 240, 24, 300
_MOST_MODULES = 24


class _Log:
    """A logarithmic axis around values, on whole powers of ten.

    Args:
        start, end: coordinates of the least and the greatest power.
    """

    def __init__(self, values: Iterable[float], start: float, end: float) -> None:
        powers = [math.log10(value) for value in values]
        self.low, self.start = math.floor(min(powers)), start
        self.high = max(math.ceil(max(powers)), self.low + 1)
        self._step = (end - start) / (self.high - self.low)

    def at(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) * self._step

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def roofline(facts: ModelFacts) -> str:
    """FLOP/s over FLOPs for each byte, of the call and of the operators whose time and FLOPs are known."""
    peaks, bandwidth = facts.roofline.flops, facts.roofline.memory_gb_s
    if not peaks or bandwidth is None:
        why = "; ".join(facts.roofline.unmeasured.values())
        return _nothing("The machine's peaks were not measured" + (f": {why}" if why else ""))
    points: list[tuple[str, float | None, float | None, float | None, str]] = [
        (f"{each.name}, {each.calls} calls", each.flops, each.bytes, each.seconds, "s1")
        for each in facts.operators
    ]
    points.append(("the whole call", facts.flops.value, facts.traffic.value, facts.call.value, "s3"))
    shown = [
        (name, flops / moved, flops / spent, kind)
        for name, flops, moved, spent, kind in points
        if flops and moved and spent
    ]
    memory = 1e9 * bandwidth
    corners = [peak / memory for peak in peaks.values()]
    x = _Log(
        [*(point[1] for point in shown), *corners, min(corners) / 10, max(corners) * 10], 90, _WIDTH - 120
    )
    y = _Log([*(point[2] for point in shown), *peaks.values(), min(peaks.values()) / 100], _PLOT, 10)
    parts = [
        _columns(x, _PLOT, lambda value: f"{value:g}"),
        _rows(y, x, lambda value: f"{count(value)}FLOP/s"),
    ]
    for number, (dtype, peak) in enumerate(sorted(peaks.items(), key=lambda pair: pair[1])):
        begin = max(10.0**x.low, 10.0**y.low / memory)
        corner = peak / memory
        line = ((begin, begin * memory), (corner, peak), (10.0**x.high, peak))
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in line if b >= 10.0**y.low)
        parts.append(f'<polyline class="roof" points="{path}"/>')
        parts.append(words(_WIDTH - 115, y.at(peak) + 4 + 13 * (number % 2), dtype))
    for name, intensity, rate, kind in shown:
        title = f"{printable(name)}\n{count(rate)}FLOP/s at {intensity:.3g} FLOPs a byte"
        parts.append(_dot(x.at(intensity), y.at(rate), kind, title))
    parts.append(words(_WIDTH / 2, _PLOT + 36, "FLOPs for each byte read or written", "middle"))
    return picture(_WIDTH, _PLOT + 46, parts, "Roofline")


def times(report: AdviceReport) -> str:
    """Seconds of the submodules of a call before; of the whole also after."""
    known = [module for module in report.facts.modules if module.path and module.seconds is not None]
    dearest = sorted(known, key=lambda module: -(module.seconds or 0.0))[:_MOST_MODULES]
    found = report.result if report.kept else None
    if found is not None and found.pairs:
        before, after = (median(times) for times in zip(*found.pairs, strict=True))
        whole = [("the whole call", before, "s0", ""), ("the whole call, optimised", after, "s2", "")]
    elif report.facts.call.value is not None:
        whole = [("the whole call", report.facts.call.value, "s0", "")]
    else:
        return _nothing(f"The call was not timed: {report.facts.call.why}")
    bars = whole + [(module.path, module.seconds or 0.0, "s1", _module(module)) for module in dearest]
    scale = (_WIDTH - _LEFT - 90) / max(bar[1] for bar in bars)
    parts = []
    for row, (name, spent, kind, title) in enumerate(bars):
        y = row * _ROW
        shown = name if len(name) <= 34 else "..." + name[-31:]
        parts.append(words(_LEFT - 8, y + 16, printable(shown), "end"))
        parts.append(
            f'<rect class="{kind}" x="{_LEFT}" y="{y + 3}" width="{max(spent * scale, 1):.1f}" height="17">'
            f"<title>{escape(printable(title or name))}</title></rect>"
        )
        parts.append(words(_LEFT + spent * scale + 6, y + 16, seconds(spent)))
    return picture(_WIDTH, len(bars) * _ROW + 4, parts, "Time by module")


def _module(module: ModuleCost) -> str:
    flops = f", {count(module.flops)}FLOPs" if module.flops else ""
    place = f" at {module.place}" if module.place else ""
    return f"{module.path}: {module.kind}{place}, {module.calls} calls{flops}"


def memory(facts: ModelFacts) -> str:
    """Predicted peak memory by length, and the limit."""
    peaks = [(each.length, each.peak) for each in facts.lengths]
    known = [(length, peak.value, peak.at_least) for length, peak in peaks if peak.value]
    if not known:
        return _nothing("No other lengths were asked for" if not peaks else "No peak is known")
    limit = facts.memory_limit
    x = _Log([length for length, _, _ in known], _LEFT, _WIDTH - 120)
    y = _Log([*(peak for _, peak, _ in known), *([limit] if limit else [])], _PLOT, 10)
    parts = [_columns(x, _PLOT, lambda value: f"{value:,.0f}"), _rows(y, x, size)]
    if limit:
        parts.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - 120}" y1="{y.at(limit):.1f}" '
            f'y2="{y.at(limit):.1f}"/>'
        )
        parts.append(words(_WIDTH - 115, y.at(limit) + 4, f"{size(limit)} allowed"))
    path = " ".join(f"{x.at(length):.1f},{y.at(peak):.1f}" for length, peak, _ in known)
    parts.append(f'<polyline class="s0 thin" points="{path}"/>')
    for length, peak, at_least in known:
        title = f"{length:,}: {'at least ' * at_least}{size(peak)}"
        parts.append(_dot(x.at(length), y.at(peak), "s0", title))
    parts.append(words(_WIDTH / 2, _PLOT + 36, "length", "middle"))
    return picture(_WIDTH, _PLOT + 46, parts, "Memory by length")


def pairs(trials: Sequence[Trial]) -> str:
    """Each pair of each trial as a point: how many times as fast the candidate was; and the interval."""
    timed = [trial for trial in trials if trial.pairs]
    if not timed:
        return _nothing("Nothing was timed")
    ratios = [[before / after for before, after in trial.pairs if after > 0] for trial in timed]
    every = [ratio for found in ratios for ratio in found]
    every += [end for trial in timed for end in (trial.low, trial.high) if end is not None and end > 0]
    low, high = min(0.9, *every), max(1.1, *every)
    scale = (_WIDTH - _LEFT - 20) / math.log(high / low)

    def x(ratio: float) -> float:
        return _LEFT + math.log(min(max(ratio, low), high) / low) * scale

    bottom = len(timed) * _ROW * 2
    parts = [
        f'<line class="{"one" if ratio == 1 else "grid"}" x1="{x(ratio):.1f}" x2="{x(ratio):.1f}" y1="0" '
        f'y2="{bottom}"/>' + words(x(ratio), bottom + 18, f"{ratio:g}", "middle")
        for ratio in (0.1, 0.2, 0.5, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50)
        if low <= ratio <= high
    ]
    for row, (trial, found) in enumerate(zip(timed, ratios, strict=True)):
        y, kind = row * _ROW * 2, "s2" if trial.verdict == "kept" else "s3"
        parts.append(words(_LEFT - 8, y + 22, printable(trial.strategy)[:34], "end"))
        if trial.low is not None and trial.high is not None:
            title = f"{interval(trial.gain, trial.low, trial.high)}, {trial.verdict}"
            parts.append(
                f'<rect class="{kind} pale" x="{x(trial.low):.1f}" y="{y + 6}" height="{_ROW}" '
                f'width="{max(x(trial.high) - x(trial.low), 1):.1f}"><title>{escape(title)}</title></rect>'
            )
        for number, ratio in enumerate(found):
            height = y + 8 + (_ROW - 4) * (number + 0.5) / len(found)  # in the order measured, from the top
            parts.append(_dot(x(ratio), height, kind, f"pair {number + 1}: {ratio:.3f}", 3))
    what = "times as fast as the best so far; the result: as the original"
    parts.append(words((_LEFT + _WIDTH) / 2, bottom + 36, what, "middle"))
    return picture(_WIDTH, bottom + 46, parts, "Pairs of each trial")


def _dot(x: float, y: float, kind: str, title: str, radius: int = 4) -> str:
    tip = f"<title>{escape(title)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{tip}</circle>'


def _columns(x: _Log, bottom: float, label: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="grid" x1="{x.at(v):.1f}" x2="{x.at(v):.1f}" y1="10" y2="{bottom}"/>'
        + words(x.at(v), bottom + 18, label(v), "middle")
        for v in x.ticks()
    )


def _rows(y: _Log, x: _Log, label: Callable[[float], str]) -> str:
    left, right = x.start, x.at(10.0**x.high)
    return "".join(
        f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y.at(v):.1f}" y2="{y.at(v):.1f}"/>'
        + words(left - 8, y.at(v) + 4, label(v), "end")
        for v in y.ticks()
    )


def _nothing(why: str) -> str:
    return f"<p>{escape(printable(why))}.</p>"
