"""Decides for all nodes of an attempt: reports of the nodes in, orders to them out.

It knows no sockets and no processes. The recovery contract itself is
:func:`kernel_pytorch.jobs.recovery.plan.plan`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..folder import JobFolder, JobFolderError
from ..recovery.classify import Failure, classify
from ..recovery.evidence import Evidence
from ..recovery.messages import TYPES
from ..recovery.plan import FAILED, REQUEUE, Decision, Limits, plan
from ..recovery.timing import lead_time
from .history import failures, last_save_s, last_saved, requeues_by_faults

SETTLE_S = 1.0
"""From the first sign of a failure until it is judged: time for what caused it to show. Ranks that torchrun
has started again wait so long."""
STACKS_S = 6.0
"""The same for a hang, in which stacks are written."""
CLOSING_S = 6.0
"""How much longer a failure is not judged while torchrun ends the ranks of a node: which one failed, it says
then."""
GPU_S = 5.0
"""How much longer a failure of a GPU is not judged: its node reads what is wrong with it, and torchrun starts
all ranks again. If an agent ended before, the others would wait a minute for it."""
_LOOK_EVERY_S = 1.0
_IN_PLACE = ("restart", "go_on_smaller")

Order = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a job may do, from its specification."""

    min_nodes: int
    max_retries: int
    max_requeues: int
    other_nodes: bool = True
    """Whether the cluster may have others than those that a job has lost."""

    @classmethod
    def of(cls, job: Mapping[str, Any], nodes: int) -> Contract:
        """Of the content of ``job.json``, for ``nodes`` nodes."""
        spec = job["spec"]
        never = spec["restart_policy"] == "Never"
        return cls(
            min_nodes=nodes if never else spec["nodes"][0],
            max_retries=0 if never else spec["max_retries"],
            max_requeues=0 if never else Limits.max_requeues,
            other_nodes=job["target"] != "local",
        )


class Head:
    """The deciding half of the first node's program.

    Args:
        folder: the job's.
        attempt: its number.
        names: of all nodes, by index.
        present: indices of those that take part.
        contract: what the job may do.
        ends_at: when the cluster ends the job, in seconds since 1970; None: never.
    """

    def __init__(
        self,
        folder: JobFolder,
        attempt: int,
        names: Sequence[str],
        present: Sequence[int],
        contract: Contract,
        ends_at: float | None = None,
    ) -> None:
        self.folder, self.attempt, self.names = folder, attempt, names
        self.contract, self.ends_at = contract, ends_at
        self.present = set(present)
        # Read now: a decision must not depend on whether the folder can be read then.
        self.history, self._requeues = failures(folder), requeues_by_faults(folder)
        self._began, self._saved_before_s = time.time(), last_save_s(folder)
        self.asked: str | None = None
        """Why the ranks are to stop; None: they are not."""
        self._broken: str | None = None
        """A fault of a node program, which no other node would mend; None: there was none."""
        self._told = False
        self._restarts = 0
        self._seen: dict[int, Mapping[str, Any]] = {}
        self._look_at = 0.0
        self._begin_case()

    def _begin_case(self) -> None:
        self._evidence = Evidence()
        self._lost: dict[int, str] = {}
        self._ended: dict[int, int] = {}
        self._decide_at: float | None = None
        self._hang = False
        self._stacks_of: set[int] = set()
        self._closing: set[int] = set()
        self._stalled: set[int] = set()
        self._health: dict[int, str | None] = {}
        """What each node said of its condition; None: it found no fault."""
        self._restarting: set[int] = set()
        """Nodes of which ranks have failed, and none has begun again."""
        self._gpu_until: float | None = None

    def take(self, index: int, report: Mapping[str, Any], now: float) -> None:
        """Take note of what a node reports; ``now`` is monotonic, as everywhere below."""
        if index not in self.present:
            return  # it was ordered to leave
        kind, name = report["kind"], self.names[index]
        if kind == "seen":
            self._seen[index] = report
            return
        if kind == "health":
            self._health[index] = report["text"]
        if kind in ("health", "note"):
            if report["text"] is not None:
                self.event(kind, f"{name}: {report['text']}", nodes=[name])
            return
        if kind == "asked":
            self.asked = self.asked or report["why"]
            return
        if "evidence" in report:
            self._evidence = self._evidence.joined(Evidence.from_dict(report["evidence"]))
        if kind == "ended":
            self._ended[index] = report["code"]
        if kind == "failed":
            self._restarting.add(index)
        elif kind in ("ended", "began"):
            self._restarting.discard(index)
        if kind == "closing":
            self._closing.add(index)
        elif kind in ("failed", "ended", "began"):
            self._closing.discard(index)
        elif kind == "stalled":
            self._stalled.add(index)
        elif kind == "gave_up":
            self.lose(index, report["why"], now)
        elif kind == "broke":
            self._broken = f"the node program of {name} failed: {report['why']}"
        if kind == "stacks":
            self._stacks_of.add(index)
            if self._stacks_of >= self.present - self._lost.keys() - self._ended.keys():
                self._decide_by(now + SETTLE_S)  # the ranks end by it, which is a part of the same failure
        elif kind == "late":
            self._hang = True
        elif kind == "failed" or report.get("code"):
            self._decide_by(now + SETTLE_S)

    def lose(self, index: int, why: str, now: float) -> None:
        """Take note of a node that does not answer any more."""
        if index in self.present and index not in self._lost:
            self._lost[index] = why
            if self._ended.get(index) != 0:
                self._decide_by(now + SETTLE_S)

    def orders(self, now: float, wall: float) -> list[Order]:
        """What all nodes do now. An order ``end`` is the last one.

        Args:
            wall: seconds since 1970.
        """
        if self._broken is not None:
            decision = Decision(action="fail", exit_code=FAILED, reason=self._broken)
            self.end("failed", self._broken, self._step())
            return [_end(decision)]
        found = [*self._stop_if_asked(now, wall)]
        if self._hang and self._decide_at is None:
            self._decide_by(now + STACKS_S)
            found.append({"kind": "stacks"})
        waiting = self.present - self._lost.keys() - self._ended.keys()
        if not waiting or self._is_due(now):
            failure = self._failure()
            if not self._awaits_node(failure, now):
                found += self._decide_on(failure)
        elif self._stalled and self._decide_at is None:
            found += self._requeue_stalled()
        return found

    def _is_due(self, now: float) -> bool:
        if self._decide_at is None:
            return False
        return now >= self._decide_at + CLOSING_S * bool(self._closing - self._lost.keys())

    def stop_before_begin(self, why: str) -> Order:
        """The last order, where the job was asked to stop before any rank was started."""
        self.asked = why
        (order,) = self._decide_on(self._failure())
        return order

    def _decide_by(self, moment: float) -> None:
        self._decide_at = moment if self._decide_at is None else min(moment, self._decide_at)

    def _stop_if_asked(self, now: float, wall: float) -> list[Order]:
        if self._told:
            return []
        self.asked = self.asked or self._why_stop(now, wall)
        if self.asked is None:
            return []
        self._told = True
        self.event("stop", f"asked to stop: {self.asked}", step=self._step())
        return [{"kind": "stop", "why": self.asked}]

    def _why_stop(self, now: float, wall: float) -> str | None:
        if self.ends_at is not None:
            save_s = self._most("save_s") or self._saved_before_s
            lead = lead_time(save_s, self._most("median_step_s"))
            # A short attempt would end before it has begun by an assumption made for hours.
            longest = lead.value if save_s is not None else (self.ends_at - self._began) / 2
            if wall >= self.ends_at - min(lead.value, longest):
                return f"the time limit is near ({lead.why})"
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            with suppress(JobFolderError):
                if self.folder.ended():
                    return "cancelled"
                return self.folder.stop_reason()
        return None

    def _most(self, name: str) -> float | None:
        return max((s[name] for s in self._seen.values() if s.get(name) is not None), default=None)

    def _step(self) -> int | None:
        return max((s["step"] for s in self._seen.values() if s.get("step") is not None), default=None)

    def _failure(self) -> Failure:
        """What has happened, as far as is known now."""
        cancelled = False
        with suppress(JobFolderError):
            cancelled = (self.folder.ended() or {}).get("state") == "cancelled"
        evidence = replace(
            self._evidence,
            cancelled=cancelled,
            first_node=self.names[0],
            nodes_lost=tuple(self.names[index] for index in self._lost if self._ended.get(index) != 0),
            stop_requested=self.asked,
        )
        failure = classify(evidence, self.attempt)
        if failure.step is None and failure.kind not in ("user", "done"):
            failure = replace(failure, step=self._step())
        return failure

    def _awaits_node(self, failure: Failure, now: float) -> bool:
        """Whether a node with a faulty GPU is not ready to leave."""
        if failure.kind != "gpu":
            return False
        if self._gpu_until is None:
            self._gpu_until = now + GPU_S
        living = self._faulty(failure) - self._lost.keys()
        return now < self._gpu_until and bool(living & self._restarting or living - self._health.keys())

    def _decide_on(self, failure: Failure) -> list[Order]:
        return self._carry_out(self._possible(self.decision_on(failure), failure), failure)

    def end_by_limit(self) -> Decision:
        """Take note that the cluster ends the attempt at its time limit, and some ranks have not left yet.

        They may still save before they are killed.
        """
        text = "the time limit has passed, and not all ranks have saved and left"
        kind = "timeout"
        failure = Failure(kind=kind, type=TYPES[kind], text=text, step=self._step(), attempt=self.attempt)
        decision = self.decision_on(failure)
        self.record(decision, failure, {})
        return decision

    def decision_on(self, failure: Failure) -> Decision:
        """What to do about a failure, by the contract."""
        limits = Limits(
            max_retries=self.contract.max_retries,
            restarts_used=self._restarts,
            requeues=self._requeues,
            max_requeues=self.contract.max_requeues,
            min_nodes=self.contract.min_nodes,
            nodes_left=len(self._left(failure)),
            is_first_node=self.names[0] in failure.nodes,
            other_nodes=self.contract.other_nodes,
        )
        return plan(failure, self.history, limits)

    def _possible(self, decision: Decision, failure: Failure) -> Decision:
        """Where torchrun itself has ended, nothing can go on in place: the same is done by requeueing."""
        if decision.action in _IN_PLACE and self._ended:
            return self._requeue_instead(f"{failure.text}; torchrun has ended", failure.nodes)
        return decision

    def _requeue_instead(self, why: str, exclude: tuple[str, ...] = ()) -> Decision:
        if self._requeues >= self.contract.max_requeues:
            reason = f"{why}, and all {self.contract.max_requeues} requeues are used"
            return Decision(action="fail", exit_code=FAILED, reason=reason)
        return Decision(
            action="requeue", exit_code=REQUEUE, reason=f"{why}, so the job is requeued", exclude=exclude
        )

    def _requeue_stalled(self) -> list[Order]:
        """A restart was decided, but a node had done its part: its ranks are needed again."""
        names = " and ".join(self.names[index] for index in sorted(self._stalled))
        decision = self._requeue_instead(f"all ranks of {names} had left before others failed")
        if decision.action == "fail":
            self.end("failed", decision.reason, self._step())
        else:
            self.event("requeue", decision.reason, because="fault")
        return [_end(decision)]

    def _carry_out(self, decision: Decision, failure: Failure) -> list[Order]:
        lost = {self.names[index]: why for index, why in self._lost.items()}
        self.record(decision, failure, lost)
        if decision.action in _IN_PLACE:
            self.history = [*self.history, failure]
            self._restarts += decision.action == "restart"
            without = sorted(self._faulty(failure) - self._lost.keys())
            self.present = self._left(failure)
            self._begin_case()
            if decision.action == "go_on_smaller":
                return [{"kind": "restart", "nodes": len(self.present), "without": without}]
            return [{"kind": "allow_restart"}]
        return [_end(decision)]

    def record(self, decision: Decision, failure: Failure, lost: Mapping[str, str]) -> None:
        """Write a failure, and what was decided, to the job's folder.

        Args:
            decision: taken.
            failure: its reason.
            lost: why the nodes that are lost count as such, by name.
        """
        fault = failure.kind not in ("done", "stopped", "cancelled")
        health = {self.names[index]: text for index, text in self._health.items() if text is not None} or None
        if fault:
            self.event(
                "failure",
                failure.text,
                failure=failure.to_dict(),
                step=failure.step,
                steps_lost=None if decision.action == "fail" else self._steps_lost(failure),
                lost=lost or None,
                health=health,
            )
        if decision.action in _IN_PLACE:
            names = [self.names[index] for index in sorted(self._left(failure))]
            smaller = decision.action == "go_on_smaller"
            self.event(decision.action, decision.reason, nodes=names, health=health if smaller else None)
        elif decision.action == "requeue":
            self.event(
                "requeue",
                decision.reason,
                exclude=list(decision.exclude) or None,
                because="fault" if fault else "asked",
                failure=None if fault else failure.to_dict(),
                health=health,
                steps_lost=None if fault else self._steps_lost(failure),  # those of a fault are told above
            )
        else:
            state = "completed" if decision.action == "done" else "failed"
            self.end("cancelled" if failure.kind == "cancelled" else state, decision.reason, failure.step)

    def _left(self, failure: Failure) -> set[int]:
        """The nodes that can go on after a failure."""
        return self.present - self._lost.keys() - self._faulty(failure)

    def _faulty(self, failure: Failure) -> set[int]:
        """Those of the nodes present that the failure blames, whether they are lost or not."""
        return {index for index in self.present if self.names[index] in failure.nodes}

    def _steps_lost(self, failure: Failure) -> int | None:
        """Steps since the last checkpoint, all of which are repeated."""
        if failure.step is None:
            return None
        try:
            return max(0, failure.step - (last_saved(self.folder) or 0))
        except JobFolderError as error:
            print(f"how many steps are lost is not known: {error}", file=sys.stderr, flush=True)
            return None

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """Write an event; the job goes on where that is not possible."""
        print(f"{kind}: {text}", file=sys.stderr, flush=True)
        known = {name: value for name, value in facts.items() if value is not None}
        try:
            self.folder.event(kind, text, attempt=self.attempt, **known)
        except JobFolderError as error:
            print(f"the event was not written: {error}", file=sys.stderr, flush=True)

    def end(self, state: str, reason: str, step: int | None) -> None:
        """Write the end record and its event."""
        try:
            self.folder.end(state, reason, step=step, attempt=self.attempt)
        except JobFolderError as error:
            print(f"the end was not recorded: {error}", file=sys.stderr, flush=True)
        self.event("end", f"{state}: {reason}", step=step)


def _end(decision: Decision) -> Order:
    exclude = list(decision.exclude)
    return {"kind": "end", "code": decision.exit_code, "why": decision.reason, "exclude": exclude}
