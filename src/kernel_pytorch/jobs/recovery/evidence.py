"""What is known about an attempt of a job when it ends or is to be judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The last sign of life of a rank."""

    phase: str
    """starting, training, evaluating, saving or left."""
    step: int | None = None
    since_s: float = 0.0
    """Seconds since the beat, when the rank was last seen alive."""
    median_step_s: float | None = None
    min_hang_s: float | None = None
    """The shortest limit for a hang, if it is not the usual one."""
    process_state: str | None = None
    """State letter of ``/proc/PID/stat``: T is stopped, D an uninterruptible wait."""
    where: str | None = None
    """Innermost line of its stack."""


@dataclass(frozen=True, kw_only=True)
class RankError:
    """The error that a rank recorded itself."""

    text: str
    type: str | None = None
    """Class of the exception."""
    traceback: str | None = None
    step: int | None = None
    """None: before its first step."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Facts about one attempt. What is not known is None or empty; 0 means that it was read and is 0."""

    exit_codes: Mapping[int, int] = field(default_factory=dict)
    """By rank. Negative: ended by that signal, as in ``subprocess``."""
    agent_exit_code: int | None = None
    """Of torchrun: 0 means that all ranks of the node returned 0, all else only that something failed."""
    errors: Mapping[int, RankError] = field(default_factory=dict)
    log_lines: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Last lines by rank, the newest last."""
    node_lines: tuple[str, ...] = ()
    """Last lines of the agents, of Slurm and of the kernel's log since the attempt began."""
    beats: Mapping[int, Beat] = field(default_factory=dict)
    left: Mapping[int, int | None] = field(default_factory=dict)
    """Step at which ranks left in good order; None: they did not say."""
    stop_requested: str | None = None
    """Why the ranks were asked to stop, such as "time limit"."""
    cancelled: bool = False
    nodes_lost: tuple[str, ...] = ()
    first_node: str | None = None
    """Name of the node that hosts the store."""
    node_of: Mapping[int, str] = field(default_factory=dict)
    """Name of the node by rank."""
    slurm_state: str | None = None
    slurm_reason: str | None = None
    oom_kills: Mapping[str, int] = field(default_factory=dict)
    """By node: increase of ``oom_kill`` in the cgroup's ``memory.events`` since the attempt began."""
    disk_free: Mapping[str, int] = field(default_factory=dict)
    """Bytes by folder."""

    def to_dict(self) -> dict[str, object]:
        """For JSON: ranks become strings, and what is not known is left out."""
        known = [name for name, default in vars(_NOTHING).items() if getattr(self, name) != default]
        return {name: _plain(getattr(self, name)) for name in known}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Evidence:
        """The opposite of :meth:`to_dict`.

        Raises:
            ValueError: a key is unknown.
        """
        if unknown := sorted(set(values) - {item.name for item in fields(cls)}):
            raise ValueError(f"unknown evidence: {', '.join(unknown)}")
        return cls(**{name: _read(name, value) for name, value in values.items()})  # type: ignore[arg-type]

    def joined(self, later: Evidence) -> Evidence:
        """This and what was learnt later, or on another node, of the same attempt.

        What was known first stays: after a failure the ranks that wait for the failed one end too, and the
        next ones begin. Only the agents' exit codes are weighed: one that is not 0 counts for all.
        """
        values: dict[str, Any] = {}
        for name, default in vars(_NOTHING).items():
            mine, other = getattr(self, name), getattr(later, name)
            if isinstance(default, Mapping):
                values[name] = {**other, **mine}
            elif isinstance(default, tuple):
                values[name] = tuple(dict.fromkeys((*mine, *other)))
            elif name == "agent_exit_code":
                values[name] = mine or (mine if other is None else other)
            else:
                values[name] = other if mine in (None, False) else mine
        for rank, beat in self.beats.items():
            if beat.where is None and rank in later.beats:  # stacks are taken after a beat was missed
                values["beats"][rank] = replace(beat, where=later.beats[rank].where)
        return Evidence(**values)


_BY_RANK = ("exit_codes", "errors", "log_lines", "beats", "left", "node_of")
_ITEMS = {"errors": RankError, "beats": Beat}
_NOTHING = Evidence()


def _plain(value: object) -> object:
    if isinstance(value, (Beat, RankError)):
        return {key: item for key, item in vars(value).items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _read(name: str, value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, Mapping):
        return value
    items = {int(key) if name in _BY_RANK else key: item for key, item in value.items()}
    if kind := _ITEMS.get(name):
        return {key: kind(**item) for key, item in items.items()}
    return {key: tuple(item) if isinstance(item, list) else item for key, item in items.items()}
