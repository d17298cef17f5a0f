"""From evidence to one kind of failure, with the rank and the evidence used."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .evidence import Beat, Evidence
from .messages import KINDS, SLURM_REASONS, SLURM_STATES, TYPES, meaning_of
from .timing import hang_limit

FULL_BYTES = 1_000_000
"""Free space below which a crash without a message counts as a full disk."""
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an attempt ended."""

    kind: str
    """One of :data:`.messages.KINDS`."""
    text: str
    """One line for the user."""
    type: str | None = None
    """Value of FailureType; None: not a failure, or not known which."""
    rank: int | None = None
    evidence: tuple[str, ...] = ()
    """The facts that decided, in words."""
    nodes: tuple[str, ...] = ()
    """Those that are lost or faulty."""
    step: int | None = None
    """The last one known; None: none was begun, or it is not known."""
    attempt: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in TYPES:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "evidence": list(self.evidence), "nodes": list(self.nodes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Failure:
        """The opposite of :meth:`to_dict`."""
        lists = {name: tuple(values.get(name, ())) for name in ("evidence", "nodes")}
        return cls(**{**values, **lists})


@dataclass(frozen=True)
class _Sign:
    kind: str
    text: str
    fact: str
    rank: int | None = None
    nodes: tuple[str, ...] = ()


def classify(evidence: Evidence, attempt: int | None = None) -> Failure:
    """What happened in an attempt that ended, or of which a rank failed or may hang.

    If several things did, the cause is the one that comes first in :data:`.messages.KINDS`. Log lines count
    only if the ranks are not known to have ended well: programs also log errors that they recover from.

    Args:
        evidence: may be incomplete; with none at all the kind is "unknown".
        attempt: its number, kept in the result.
    """
    signs = [*_of_job(evidence)]
    if _ended_well(evidence):
        signs += _good_end(evidence)
    else:
        signs += _of_ranks(evidence)
        if all(sign.kind == "network" for sign in signs):  # what a rank that dies leaves on the others
            signs += _bad_end(evidence) if not signs else _killed(evidence)
        if asked := evidence.stop_requested:
            fact = f"asked to stop ({asked}) before {signs[0].fact}"
            signs.append(_Sign("stopped", f"asked to stop ({asked}), but not all ranks had saved", fact))
    kind = min((sign.kind for sign in signs), key=KINDS.index)
    chosen = [sign for sign in signs if sign.kind == kind]
    return Failure(
        kind=kind,
        type=TYPES[kind],
        text=_one_line(chosen[0].text),
        rank=chosen[0].rank,
        evidence=tuple(dict.fromkeys(_one_line(sign.fact) for sign in chosen)),
        nodes=tuple(dict.fromkeys(node for sign in chosen for node in sign.nodes)),
        step=_step(evidence, chosen[0].rank),
        attempt=attempt,
    )


def suspect(beats: Mapping[int, Beat]) -> int:
    """Of ranks that hang, the one that the others most probably wait for.

    A rank that is stopped or waits for a disk; else one whose stack differs from most; else the one that is
    behind; else the one that was silent for longest; else the lowest.
    """
    lines = [beat.where for beat in beats.values()]

    def order(rank: int) -> tuple[bool, int, float, float, int]:
        beat = beats[rank]
        alike = len(lines) if beat.where is None else lines.count(beat.where)
        step = float("-inf") if beat.step is None else beat.step
        return beat.process_state not in ("T", "t", "D"), alike, step, -beat.since_s, rank

    return min(beats, key=order)


def _of_job(evidence: Evidence) -> Iterator[_Sign]:
    """What the cluster and the node programs know, whatever the ranks returned."""
    if evidence.cancelled:
        yield _Sign("cancelled", "the job was cancelled", "cancelled on request")
    state = _state(evidence)
    if state != "COMPLETED" and (kind := SLURM_STATES.get(state)):
        yield _Sign(kind, f"Slurm: {evidence.slurm_state}", f"Slurm's state {evidence.slurm_state}")
    if kind := SLURM_REASONS.get(evidence.slurm_reason or ""):
        text = f"Slurm: {evidence.slurm_reason}" + ", so it never starts" * (kind == "user")
        yield _Sign(kind, text, f"Slurm's reason {evidence.slurm_reason}")
    for node in evidence.nodes_lost:
        first = node == evidence.first_node
        text = f"node {node} is lost" + ", and with it the job's store" * first
        fact = f"{'first ' * first}node {node} does not answer"
        yield _Sign("first_node_lost" if first else "node_lost", text, fact, nodes=(node,))


def _of_ranks(evidence: Evidence) -> Iterator[_Sign]:
    for node, count in evidence.oom_kills.items():
        if count > 0:
            text = f"the kernel killed a process on {node} for want of memory"
            yield _Sign("oom", text, f"cgroup on {node}: oom_kill +{count}")
    for rank, error in sorted(evidence.errors.items()):
        text = f"{error.type}: {error.text}" if error.type else error.text
        # The traceback names, in lines without indent, the exceptions that this one was raised from.
        earlier = [line for line in (error.traceback or "").splitlines() if not line.startswith(" ")]
        signs = [*_meanings(evidence, rank, "record", [text, *earlier])]
        sign = _Sign("crash", f"rank {rank}: {_short(text)}", f"record of rank {rank}", rank)
        if _bad_usage(evidence, rank):
            yield replace(sign, kind="user")
        yield from signs or [sign]
    for rank, lines in sorted(evidence.log_lines.items()):
        if rank not in evidence.errors:
            yield from _meanings(evidence, rank, "log", reversed(lines))
    for line in reversed(evidence.node_lines):
        if message := meaning_of(line):
            yield _Sign(message.kind, f"{message.meaning}: {_short(line)}", f"node's log: {_short(line)}")
    for rank, code in sorted(evidence.exit_codes.items()):
        if code in (126, 127) or _bad_usage(evidence, rank):
            what = "bad usage" if code == 2 else "the program cannot be started"
            yield _Sign("user", f"rank {rank}: {what}", f"rank {rank} returned {code}", rank)
    yield from _hang(evidence)


def _bad_usage(evidence: Evidence, rank: int) -> bool:
    """Whether a rank returned 2, as programs do that refuse their arguments, before its first step."""
    return evidence.exit_codes.get(rank) == 2 and _step(evidence, rank) is None


def _meanings(evidence: Evidence, rank: int, source: str, lines: Iterable[str]) -> Iterator[_Sign]:
    starting = _starting(evidence, rank)
    node = evidence.node_of.get(rank)
    for line in lines:
        if message := meaning_of(line, starting):
            yield _Sign(
                message.kind,
                f"rank {rank}: {message.meaning}: {_short(line)}",
                f"{source} of rank {rank}: {_short(line)}",
                rank,
                (node,) if node and message.kind == "gpu" else (),
            )


def _hang(evidence: Evidence) -> Iterator[_Sign]:
    limits = {
        rank: hang_limit(beat.phase, beat.median_step_s, beat.min_hang_s)
        for rank, beat in evidence.beats.items()
        if evidence.exit_codes.get(rank) != 0
    }
    silent = {rank: evidence.beats[rank].since_s / limit.value for rank, limit in limits.items()}
    if max(silent.values(), default=0.0) > 1:
        # The rank for which the others wait may have been the last to beat: it is not late yet.
        rank = suspect({rank: evidence.beats[rank] for rank, share in silent.items() if share > 0.5})
        beat = evidence.beats[rank]
        where = f" at {beat.where}" if beat.where else ""
        silence = f"no beat for {beat.since_s:.0f} s, limit {limits[rank].why}"
        yield _Sign("hang", f"rank {rank} hangs{where}: {silence}", f"rank {rank}: {silence}", rank)


def _ended_well(evidence: Evidence) -> bool:
    codes, agent = evidence.exit_codes, evidence.agent_exit_code
    if any(codes.values()) or agent or evidence.errors:
        return False
    all_known = bool(codes) and set(evidence.beats) <= set(codes)
    return agent == 0 or all_known or _state(evidence) == "COMPLETED"


def _good_end(evidence: Evidence) -> Iterator[_Sign]:
    steps = [step for step in evidence.left.values() if step is not None]
    asked = evidence.stop_requested
    if steps or (evidence.left and asked):
        text = f"asked to stop{f' ({asked})' if asked else ''}, saved and left"
        fact = f"all ranks returned 0 and left{f' at step {max(steps)}' if steps else ''}"
        yield _Sign("stopped", text, fact)
    else:
        yield _Sign("done", "all ranks returned 0", "all ranks returned 0")


def _bad_end(evidence: Evidence) -> Iterator[_Sign]:
    """How the ranks ended, where nothing says why."""
    codes = {rank: _as_signal(code) for rank, code in evidence.exit_codes.items() if code}
    by_user = {-signal.SIGINT}
    if by_user <= set(codes.values()) <= by_user | {-signal.SIGTERM, -signal.SIGKILL}:
        yield _Sign("cancelled", "interrupted from the keyboard", "ranks were ended by SIGINT")
    full = [f"{free} bytes free in {path}" for path, free in evidence.disk_free.items() if free < FULL_BYTES]
    # torchrun ends the other ranks by SIGTERM: they are not the cause.
    for rank, code in sorted(codes.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[0])):
        how = f"rank {rank} " + (f"was ended by {_name(-code)}" if code < 0 else f"returned {code}")
        if full:
            yield _Sign("no_space", f"{how}, {full[0]}", f"{how}, {full[0]}", rank)
        yield _Sign("crash", how, how, rank)
    if not codes:
        agent, state = evidence.agent_exit_code, evidence.slurm_state
        known = [f"torchrun returned {agent}"] * bool(agent) + [f"Slurm's state {state}"] * bool(state)
        text = ", ".join(known) or "nothing is known about how it ended"
        yield _Sign("unknown", text, text)


def _killed(evidence: Evidence) -> Iterator[_Sign]:
    """Ranks that a signal ended, but for torchrun's own, and that said nothing."""
    for rank, code in sorted(evidence.exit_codes.items()):
        number = -_as_signal(code)
        if number > 0 and number != signal.SIGTERM and rank not in evidence.errors:
            how = f"rank {rank} was ended by {_name(number)}"
            yield _Sign("crash", how, how, rank)


def _state(evidence: Evidence) -> str:
    """Slurm's state without what squeue and sacct add: "CANCELLED by 1000"."""
    return re.sub(r"[^A-Z_].*", "", evidence.slurm_state or "")


def _starting(evidence: Evidence, rank: int) -> bool:
    """Whether a rank is known not to have begun its first step."""
    if rank in evidence.errors:
        return evidence.errors[rank].step is None
    return rank in evidence.beats and evidence.beats[rank].phase == "starting"


def _step(evidence: Evidence, rank: int | None) -> int | None:
    """The step of a rank's error, else the last one of any rank."""
    error = None if rank is None else evidence.errors.get(rank)
    if error is not None and error.step is not None:
        return error.step
    steps = [beat.step for beat in evidence.beats.values() if beat.phase != "starting"]
    steps += [*evidence.left.values(), *(error.step for error in evidence.errors.values())]
    return max((step for step in steps if step is not None), default=None)


def _as_signal(code: int) -> int:
    """A shell's 128 + signal as -signal."""
    return 128 - code if 128 < code < 128 + signal.NSIG else code


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _short(text: str) -> str:
    text = _one_line(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
