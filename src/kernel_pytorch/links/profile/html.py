"""A report as one HTML file that refers to nothing outside of itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from ..facts import Figure
from .charts import bandwidth, heat_map, timeline
from .clocks import Offset
from .join import Run, named

if TYPE_CHECKING:
    from .report import ProfileReport

_STYLE = """
:root { --ink: #1c2430; --paper: #fff; --pale: #eef1f5; --line: #d5dbe3; --blue: #2f6fb7; --orange: #e8963a;
  --red: #c8372d; --grey: #9aa5b1; --green: #3f9a5f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e8ee; --paper: #161b22; --pale: #222a34; --line: #38424e }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1000px;
  margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25em .8em; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.lead { font-size: 1.1em } .wide { overflow-x: auto } .quiet { color: var(--grey) }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em }
.row { fill: var(--pale) } .grid { stroke: var(--line) } .thin { fill: none; stroke-width: 1.5 }
.moving, .call { fill: var(--blue); background: var(--blue) }
.waiting { fill: var(--orange); background: var(--orange) }
.message { fill: var(--green); background: var(--green) } .failed { fill: var(--red); background: var(--red) }
.rate { fill: var(--red) } .inside { fill: var(--pale) } .unknown { fill: none; stroke: var(--line) }
svg text.light { fill: #fff }
""" + "\n".join(
    f".s{number} {{ fill: {colour}; stroke: {colour} }} .s{number}.thin {{ fill: none }}"
    for number, colour in enumerate(
        ("#2f6fb7", "#e8963a", "#3f9a5f", "#c8372d", "#8a5fb0", "#8c6d4f", "#d76fa8", "#5b6b7c")
    )
)
_KEYS = (("moving", "moving data"), ("waiting", "waiting for another rank"), ("message", "send or recv"),
         ("failed", "failed or not over"))  # fmt: skip


def page(run: Run, found: ProfileReport, clocks: Mapping[int, Offset]) -> str:
    """The whole file."""
    from .report import first_line

    notes = _list([*found.notes]) if found.notes else ""
    findings = [finding.text for finding in found.findings]
    advice = [each.text for each in found.recommendations]
    keys = "".join(f'<span class="key {kind}"></span>{text}' for kind, text in _KEYS)
    parts = [
        f"<h1>Collectives of {found.world_size} ranks</h1>",
        f'<p class="lead">{escape(first_line(found))}</p>',
        "<h2>Findings</h2>",
        _list(findings) if findings else "<p>None.</p>",
        "<h2>Expected to be faster</h2>" + _list(advice) if advice else "",
        "<h2>Timeline</h2>",
        f'<div class="wide">{timeline(run, clocks)}</div><p>{keys}</p>{_clock_error(clocks)}',
        "<h2>Bus bandwidth by size</h2>",
        f'<div class="wide">{bandwidth(found.operations)}</div>',
        f"<h2>Links between hosts, Gbit/s</h2>{_basis(found)}",
        f'<div class="wide">{heat_map(found.links)}</div>',
        "<h2>Operations</h2>",
        f'<div class="wide">{_operations(found)}</div>',
        f"<h2>What is missing</h2>{notes}" if notes else "",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Collectives</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def _list(items: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _clock_error(clocks: Mapping[int, Offset]) -> str:
    known = [offset.error_s for offset in clocks.values() if offset.error_s is not None]
    if not known:
        return ""
    return (
        f'<p class="quiet">Ranks are placed to within {1e3 * max(known):.2g} ms; no figure depends on it.</p>'
    )


def _basis(found: ProfileReport) -> str:
    return (
        f'<p class="quiet">{escape(found.links.basis)}; rows send, columns receive.</p>'
        if found.links
        else ""
    )


def _operations(found: ProfileReport) -> str:
    head = ("operation", "ranks", "calls", "ms", "algbw MB/s", "busbw MB/s", "waiting ms", "hidden", "failed")
    rows = [
        (
            named(each.operation, each.nbytes),
            str(each.group_size),
            str(each.calls),
            _figure(each.ms),
            "" if each.algbw_mb_s is None else f"{each.algbw_mb_s:.4g}",
            "" if each.busbw_mb_s is None else f"{each.busbw_mb_s:.4g}",
            _figure(each.waiting_ms),
            "" if each.hidden_share is None else f"{100 * each.hidden_share:.0f} %",
            str(each.failed or ""),
        )
        for each in found.operations
    ]
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"


def _figure(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"
