"""What the command and its worker tell each other: one JSON object, and one line each on a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from .facts import Finding, Machine, ModelFacts, Options, Trial


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """What a worker is asked to do. Points in time are of the monotonic clock, which processes share."""

    target: str
    """FILE:NAME."""
    inputs: tuple[str, ...] = ()
    """As ``--input`` has them."""
    loss: str | None = None
    optimizer: str | None = None
    options: Options = msgspec.field(default_factory=Options)
    started: float
    """When the worker was started."""
    analysis_until: float
    """When the analysis should have ended."""
    trials_until: float | None = None
    """When the trials must have ended; None: after the budget."""
    until: float
    """When the confirmation must have ended."""
    facts: ModelFacts | None = None
    """What an earlier worker found; None: it is to be found."""
    observe: bool = True
    """Whether findings are to be looked for."""
    done: tuple[Trial, ...] = ()
    """Trials of earlier workers."""
    confirm: tuple[str, ...] = ()
    """Strategies that were kept, to compare with the original; if any, nothing else is done."""


class Loaded(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """The user's file is loaded; what is known before the model is called."""

    facts: ModelFacts
    machine: Machine


class Refused(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """A mistake of the user."""

    why: str


class Found(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """The facts."""

    facts: ModelFacts


class Observed(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """The findings."""

    findings: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()
    """On what could not be looked at."""


class Planned(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """All strategies that may be tried, each as if it were not."""

    trials: tuple[Trial, ...]
    until: float
    """When the trials must have ended."""


class Trying(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """A trial begins."""

    strategy: str
    until: float
    """When it must have ended."""


class Tried(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """A trial has ended, or will not be made."""

    trial: Trial


class Offered(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Other functions that could replace parts of the model."""

    offers: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()
    """On offers that failed."""


class Confirmed(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """What was kept, against the original."""

    trial: Trial


class Compared(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """What outputs are compared with."""

    reference: str


class Failed(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """The worker cannot go on, for a reason that is not the user's."""

    why: str


class Finished(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """The worker has done what it was asked to."""


Message = (
    Loaded
    | Refused
    | Found
    | Observed
    | Planned
    | Trying
    | Tried
    | Offered
    | Compared
    | Confirmed
    | Failed
    | Finished
)

decode_message: Callable[[bytes], Message] = msgspec.json.Decoder(Message).decode
decode_request: Callable[[bytes], Request] = msgspec.json.Decoder(Request).decode


def _plain(value: object) -> object:
    """Values of classes derived from str, int and float, such as NumPy's numbers."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise NotImplementedError(f"no message can hold a {type(value).__name__}")


encode: Callable[[object], bytes] = msgspec.json.Encoder(enc_hook=_plain).encode


class Pipe:
    """The worker's end: one line a message."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: Message) -> None:
        """Write a message.

        Raises:
            OSError: the pipe is closed.
        """
        line = encode(message) + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]
