"""One run of the command: workers, one after the other, until all is tried or the time is over. Without torch."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import KernelPytorchError
from .facts import AdviceReport, Finding, Machine, ModelFacts, Trial, Verdict
from .messages import (
    Compared,
    Confirmed,
    Failed,
    Finished,
    Found,
    Loaded,
    Message,
    Observed,
    Offered,
    Planned,
    Refused,
    Request,
    Tried,
    Trying,
)
from .target import TargetError
from .worker_process import WorkerEnded, WorkerProcess

OVERTIME_S = 15.0
"""Beyond the budget; all is over by then."""
ANALYSIS_S = 9.0
"""Asked of the analysis."""
WORKER = (sys.executable, "-m", "kernel_pytorch.advice.worker")
_END_S = 2.0
"""To kill a worker, and to print the report."""
_GRACE_S = 1.0
"""For a worker to say itself that its time is over."""

Stage = Literal["loading", "analysis", "findings", "trials", "confirmation"]


class AdviceError(KernelPytorchError):
    """Nothing can be said of the model."""


class Supervisor:
    """Runs the workers of one request and keeps what they report.

    Args:
        request: its ``started``, ``until`` and ``analysis_until`` are set here.
        say: gets a line for people at each step.
        command: runs a worker.
    """

    def __init__(self, request: Request, say: Callable[[str], None], command: Sequence[str] = WORKER) -> None:
        self._say, self._command = say, command
        self._started = time.monotonic()
        self._until = self._started + request.options.budget_s + OVERTIME_S - _END_S
        self._request = msgspec.structs.replace(
            request,
            started=self._started,
            until=self._until,
            analysis_until=self._started + ANALYSIS_S,
        )
        self._stage: Stage = "loading"
        self._deadline = self._until
        self._reserve_s = 0.0
        """Seconds that a worker needs before it can begin."""
        self._facts: ModelFacts | None = None
        self._machine: Machine | None = None
        self._findings: tuple[Finding, ...] = ()
        self._observed = False
        self._planned: dict[str, Trial] = {}
        self._trials_until = math.inf
        self._trying: str | None = None
        self._tried: list[Trial] = []
        self._searched = False
        self._offers: tuple[Finding, ...] = ()
        self._reference = ""
        self._result: Trial | None = None
        self._without_calls = ""
        self._remarks: list[str] = []
        self._why_no_more = "no time was left"

    def run(self) -> None:
        """Run workers until all is known. :meth:`report` has the results, also after an exception.

        Raises:
            TargetError: what the user named is not there, is not what is needed, or raises.
            AdviceError: the model cannot even be looked at.
            KeyboardInterrupt: Ctrl-C or SIGTERM; no process is left.
        """
        with tempfile.TemporaryDirectory(prefix="kernel-pytorch-", ignore_cleanup_errors=True) as folder:
            environment = {"KINETO_LOG_LEVEL": "99", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
            try:
                while (request := self._next()) is not None:
                    self._one_worker(request, Path(folder), environment)
            except KeyboardInterrupt:
                self._trying, self._why_no_more = None, "interrupted"
                raise

    def report(self) -> AdviceReport | None:
        """What is known; None: nothing is, as before the analysis has ended."""
        if self._facts is None or self._machine is None:
            return None
        tried = {trial.strategy for trial in self._tried}
        left = [
            trial if trial.reason else replace(trial, reason=self._why_no_more)
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
            findings=self._findings,
            trials=(*made, *others, *left),
            result=self._result,
            confirmed=self._result is not None and self._result.verdict in ("kept", "reverted"),
            reference=self._reference,
            offers=self._offers,
            seconds=time.monotonic() - self._started,
        )

    def _kept(self) -> tuple[str, ...]:
        return tuple(trial.strategy for trial in self._tried if trial.verdict == "kept")

    def _next(self) -> Request | None:
        """What the next worker is to do; None: all is done."""
        now = time.monotonic()
        request = msgspec.structs.replace(
            self._request,
            started=now,
            facts=self._facts,
            observe=not self._observed,
            done=tuple(self._tried),
            trials_until=self._trials_until if self._planned else None,
            without_calls=self._without_calls,
        )
        if self._facts is None:
            return request
        if self._facts.failed:
            return None
        if not self._searched and now + self._reserve_s < min(self._trials_until, self._until):
            return request
        if not self._kept() or self._result is not None:
            return None
        return msgspec.structs.replace(request, confirm=self._kept())

    def _one_worker(self, request: Request, folder: Path, environment: dict[str, str]) -> None:
        self._stage, self._deadline = "loading", self._until
        if not self._reserve_s:
            self._say(f"loading {request.target}")
        elif request.confirm:
            self._say(f"confirming {' + '.join(request.confirm)} in a fresh process")
        began = time.monotonic()
        worker = WorkerProcess(self._command, request, folder, environment)
        try:
            while True:
                message = worker.receive(self._deadline)
                if message is None:
                    self._ended(request, "out of time", "it did not end in time")
                    return
                if isinstance(message, Finished):
                    self._searched = self._searched or not (request.confirm or request.without_calls)
                    return
                if isinstance(message, Refused):
                    raise TargetError(message.why)
                if isinstance(message, Failed):
                    self._ended(request, "failed", message.why)
                    return
                self._note(request, message, began)
        except WorkerEnded as ended:
            self._ended(request, "killed", str(ended))
        finally:
            worker.kill()

    def _note(self, request: Request, message: Message, began: float) -> None:
        now = time.monotonic()
        if isinstance(message, Loaded):
            self._reserve_s = max(self._reserve_s, 1.0 + 1.2 * (now - began))
            if request.confirm:
                self._stage = "confirmation"
            elif request.facts is None:
                self._stage = "analysis"
                self._say("analysing the model")
                if not request.without_calls:
                    self._deadline = self._until - self._reserve_s
            else:
                self._begin_search()
        elif isinstance(message, Found):
            self._facts, self._machine = message.facts, message.machine
            self._stage = "findings"
            self._deadline = min(self._until, now + 5.0 + 0.2 * request.options.budget_s)
        elif isinstance(message, Observed):
            self._findings, self._observed = message.findings, True
            self._begin_search()
        elif isinstance(message, Planned):
            self._planned = {trial.strategy: trial for trial in message.trials}
            self._trials_until = message.until
            self._begin_search()
        elif isinstance(message, Trying):
            self._trying, self._deadline = message.strategy, message.until + _GRACE_S
            self._say(f"trying {message.strategy}, for {message.until - now:.0f} s at most")
        elif isinstance(message, Tried):
            self._trying = None
            self._tried.append(message.trial)
            self._begin_search()
            if message.trial.verdict != "not tried":
                self._say(outcome(message.trial))
        elif isinstance(message, Compared):
            self._reference = message.reference
        elif isinstance(message, Offered):
            self._offers = message.offers
        elif isinstance(message, Confirmed):
            self._result = message.trial

    def _begin_search(self) -> None:
        self._stage, self._deadline = "trials", self._until

    def _ended(self, request: Request, verdict: Verdict, why: str) -> None:
        """Note why a worker has ended before it had finished, so that the next one goes on."""
        if self._stage == "loading":
            seconds = time.monotonic() - self._started
            late = f"not loaded after {seconds:.0f} s"
            if not self._reserve_s:
                raise TargetError(
                    f"{request.target}: {late if verdict == 'out of time' else why} (while loading)"
                )
            self._why_no_more = f"a fresh process could not load the model: {why}"
            self._searched = True
            if not request.confirm and not self._kept():
                return
        if request.without_calls:
            raise AdviceError(f"{request.target}: {request.without_calls}")
        if request.confirm:
            name = " + ".join(request.confirm)
            self._result = Trial(strategy=name, verdict=verdict, reason=why)
            self._say(outcome(self._result))
        elif self._stage == "analysis":
            self._without_calls = f"{why} (while the model was analysed)"
        elif self._stage == "findings":
            self._observed = True
            self._remarks.append(f"no findings: {why} (while they were looked for)")
        elif self._trying is not None:
            planned = self._planned[self._trying]
            self._tried.append(replace(planned, verdict=verdict, reason=why))
            self._trying = None
            self._say(outcome(self._tried[-1]))
        else:  # between trials, where no strategy is to blame
            self._searched = True
            self._remarks.append(f"the trials ended early: {why}")


def outcome(trial: Trial) -> str:
    """What came of a trial, in a line."""
    gain = "" if trial.gain is None else f", {trial.gain:.2f} times as fast"
    reason = f": {trial.reason}" if trial.reason else ""
    return f"{trial.strategy}: {trial.verdict}{gain}{reason}"
