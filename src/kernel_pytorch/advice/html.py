"""A report as one HTML file that refers to nothing outside of itself. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from . import charts
from .facts import AdviceReport, Trial
from .text import described, result, summary
from .units import error, fact, interval, printable, seconds, size

_STYLE = """
:root { --ink: #1c2430; --paper: #fff; --line: #d5dbe3; --grey: #6b7685 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e8ee; --paper: #161b22; --line: #38424e; --grey: #9aa5b1 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1000px;
  margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid var(--line) }
.lead { font-size: 1.1em } .wide { overflow-x: auto } .quiet { color: var(--grey) }
.grid { stroke: var(--line) } .one { stroke: var(--ink) } .roof { fill: none; stroke: var(--ink) }
.limit { stroke: #c8372d; stroke-dasharray: 6 4 } .thin { stroke-width: 1.5 }
.s0 { fill: #2f6fb7; stroke: #2f6fb7 } .s1 { fill: #e8963a } .s2 { fill: #3f9a5f } .s3 { fill: #c8372d }
.pale { fill-opacity: .25 } .thin { fill: none }
"""
_TRIALS = ("change", "times as fast (99 %)", "error (original)", "peak", "compile", "verdict")


def html(report: AdviceReport) -> str:
    """The whole page."""
    facts, trials = report.facts, [trial for trial in report.trials if trial.verdict != "not tried"]
    proved = [*trials, report.result] if report.result is not None else trials
    left = [f"{trial.strategy}: {trial.reason}" for trial in report.trials if trial.verdict == "not tried"]
    parts = [
        f"<h1>{_plain(report.target)}</h1>",
        f'<p class="lead">{_plain(result(report))}</p>',
        f"<p>{_plain(summary(facts))}</p>",
        f'<p class="quiet">{_plain(_machine(report))}</p>',
        f"<p>The model failed on its inputs: {_plain(facts.failed)}</p>" if facts.failed else "",
        "<h2>Findings</h2>",
        _list(map(described, report.findings)) if report.findings else "<p>None.</p>",
        "<h2>Trials</h2>",
        f'<div class="wide">{_table(proved)}</div>' if proved else "<p>None.</p>",
        f'<div class="wide">{charts.pairs(proved)}</div>' if proved else "",
        "<h2>Not tried</h2>" + _list(left) if left else "",
        "<h2>Other functions, not applied</h2>" + _list(map(described, report.offers))
        if report.offers
        else "",
        f'<h2>Time by module</h2><div class="wide">{charts.times(report)}</div>',
        f'<h2>Roofline</h2><div class="wide">{charts.roofline(facts)}</div>',
        f'<h2>Memory by length</h2><div class="wide">{charts.memory(facts)}</div>',
        f"<p>{_plain(_memory(report))}</p>",
        "<h2>Remarks</h2>" + _list(facts.remarks) if facts.remarks else "",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_plain(report.target)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def _plain(text: str) -> str:
    return escape(printable(text))


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_plain(item)}</li>" for item in items) + "</ul>"


def _machine(report: AdviceReport) -> str:
    machine, options = report.machine, report.options
    inputs = ", ".join(f"{each.name}: {each.dtype} {list(each.shape)}" for each in report.facts.inputs)
    reference = f"; compared with {report.reference}" if report.reference else ""
    return (
        f"{machine.processor}, {machine.device}, {machine.threads} threads, torch {machine.torch}, "
        f"{machine.date}; level {options.level}; inputs {inputs or 'without tensors'}{reference}; "
        f"{seconds(report.seconds)} in all"
    )


def _memory(report: AdviceReport) -> str:
    facts = report.facts
    peak = f"At the length of the inputs: {fact(facts.peak, size)}, {fact(facts.predicted_peak, size)}."
    if facts.greatest_length.value is None:
        return peak
    least = "at least " if facts.greatest_length.at_least else ""
    return f"{peak} The greatest length that fits is {least}{facts.greatest_length.value:,.0f}."


def _table(trials: Sequence[Trial]) -> str:
    rows = [
        (
            trial.strategy,
            interval(trial.gain, trial.low, trial.high),
            error(trial.error)
            + ("" if trial.original_error is None else f" ({error(trial.original_error)})"),
            "-" if trial.peak_ratio is None else f"{trial.peak_ratio:.2f}",
            "-" if trial.compile_s is None else seconds(trial.compile_s),
            trial.verdict + (f": {trial.reason}" if trial.reason else ""),
        )
        for trial in trials
    ]
    body = "".join("<tr>" + "".join(f"<td>{_plain(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in _TRIALS)}</tr>{body}</table>"
