"""What the workers of a run have reported, and what the next one is to do. Pure: the clock is given.

Points in time are of the monotonic clock, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import msgspec

from ..errors import KernelPytorchError
from .facts import AdviceReport, Finding, Machine, ModelFacts, Trial, Verdict
from .messages import (
    Compared,
    Confirmed,
    Found,
    Loaded,
    Message,
    Observed,
    Offered,
    Planned,
    Request,
    Tried,
    Trying,
)
from .target import TargetError

OVERTIME_S = 15.0
"""Beyond the budget; all is over by then."""
ANALYSIS_S = 9.0
"""Asked of the analysis."""
_END_S = 3.0
"""To kill the last worker, which takes seconds where it holds much memory, and to print the report."""
_GRACE_S = 1.0
"""For a worker to say itself that a trial's time is over."""


class AdviceError(KernelPytorchError):
    """The advisor itself cannot run."""


def reserve(load_s: float) -> float:
    """Seconds to leave for a fresh worker to load what took ``load_s`` seconds."""
    return 1.0 + 1.2 * load_s


class RunRecord:
    """What is known of a run.

    Args:
        request: what the user asks for; its points in time are set here.
        say: gets a line for people at each step.
        now: when the run begins.
    """

    def __init__(self, request: Request, say: Callable[[str], None], now: float) -> None:
        self._say, self._started = say, now
        self._until = now + request.options.budget_s + OVERTIME_S - _END_S
        self._request = msgspec.structs.replace(
            request, started=now, until=self._until, analysis_until=now + ANALYSIS_S
        )
        self.deadline = self._until
        """When the worker is to be killed."""
        self._stage: Literal["loading", "analysis", "findings", "trials"] = "loading"
        self._reserve_s = 0.0
        """Seconds that a worker needs before it can begin; 0: unknown."""
        self._facts: ModelFacts | None = None
        self._machine: Machine | None = None
        self._findings: tuple[Finding, ...] | None = None
        self._planned: dict[str, Trial] = {}
        self._trials_until = math.inf
        self._trying: str | None = None
        self._tried: list[Trial] = []
        self._searched = False
        self._offers: tuple[Finding, ...] = ()
        self._reference = ""
        self._result: Trial | None = None
        self._remarks: list[str] = []
        self.why_no_more = "no time was left"
        """Reason of what was not tried."""

    def next(self, now: float) -> Request | None:
        """What a fresh worker is to do; None: nothing is left to do."""
        self._stage, self.deadline, self._trying = "loading", self._until, None
        request = msgspec.structs.replace(
            self._request,
            started=now,
            facts=self._facts,
            observe=self._findings is None,
            done=tuple(self._tried),
            trials_until=self._trials_until if self._planned else None,
        )
        if self._facts is None:
            self._say(f"loading {request.target}")
            return request
        if self._facts.failed:
            return None
        if not self._searched and now + self._reserve_s < min(self._trials_until, self._until):
            return request
        kept = tuple(trial.strategy for trial in self._tried if trial.verdict == "kept")
        if not kept or self._result is not None:
            return None
        self._say(f"confirming {' + '.join(kept)} in a fresh process")
        return msgspec.structs.replace(request, confirm=kept)

    def note(self, request: Request, message: Message, now: float) -> None:
        """Keep what a worker reports."""
        if isinstance(message, Loaded):
            self._reserve_s = max(self._reserve_s, reserve(now - request.started))
            self._stage = "trials"
            if request.facts is None:
                self._facts, self._machine, self._stage = message.facts, message.machine, "analysis"
                self._say("analysing the model")
            elif request.observe:
                self._begin_findings(request, now)
        elif isinstance(message, Found):
            self._facts = message.facts
            self._begin_findings(request, now)
        elif isinstance(message, Observed):
            self._findings = message.findings
            self._remarks += message.remarks
            self._stage, self.deadline = "trials", self._until
        elif isinstance(message, Planned):
            self._planned = {trial.strategy: trial for trial in message.trials}
            self._trials_until = message.until
        elif isinstance(message, Trying):
            self._trying, self.deadline = message.strategy, message.until + _GRACE_S
            self._say(f"trying {message.strategy}, for {message.until - now:.0f} s at most")
        elif isinstance(message, Tried):
            self._trying, self.deadline = None, self._until
            self._tried.append(message.trial)
            if message.trial.verdict != "not tried":
                self._say(outcome(message.trial))
        elif isinstance(message, Compared):
            self._reference = message.reference or self._reference
        elif isinstance(message, Offered):
            self._offers = message.offers
            self._remarks += message.remarks
        elif isinstance(message, Confirmed):
            self._result = message.trial

    def finished(self, request: Request) -> None:
        """Note that a worker has done all it was asked to."""
        self._searched = self._searched or not request.confirm

    def ended(self, request: Request, verdict: Verdict, why: str, now: float) -> None:
        """Note why a worker has ended before it had finished, so that the next one goes on.

        Raises:
            TargetError: the user's file cannot be loaded.
            AdviceError: the worker cannot run.
        """
        if self._stage == "loading" and self._facts is None:
            if verdict == "out of time":
                why = f"not loaded after {now - self._started:.0f} s"
            if verdict == "failed":
                raise AdviceError(f"the worker cannot run: {why}")
            raise TargetError(f"{request.target}: {why}" + " while it was loaded" * (verdict == "killed"))
        if request.confirm:
            self._result = Trial(strategy=" + ".join(request.confirm), verdict=verdict, reason=why)
            self._say(outcome(self._result))
        elif self._stage == "analysis" and self._facts is not None:
            self._facts = replace(self._facts, failed=f"{why} while it was analysed")
        elif self._stage == "findings":
            self._findings = ()
            self._remarks.append(f"no findings: {why} while they were looked for")
        elif self._trying is not None:
            self._tried.append(replace(self._planned[self._trying], verdict=verdict, reason=why))
            self._say(outcome(self._tried[-1]))
        else:  # between trials, where no strategy is to blame
            self._searched = True
            self.why_no_more = f"the trials ended early: {why}"

    def report(self, now: float) -> AdviceReport | None:
        """What is known; None: nothing is, as before the model is loaded."""
        if self._facts is None or self._machine is None:
            return None
        tried = {trial.strategy for trial in self._tried}
        left = [
            trial if trial.reason else replace(trial, reason=self.why_no_more)
            for name, trial in self._planned.items()
            if name not in tried
        ]
        made = [trial for trial in self._tried if trial.verdict != "not tried"]
        others = [trial for trial in self._tried if trial.verdict == "not tried"]
        return AdviceReport(
            target=self._request.target,
            machine=self._machine,
            options=self._request.options,
            facts=replace(self._facts, remarks=(*self._facts.remarks, *self._remarks)),
            findings=self._findings or (),
            trials=(*made, *others, *left),
            result=self._result,
            confirmed=self._result is not None and self._result.verdict in ("kept", "reverted"),
            reference=self._reference,
            offers=self._offers,
            seconds=now - self._started,
        )

    def _begin_findings(self, request: Request, now: float) -> None:
        self._stage = "findings"
        self.deadline = min(self._until, now + 10.0 + 0.1 * request.options.budget_s)


def outcome(trial: Trial) -> str:
    """What came of a trial, in a line."""
    gain = "" if trial.gain is None else f", {trial.gain:.2f} times as fast"
    if trial.reason.startswith(trial.verdict):
        return f"{trial.strategy}: {trial.reason}"
    return f"{trial.strategy}: {trial.verdict}{gain}" + (f": {trial.reason}" if trial.reason else "")
