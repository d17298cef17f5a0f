"""Defects of a model, from its facts and what its runs showed: pure functions, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..facts import AttentionSite, Finding, ModelFacts
from . import remedies
from .observations import Differing, Observations, PythonLoop

_FUSED_OPTIMIZERS = ("Adam", "AdamW", "SGD", "Adagrad")
"""Those of which torch has a fused variant."""


def findings(facts: ModelFacts, observations: Observations) -> tuple[Finding, ...]:
    """All defects; what keeps a model from running at all first. Each place is named once for a cause."""
    found = (
        *_memory(facts),
        *_attention(facts),
        *_breaks(observations),
        *_recompiling(observations),
        *_syncs(observations),
        *(_loop(loop, facts, observations) for loop in observations.loops),
        *_float64(observations),
        *_copies(facts, observations),
        *_layout(observations),
        *_differing(observations.differing),
        *_optimizer(facts, observations),
        *_process(facts),
    )
    return tuple(dict.fromkeys(found))  # equal ones are of equal blocks


def _memory(facts: ModelFacts) -> Iterator[Finding]:
    limit = facts.memory_limit
    peak = facts.peak if facts.peak.value is not None else facts.predicted_peak
    if limit is None:
        return
    kind = "training will not fit" if facts.training else "will not fit"
    greatest = facts.greatest_length.value
    up_to = f"; the greatest length that fits is {greatest:,.0f}" if greatest else ""
    remedy = remedies.MEMORY_TRAINING if facts.training else remedies.MEMORY
    if peak.value is not None and peak.value > limit:
        least = "at least " if peak.at_least else ""
        cost = f"a call needs {least}{_bytes(peak.value)} ({peak.basis}) of {_bytes(limit)}{up_to}"
        yield Finding(kind=kind, place=facts.place, cost=cost, remedy=remedy)
        return
    over = [item for item in facts.lengths if item.fits is False and item.peak.value is not None]
    if over:
        first = min(over, key=lambda item: item.length)
        needs = _bytes(first.peak.value or 0)
        cost = f"length {first.length:,} needs {needs} (predicted) of {_bytes(limit)}{up_to}"
        yield Finding(kind=kind, place=facts.place, cost=cost, remedy=remedy)


def _attention(facts: ModelFacts) -> Iterator[Finding]:
    for site in facts.structure.attention:
        if site.fused and not site.why:
            continue
        cost = f"{_count(len(site.paths), 'module')}, {_bytes(site.scores_bytes)} of scores each"
        share = _share_of(site, facts)
        cost += f", in modules that take {share:.0%} of the time" if share is not None else ""
        if site.fused:
            yield Finding(
                kind="attention unfused",
                place=site.place,
                cost=f"{cost}: {site.why}",
                remedy=remedies.UNFUSED,
            )
        else:
            remedy = f"not as scaled_dot_product_attention: {site.why}" if site.why else f"write {site.call}"
            yield Finding(kind="attention by hand", place=site.place, cost=cost, remedy=remedy)


def _share_of(site: AttentionSite, facts: ModelFacts) -> float | None:
    """Share of the forward pass that the modules of a site take, with all that they contain."""
    seconds = {module.path: module.seconds for module in facts.modules}
    whole = seconds.get("")
    own = [seconds.get(path) for path in site.paths]
    known = [value for value in own if value is not None]
    if not whole or not own or len(known) < len(own):
        return None
    return min(1.0, sum(known) / whole)


def _breaks(observations: Observations) -> Iterator[Finding]:
    waits = {sync.place: sync.calls for sync in observations.syncs}
    for found in observations.breaks:
        cost = f"torch.compile splits the graph here: {found.reason}"
        if found.place in waits:
            cost += f"; the host waits for the device {_times(waits[found.place])} a call"
        yield Finding(kind="graph break", place=found.place, cost=cost, remedy=remedies.of_break(found))


def _recompiling(observations: Observations) -> Iterator[Finding]:
    for found in observations.recompiles:
        if any(_is_inside(found.place, loop) for loop in observations.loops):
            continue  # named by the loop
        each = "length" if found.cause == "length" else "call"
        yield Finding(
            kind="recompiling",
            place=found.place,
            cost=f"torch.compile compiles again for each {each}: {found.guard}",
            remedy=remedies.of_recompile(found),
        )


def _syncs(observations: Observations) -> Iterator[Finding]:
    broken = {found.place for found in observations.breaks}
    for found in observations.syncs:
        if found.place not in broken:
            yield Finding(
                kind="host sync",
                place=found.place,
                cost=f"{found.call}, {_times(found.calls)} a call: on a GPU the host waits for it",
                remedy=remedies.of_sync(found),
            )


def _loop(loop: PythonLoop, facts: ModelFacts, observations: Observations) -> Finding:
    shape = " x ".join(map(str, loop.shape))
    cost = f"{loop.calls} calls of {loop.operator} with results of {shape}"
    seconds = _seconds_of(loop.operator, facts)
    if seconds is not None and facts.call.value:
        share = min(1.0, loop.calls * seconds / facts.call.value)
        cost += f", about {share:.0%} of the time in that operator alone"
    if any(_is_inside(found.place, loop) for found in observations.recompiles):
        cost += "; torch.compile compiles again for each length"
    return Finding(kind="Python loop", place=loop.place, cost=cost, remedy=remedies.of_loop(loop))


def _seconds_of(name: str, facts: ModelFacts) -> float | None:
    """Mean seconds of an operator, without those that it calls."""
    names = {f"aten::{name}"} | ({"aten::addmm", "aten::mm"} if name == "linear" else set())
    known = [item for item in facts.operators if item.name in names and item.seconds is not None]
    if not known:
        return None
    return sum(item.seconds or 0.0 for item in known) / max(1, sum(item.calls for item in known))


def _float64(observations: Observations) -> Iterator[Finding]:
    for found in observations.float64:
        cost = (
            f"{_count(found.operators, 'operator')} in float64 from here on, {_bytes(found.bytes)} of results"
        )
        yield Finding(kind="float64", place=found.place, cost=cost, remedy=remedies.FLOAT64)


def _copies(facts: ModelFacts, observations: Observations) -> Iterator[Finding]:
    for copy in observations.copies:
        what = {
            "stored": f"{copy.name} is copied",
            "unneeded": "its readers take any strides",
            "repeated": "the same tensor each time",
        }[copy.cause]
        cost = f"{_count(copy.calls, 'copy', 'copies')} a call, {_moved(copy.bytes, facts)}: {what}"
        yield Finding(kind="copy in each call", place=copy.place, cost=cost, remedy=remedies.of_copy(copy))
    for built in observations.rebuilt:
        shape = " x ".join(map(str, built.shape))
        cost = f"{_count(built.operators, 'operator')} a call build it, {shape}, {_moved(built.bytes, facts)}"
        yield Finding(
            kind="constant rebuilt in each call",
            place=built.place,
            cost=cost,
            remedy=remedies.of_constant(built),
        )


def _layout(observations: Observations) -> Iterator[Finding]:
    layout = observations.layout
    if layout is not None:
        cost = f"{layout.calls} of {_count(layout.of, 'convolution')} reorder {_bytes(layout.bytes)} a call"
        yield Finding(kind="convolution layout", place=layout.place, cost=cost, remedy=remedies.CHANNELS_LAST)


def _differing(found: Differing | None) -> Iterator[Finding]:
    if found is not None:
        yield Finding(
            kind="results differ",
            place=found.place,
            cost=f"two calls in eval mode with equal inputs differ by {found.difference:.2g} (relative RMS)",
            remedy=remedies.of_differing(found),
        )


def _optimizer(facts: ModelFacts, observations: Observations) -> Iterator[Finding]:
    kind, _, variant = facts.structure.optimizer.partition(" ")
    if facts.training and kind in _FUSED_OPTIMIZERS and "fused" not in variant:
        yield Finding(
            kind="slow optimizer",
            place=observations.optimizer_place,
            cost=f"{facts.structure.optimizer} runs several operators for each of the parameter tensors"
            if variant != "foreach"
            else f"{facts.structure.optimizer} makes temporary copies of all parameters",
            remedy=f"{kind}(..., fused=True)",
        )


def _process(facts: ModelFacts) -> Iterator[Finding]:
    granted = facts.granted_cpus
    if granted is not None and facts.threads > max(1, math.ceil(granted)):
        yield Finding(
            kind="too many threads",
            place="",
            cost=f"{facts.threads} threads share the {granted:g} CPUs that the process is granted",
            remedy=f"torch.set_num_threads({max(1, math.ceil(granted))})",
        )
    if facts.structure.compiler_missing:
        yield Finding(
            kind="no C++ compiler",
            place="",
            cost=f"torch.compile cannot build code: {facts.structure.compiler_missing}",
            remedy=remedies.COMPILER,
        )


def _is_inside(place: str, loop: PythonLoop) -> bool:
    file, _, line = place.rpartition(":")
    loop_file, _, first = loop.place.rpartition(":")
    return file == loop_file and int(first) <= int(line) <= loop.last_line


def _moved(size: int, facts: ModelFacts) -> str:
    """Bytes that are written, and what that takes of a call at the measured bandwidth."""
    gb_s, call = facts.roofline.memory_gb_s, facts.call.value
    if not gb_s or not call:
        return _bytes(size)
    share = min(1.0, 2 * size / (gb_s * 1e9) / call)  # read and written
    return f"{_bytes(size)}" + (f", at least {share:.0%} of the time" if share >= 0.01 else "")


def _bytes(size: float) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {more or one + 's'}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
