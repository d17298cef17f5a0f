"""What a caller knows about a failed job, in the caller's own words, as :class:`.Evidence`."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from .recovery.evidence import Beat, Evidence
from .recovery.messages import meaning_of

_MESSAGES = ("message", "error_message", "error", "exception")
_LOGS = ("logs", "log", "log_lines", "stdout", "stderr", "output")
_NODE_LOGS = ("node_lines", "node_log", "kernel_log", "dmesg")
_EXIT_CODES = ("exit_code", "exit_codes", "return_code", "returncode")
_STATES = ("slurm_state", "native_state", "job_state", "state")
_REASONS = ("slurm_reason", "reason")
_NODE_STATES = ("node_status", "node_states", "nodes")
_NODES_LOST = ("nodes_lost", "lost_nodes", "failed_nodes", "failed_node", "node_failures")
_OOM_KILLS = ("oom_kill", "oom_kills", "oom_killed")
_PLAIN = ("agent_exit_code", "first_node", "stop_requested", "cancelled", "disk_free", "left", "node_of")
_LOST = re.compile(
    r"(down|fail(ed|ing)?|lost|dead|unreachable|offline|not[ _]?ready|not[ _]?responding|power(ed|ing)_down)"
    r"[*+~#!%$@^-]*",
    re.IGNORECASE,
)
"""Words of Slurm, with its suffixes, of Kubernetes and of people for a node that is gone."""

_BRIEF = {
    "oom": r"(?:(?:CUDA|GPU|host|system) )?out of memory(?: error)?|OOM(?:[ -]?kill(?:ed)?)?",
    "gpu": r"(?:GPU|CUDA device)(?: \S+)? (?:failure|failed|error|fault|lost)",
    "node_lost": r"node(?: \S+)? (?:failure|failed|lost|down|is down|unreachable)",
    "network": r"(?:network|connection)(?: \S+)? (?:failure|failed|error|lost|refused|timeout|timed out)"
    r"|connection reset(?: by peer)?|network (?:is )?unreachable",
    "timeout": r"timeout|timed out|time limit(?: reached| exceeded)?",
}
_BRIEF_KINDS = {
    kind: re.compile(rf"(?:\[rank\d+\]: )?(?:[\w.]+(?:Error|Exception): )?(?:{pattern})[.!]?", re.I)
    for kind, pattern in _BRIEF.items()
}
"""What callers say themselves of a failure, where they have no message of a program. All of the message must
match: in a sentence these words may mean anything."""


def brief_kind(info: Mapping[str, Any]) -> tuple[str, str] | None:
    """The kind of failure and the words for it, where the message of ``info`` is nothing but these words."""
    for name in _MESSAGES:
        said = str(info.get(name) or "").strip()
        for kind, pattern in _BRIEF_KINDS.items():
            if pattern.fullmatch(said):
                return kind, said
    return None


def evidence_of(info: Mapping[str, Any]) -> Evidence:
    """What ``info`` says. Keys that are not listed here are ignored; so are values of None.

    * ``exit_code`` (``exit_codes``, ``returncode``): a number, ``sacct``'s ``"1:0"``, or those by rank;
      negative: ended by that signal. ``signal``: a number or a name.
    * ``message`` (``error_message``, ``error``): counts only where the table of messages knows it, but then
      also against exit code 0.
    * ``logs`` (``log_lines``, ``stdout``, ``stderr``, ``output``): text, lines, or either by rank. ``dmesg``
      (``node_lines``): of the node.
    * ``slurm_state`` (``native_state``, ``state``), ``slurm_reason`` (``reason``).
    * ``node_status`` (``node_states``): a word by node; ``nodes_lost`` (``failed_nodes``): names.
      ``first_node``.
    * ``oom_kill``: a number, also by node, or whether.
    * ``rank`` and ``step``, of the exit code, message and logs; ``cancelled``, ``stop_requested``,
      ``disk_free``, ``left``, ``node_of``, ``agent_exit_code``: as in :class:`.Evidence`.

    Raises:
        TypeError: ``info`` is not a mapping, or a value is of a type that does not fit its key.
        ValueError: an exit code or a signal cannot be read.
    """
    if not isinstance(info, Mapping):
        raise TypeError(f"info must be a mapping, got {type(info).__name__}")
    known = {key: value for key, value in info.items() if value is not None}
    codes = _exit_codes(known)
    rank = known.get("rank", min(codes, default=0))
    lines: dict[int, list[str]] = {}
    for name in _MESSAGES:
        if name in known:
            said = str(known[name]).splitlines()
            lines.setdefault(rank, []).extend(said)
            if any(meaning_of(line) for line in said):
                codes = {number: code for number, code in codes.items() if code}
    for name in _LOGS:
        for number, said in _by_rank(name, known.get(name, ()), rank).items():
            lines.setdefault(number, []).extend(said)
    step = known.get("step")
    return Evidence(
        exit_codes=codes,
        log_lines={number: tuple(said) for number, said in lines.items()},
        node_lines=tuple(line for name in _NODE_LOGS for line in _lines(name, known.get(name, ()))),
        beats={} if step is None else {rank: Beat(phase="training", step=step)},
        nodes_lost=tuple(dict.fromkeys(_nodes_lost(known))),
        slurm_state=_first(known, _STATES),
        slurm_reason=_first(known, _REASONS),
        oom_kills=_oom_kills(known),
        **{name: known[name] for name in _PLAIN if name in known},
    )


def _exit_codes(known: Mapping[str, Any]) -> dict[int, int]:
    found: dict[int, int] = {}
    for name in _EXIT_CODES:
        value = known.get(name, {})
        if not isinstance(value, (Mapping, list, tuple)):
            value = {known.get("rank", 0): value}
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        found.update({int(rank): _exit_code(name, code) for rank, code in items if code is not None})
    if "signal" in known:
        found[known.get("rank", 0)] = -_signal(known["signal"])
    return found


def _exit_code(name: str, code: object) -> int:
    if isinstance(code, int) and not isinstance(code, bool):
        return code
    found = re.fullmatch("(-?[0-9]{1,6})(?::([0-9]{1,3}))?", code.strip()) if isinstance(code, str) else None
    if found is None:
        raise ValueError(f"{name} must be a whole number or Slurm's code:signal, got {code!r:.80}")
    return -int(found[2]) if found[2] and int(found[2]) else int(found[1])


def _signal(value: object) -> int:
    text = str(value).upper().removeprefix("SIG")
    try:
        return int(text) if text.isdecimal() else signal.Signals[f"SIG{text}"]
    except KeyError:
        raise ValueError(f"signal must be a number or a name such as SIGKILL, got {value!r:.80}") from None


def _by_rank(name: str, value: object, rank: int) -> dict[int, list[str]]:
    if isinstance(value, Mapping):
        return {int(number): _lines(name, said) for number, said in value.items()}
    return {rank: said} if (said := _lines(name, value)) else {}


def _lines(name: str, value: object) -> list[str]:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value.splitlines()
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a text or a list, got {type(value).__name__}")
    return [line for item in value for line in str(item).splitlines()]


def _nodes_lost(known: Mapping[str, Any]) -> Iterator[str]:
    for name in _NODES_LOST:
        yield from _lines(name, known.get(name, ()))
    for name in _NODE_STATES:
        if isinstance(states := known.get(name), Mapping):
            yield from (node for node, word in states.items() if word is False or _LOST.fullmatch(str(word)))


def _oom_kills(known: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in _OOM_KILLS:
        value = known.get(name, {})
        by_node = value if isinstance(value, Mapping) else {known.get("node", "the node"): value}
        found.update({str(node): int(count) for node, count in by_node.items()})
    return found


def _first(known: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    word = next((known[name] for name in names if isinstance(known.get(name), str)), None)
    return word.upper() if word and word.islower() and names is _STATES else word
