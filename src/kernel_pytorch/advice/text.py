"""A report for a terminal. Without torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from .facts import AdviceReport, Fact, Finding, LengthFacts, ModelFacts, Trial
from .units import count, error, fact, interval, percent, printable, seconds, size

_HEAD = ("trials", "gain (99 %)", "error (original)", "peak", "compile", "")


def text(report: AdviceReport, width: int = 110, *, hint: str = "") -> str:
    """The whole report.

    Args:
        width: of the lines, in characters; the table and names without spaces may be wider.
        hint: how to save the result, where something was kept.
    """
    facts = report.facts
    entries = [
        *([("failed", facts.failed)] if facts.failed else []),
        ("memory", _memory(facts)),
        *(("length", _length(each)) for each in facts.lengths),
        *(("remark", remark) for remark in facts.remarks),
        *(("finding", described(found)) for found in report.findings),
    ]
    lines = [
        *_wrapped(f"{report.target}   {summary(facts)}", width),
        *(line for label, entry in entries for line in _wrapped(f"{label:<10}{entry}", width)),
        *_table(report, width),
        *_not_tried(report.trials, width),
        *(line for offer in report.offers for line in _wrapped(f"offered   {described(offer)}", width)),
        *_wrapped(f"result: {result(report)}{f'; {hint}' if hint and report.kept else ''}", width),
    ]
    return "\n".join(lines)


def summary(facts: ModelFacts) -> str:
    """What a model is and what a call of it costs."""
    total = sum(facts.bytes_by_dtype.values())
    by_size = sorted(facts.bytes_by_dtype.items(), key=lambda pair: -pair[1])
    dtypes = [name for name, held in by_size if 100 * held > total]
    held = f"{count(facts.parameters)} parameters" + (f", {' and '.join(dtypes)}" if dtypes else "")
    what = "a training step" if facts.training else "a call"
    if facts.call.value is None:
        return f"{held}; {what} was not timed: {facts.call.why}"
    threads = f"{facts.threads} thread{'s' * (facts.threads != 1)}"
    where = f"on {threads}" if facts.device == "cpu" else f"on {facts.device}"
    parts = [held, f"{seconds(facts.call.value)} {what} {where}"]
    if facts.attained.value is not None:
        parts[-1] += f", {percent(facts.attained.value)} of this machine's roofline"
    else:
        parts.append(f"the share of the roofline is {fact(facts.attained)}")
    if facts.loss:
        parts.append(f"loss: {facts.loss}")
    parts.append(f"noise {percent(facts.noise.value)}" if facts.noise.value is not None else "noise unknown")
    return "; ".join(parts)


def _memory(facts: ModelFacts) -> str:
    parts = [f"beyond parameters and inputs: {fact(facts.peak, size)}"]
    if facts.predicted_peak.value is not None:
        parts[0] += f", {fact(facts.predicted_peak, size)}"
    if facts.memory_limit is not None:
        parts.append(f"{size(facts.memory_limit)} allowed")
    if facts.greatest_length.value is not None:
        parts.append(f"the greatest length that fits is {_greatest(facts.greatest_length)}")
    elif facts.lengths:
        parts.append(f"the greatest length that fits is unknown: {facts.greatest_length.why}")
    return "; ".join(parts)


def _greatest(length: Fact) -> str:
    return f"{'at least ' if length.at_least else ''}{length.value:,.0f} ({length.basis})"


def _length(at: LengthFacts) -> str:
    fits = {True: "fits", False: "does not fit", None: "it is unknown whether it fits"}[at.fits]
    share = at.attention_share.value
    attention = "" if share is None else f", {percent(share)} of the FLOPs are attention"
    return f"{at.length:,}: {fact(at.peak, size)}, {fits}{attention}"


def described(found: Finding) -> str:
    """A finding or an offer in one line."""
    about = ", ".join(filter(None, (found.place, found.cost)))
    return f"{found.kind}   {about}: {found.remedy}" if about else f"{found.kind}: {found.remedy}"


def _table(report: AdviceReport, width: int) -> Iterator[str]:
    rows, kept = [], False
    for trial in report.trials:
        if trial.verdict != "not tried":
            rows.append((f"  {'+ ' * kept}{printable(trial.strategy)}", *_figures(trial), _verdict(trial)))
            kept = kept or trial.verdict == "kept"
    if not rows:
        return
    wide = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD) - 1)]
    room = width - sum(wide) - 3 * len(wide)
    for row in (_HEAD, *rows):
        name, gain, errors, peak, compiled, verdict = row
        cells = (name.ljust(wide[0]), gain.ljust(wide[1]), errors.ljust(wide[2]), peak.rjust(wide[3]))
        start = "   ".join((*cells, compiled.rjust(wide[4])))
        if len(verdict) <= room:
            yield f"{start}   {verdict}".rstrip()
        else:
            word, _, reason = verdict.partition(": ")
            yield f"{start}   {word}"
            yield from _wrapped(reason, width, "      ")


def _figures(trial: Trial) -> tuple[str, str, str, str]:
    own = "" if trial.original_error is None else f" ({error(trial.original_error)})"
    return (
        interval(trial.gain, trial.low, trial.high),
        f"{error(trial.error)}{own}",
        "-" if trial.peak_ratio is None else f"{trial.peak_ratio:.2f}",
        "-" if trial.compile_s is None else seconds(trial.compile_s),
    )


def _verdict(trial: Trial) -> str:
    return trial.verdict + (f": {printable(trial.reason)}" if trial.reason else "")


def _not_tried(trials: Sequence[Trial], width: int) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for trial in trials:
        if trial.verdict == "not tried":
            names.setdefault(trial.reason or "no reason is known", []).append(trial.strategy)
    if names:
        yield "not tried"
    for reason, left in names.items():
        yield from _wrapped(f"{', '.join(left)}: {reason}", width, "  ")


def result(report: AdviceReport) -> str:
    """What came of it: the gain, whether it was confirmed, what was reverted."""
    found, kept = report.result, [trial.strategy for trial in report.trials if trial.verdict == "kept"]
    if not kept:
        return "nothing was kept" + (": the model failed" if report.facts.failed else "")
    if found is None:
        return f"nothing is kept: {_names(kept)} could not be confirmed before the run ended"
    if found.verdict != "kept":
        why = f": {found.reason}" if found.reason else ""
        again = " in a fresh process" * report.confirmed
        end = f"the comparison with the original{again} ended as {found.verdict}{why}"
        return f"all was reverted, {_names(kept)} included: {end}"
    again = "confirmed in a fresh process" if report.confirmed else "confirmed in this process"
    gain = interval(found.gain, found.low, found.high)
    number, _, limits = gain.partition(" ")
    parts = [f"{number} times as fast {limits}".rstrip(), again, equality(report, found)]
    if found.peak_ratio is not None and (found.gain or 0) < 1:
        parts.insert(1, f"with {found.peak_ratio:.2f} of the memory")
    return ", ".join(parts)


def equality(report: AdviceReport, trial: Trial) -> str:
    """How far results are from the reference, in words."""
    against = f" against {report.reference}" if report.reference else ""
    if trial.error is None:
        return "its error was not measured"
    if not trial.lossless:
        return f"relative error {error(trial.error)}{against}, at most {report.options.max_error:g} allowed"
    own = trial.original_error
    if own is not None and trial.error <= 4 * own:
        return "error within 4 times the original's own rounding"
    return f"error {error(trial.error)}{against}, no more than rounding"


def _names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _wrapped(line: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        printable(line),
        width,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
