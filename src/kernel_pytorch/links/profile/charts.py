"""Pictures of a run as inline SVG. Colours are those of the page's style sheet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ..facts import MeasuredLinks
from .clocks import Offset
from .disagree import described
from .join import Collective, Run, named
from .record import CallRecord
from .statistics import OperationStats
from .svg import picture, words

_WIDTH, _LEFT, _ROW = 960, 80, 26
_MOST_RANKS, _MOST_HOSTS, _MOST_CALLS = 64, 32, 200


def timeline(run: Run, offsets: Mapping[int, Offset]) -> str:
    """A typical step, rank by rank; without steps, or with too many calls in one, the last calls."""
    ranks = sorted(run.headers)[:_MOST_RANKS]
    step = _typical_step(run)
    shown = [
        each for each in run.collectives if step is None or any(c.step == step for c in each.calls.values())
    ]
    messages = [
        (rank, call) for rank in ranks for call in run.point_to_point[rank] if step in (None, call.step)
    ]
    shown = sorted(shown, key=lambda each: each.first.posted - offsets[min(each.calls)].seconds)
    shown, messages = shown[-_MOST_CALLS:], messages[-_MOST_CALLS:]
    bars = [bar for each in shown for bar in _bars(each)] + [
        (rank, call.posted, _end(call), "message" if call.error is None else "failed", call)
        for rank, call in messages
    ]
    bars = [bar for bar in bars if bar[0] in ranks]
    if not bars:
        return "<p>No calls.</p>"
    placed = [(r, a - offsets[r].seconds, b - offsets[r].seconds, kind, c) for r, a, b, kind, c in bars]
    low, high = min(bar[1] for bar in placed), max(bar[2] for bar in placed)
    if step is not None:
        begins = [run.steps[r][step] - offsets[r].seconds for r in ranks if step in run.steps[r]]
        ends = [run.steps[r][step + 1] - offsets[r].seconds for r in ranks if step + 1 in run.steps[r]]
        low, high = min([low, *begins]), max([high, *ends])
    scale = (_WIDTH - _LEFT - 20) / max(high - low, 1e-9)
    height = _ROW * len(ranks) + 40
    parts = [_ticks(high - low, scale, height - 30)]
    for row, rank in enumerate(ranks):
        y = row * _ROW
        parts.append(words(_LEFT - 8, y + 17, f"rank {rank}", "end"))
        parts.append(f'<rect class="row" x="{_LEFT}" y="{y + 4}" width="{_WIDTH - _LEFT - 20}" height="18"/>')
    for rank, a, b, kind, call in placed:
        x, width = _LEFT + (a - low) * scale, max((b - a) * scale, 0.5)
        title = f"rank {rank}: {described(call)}\n{kind} {1e3 * (b - a):.3g} ms"
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{ranks.index(rank) * _ROW + 4}" width="{width:.1f}" '
            f'height="18"><title>{escape(title)}</title></rect>'
        )
    which = "the last calls" if step is None else f"step {step}"
    return picture(_WIDTH, height, parts, f"Timeline of {which}")


def _typical_step(run: Run) -> int | None:
    """The step of median length of the lowest rank that has steps."""
    steps = next((found for _, found in sorted(run.steps.items()) if len(found) > 1), {})
    lengths = sorted((steps[step + 1] - at, step) for step, at in steps.items() if step + 1 in steps)
    return lengths[len(lengths) // 2][1] if lengths else None


_Bar = tuple[int, float, float, str, CallRecord]


def _bars(each: Collective) -> Iterator[_Bar]:
    for rank, call in each.calls.items():
        begun, waiting = each.begun.get(rank), each.waiting_s(rank)
        if begun is None:
            yield rank, call.posted, _end(call), "failed", call
        elif waiting is None:
            yield rank, begun, _end(call), "call", call
        else:
            yield rank, begun, begun + waiting, "waiting", call
            yield rank, begun + waiting, _end(call), "moving", call


def _end(call: CallRecord) -> float:
    return call.posted if call.done is None else call.done


def _ticks(span: float, scale: float, bottom: float) -> str:
    step = 10 ** math.floor(math.log10(max(span, 1e-9)))
    step = next((s for s in (step / 5, step / 2, step, 2 * step) if span / s <= 8), step)
    parts = []
    for number in range(int(span / step) + 1):
        x = _LEFT + number * step * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom:.0f}"/>')
        parts.append(words(x, bottom + 18, f"{1e3 * number * step:.4g} ms", "middle"))
    return "".join(parts)


def bandwidth(operations: Sequence[OperationStats]) -> str:
    """Bus bandwidth by size, both logarithmic, a line for each operation and size of group."""
    series: dict[str, list[tuple[int, float, OperationStats]]] = defaultdict(list)
    for stats in operations:
        if stats.nbytes and stats.busbw_mb_s:
            name = f"{stats.operation}, {stats.group_size} ranks"
            series[name].append((stats.nbytes, stats.busbw_mb_s, stats))
    if not series:
        return "<p>No operation has a known size and time.</p>"
    points = [point for found in series.values() for point in found]
    x0, x1 = (f(math.log2(p[0]) for p in points) for f in (min, max))
    y0, y1 = (
        math.floor(min(math.log10(p[1]) for p in points)),
        math.ceil(max(math.log10(p[1]) for p in points)),
    )
    x0, x1, y1 = math.floor(x0), max(math.ceil(x1), math.floor(x0) + 1), max(y1, y0 + 1)
    width, height = 620, 280

    def place(nbytes: float, rate: float) -> tuple[float, float]:
        x = _LEFT + (math.log2(nbytes) - x0) / (x1 - x0) * (width - 20)
        return x, 10 + (y1 - math.log10(rate)) / (y1 - y0) * height

    parts = []
    for power in range(x0, x1 + 1, max((x1 - x0) // 8, 1)):
        x, _ = place(2**power, 10**y0)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="{10 + height}"/>')
        parts.append(words(x, height + 28, named("", 2**power).strip(), "middle"))
    for power in range(y0, y1 + 1):
        _, y = place(2**x0, 10**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + width - 20}" y2="{y:.1f}"/>')
        parts.append(words(_LEFT - 8, y + 4, f"{10**power:g} MB/s", "end"))
    for number, (name, found) in enumerate(sorted(series.items())):
        colour = f"s{number % 8}"
        path = " ".join(
            "{:.1f},{:.1f}".format(*place(n, rate)) for n, rate, _ in sorted(found, key=lambda p: p[0])
        )
        parts.append(f'<polyline class="{colour} thin" points="{path}"/>')
        for nbytes, rate, stats in found:
            x, y = place(nbytes, rate)
            calls = f"{stats.calls} call{'s' * (stats.calls > 1)}"
            title = f"{name}\n{named('', nbytes).strip()}: {rate:.4g} MB/s, {calls}"
            parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4">')
            parts.append(f"<title>{escape(title)}</title></circle>")
        y = 20 + 20 * number
        parts.append(f'<circle class="{colour}" cx="{_LEFT + width + 2}" cy="{y - 4}" r="4"/>')
        parts.append(words(_LEFT + width + 12, y, name))
    return picture(_WIDTH, max(height + 40, 20 * len(series) + 30), parts, "Bus bandwidth by size")


def _whole(values: Sequence[float]) -> tuple[int, int]:
    """Whole numbers around all values, one apart at least."""
    low = math.floor(min(values))
    return low, max(math.ceil(max(values)), low + 1)


def heat_map(links: MeasuredLinks | None) -> str:
    """Rates from host to host; inside a host on the diagonal."""
    if links is None:
        return "<p>The links were not measured: <code>kernel-pytorch profile links</code> does that.</p>"
    count = len(links.hosts)
    if count > _MOST_HOSTS:
        return f"<p>{count} hosts are too many for a picture: profile.json has their rates.</p>"
    known = [link.gbit_s.value for link in links.links if link.source != link.target]
    low, high = min(known, default=0.0), max(known, default=0.0)
    cell, left = (64 if count <= 10 else 24), 130
    parts = []
    for host, ranks in enumerate(links.hosts):
        label = f"{'ranks' if len(ranks) > 1 else 'rank'} {' '.join(map(str, ranks))}"
        label = label if len(label) <= 18 else label[:16] + "..."
        parts.append(words(left - 8, 30 + host * cell + cell / 2 + 4, label, "end"))
        parts.append(words(left + host * cell + cell / 2, 20, str(ranks[0]), "middle"))
    for a in range(count):
        for b in range(count):
            rate = links.gbit_s(a, b)
            share = 1.0 if rate is None or high == low else (rate - low) / (high - low)
            kind = "unknown" if rate is None else "inside" if a == b else "rate"
            shade = f' style="fill-opacity:{0.15 + 0.85 * (1 - share):.2f}"' if kind == "rate" else ""
            value = "not measured" if rate is None else f"{rate:.3g} Gbit/s"
            title = f"ranks {links.hosts[a]} to ranks {links.hosts[b]}: {value}"
            x, y = left + b * cell, 30 + a * cell
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}"{shade}>'
                f"<title>{escape(title)}</title></rect>"
            )
            if count <= 10:
                text = "-" if rate is None else f"{rate:.3g}"
                light = kind == "rate" and share < 0.5
                parts.append(words(x + cell / 2 - 1, y + cell / 2 + 4, text, "middle", "light" * light))
    return picture(left + count * cell + 10, 40 + count * cell, parts, "Rates between hosts in Gbit/s")
