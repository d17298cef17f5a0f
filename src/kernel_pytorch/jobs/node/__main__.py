"""``python -m kernel_pytorch.jobs.node FOLDER``: runs once on each node of a job, on every target.

Exit status: 0 done, or nothing is left to do; 75 the job is to be run again; 1 failed; 2 the user's mistake.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

from ...errors import KernelPytorchError
from ..folder import JobFolder, JobFolderError
from ..rank.parent import die_with_parent
from ..recovery.classify import Failure, classify
from ..recovery.evidence import Evidence
from ..recovery.plan import FAILED, REQUEUE, USER
from ..recovery.timing import checkpoint_interval, torchrun_timeouts
from . import requeue
from .devices import devices_for_ranks
from .head import Contract, Head
from .history import last_save_s, observed_mtbf_h
from .member import Member
from .place import Place, here, positive_seconds
from .rendezvous import Circle, MeetingError, meet

_TICK_S = 0.2
_MEET_S = 120.0
"""How long nodes wait for each other; ``$KERNEL_PYTORCH_MEET_S`` in its place."""
_GOODBYE_S = 10.0
_LIMIT_S = 1.0
"""From a SIGTERM until Slurm is asked if it came by the time limit: it kills everything KillWait later."""


class _Signals:
    """Requests to stop that reach this program by a signal."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._receive)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for what is in the foreground

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def main(arguments: list[str]) -> int:
    """Run the node's part of the job; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m kernel_pytorch.jobs.node FOLDER", file=sys.stderr)
        return USER
    signals = _Signals()
    try:
        folder = JobFolder(arguments[0])
        job = folder.job()
        place = here()
        if not die_with_parent():
            return FAILED
        if folder.ended():
            print(f"{folder.id} has ended", file=sys.stderr)
            return 0
        return (_First if place.index == 0 else _Other)(folder, job, place, signals).run()
    except (KernelPytorchError, OSError) as error:
        print(f"kernel_pytorch.jobs.node: error: {error}{_unshared(error)}", file=sys.stderr)
        return FAILED


def _unshared(error: BaseException) -> str:
    """What to do, if the error is that this node does not see the job's folder."""
    if not isinstance(error, JobFolderError) or not isinstance(error.__cause__, FileNotFoundError):
        return ""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return f" on {node}: the job's folder must be on a file system that all nodes share"


class _Node:
    """What the first node and the others have in common."""

    def __init__(self, folder: JobFolder, job: Mapping[str, Any], place: Place, signals: _Signals) -> None:
        self.folder, self.job, self.place, self.signals = folder, job, place, signals
        self.name = place.names[place.index]
        self.member: Member | None = None
        # Before the nodes meet: drivers may take long to answer, and a node that says nothing is lost.
        uses_gpus = bool(job["spec"]["gpus_per_node"])
        self.devices = devices_for_ranks(job["python"], job["spec"]["ranks_per_node"]) if uses_gpus else None

    def begin(self, order: Mapping[str, Any], circle: Circle) -> Member:
        self._log_to_folder(order["attempt"])
        if self.devices is not None:
            print(f"devices: {self.devices.note}", file=sys.stderr, flush=True)
        self.member = Member(self.folder, self.job, self.place, order, circle.own_address, self.devices)
        return self.member

    def _log_to_folder(self, attempt: int) -> None:
        """From here on, what this program and torchrun print goes to the attempt's log of the node."""
        log = self.folder.path / "logs" / f"attempt-{attempt}" / f"node-{self.place.index}.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.close(descriptor)

    def end(self) -> str | None:
        """Leave no rank of this node; returns why one is left, which is no reason to leave the job alone."""
        member, self.member = self.member, None
        try:
            if member is not None:
                member.end()
        except (KernelPytorchError, OSError) as error:
            print(error, file=sys.stderr, flush=True)
            return f"{self.name}: {error}"
        return None

    def requeue(self, order: Mapping[str, Any]) -> None:
        """Have the cluster run the job again, if that was decided and it was not cancelled meanwhile."""
        if order["code"] == REQUEUE and not self.folder.ended():
            requeue.requeue(self.place, order["exclude"])

    def obey(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Do what the first node orders, but for ``end``; returns the reports that answer it."""
        assert self.member is not None
        if order["kind"] == "stop":
            self.member.stop()
        elif order["kind"] == "restart":
            self.member.restart(order["nodes"])
        elif order["kind"] == "allow_restart":
            self.member.allow_restart()
        elif order["kind"] == "stacks":
            return [self.member.take_stacks()]
        return []


class _First(_Node):
    def run(self) -> int:
        attempt = self.folder.claim_attempt({"nodes": list(self.place.names), "native": self.place.native_id})
        self.folder.clear_stop()
        contract = Contract.of(self.job, len(self.place.names))
        if len(self.place.names) < contract.min_nodes:
            return self._run_on_all_nodes(attempt, contract)
        try:
            circle = meet(
                self.job["token"],
                self.place,
                least=contract.min_nodes,
                wait_s=_meet_s(),
                stop=self._why_not_begin,
            )
        except MeetingError as error:
            return self._nobody_came(error, attempt, contract)
        head = Head(
            self.folder,
            attempt,
            self.place.names,
            sorted(circle.present),
            contract,
            ends_at=self.place.ends_at,
        )
        try:
            if (why := self._why_not_begin()) is not None:
                return self._leave(head.stop_before_begin(why), head, circle)
            order = self._order_to_begin(head, circle)
            circle.broadcast(order)
            self.begin(order, circle)
            return self._lead(head, circle)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            if not isinstance(error, (KernelPytorchError, OSError)):
                traceback.print_exc()
            head.end("failed", f"the node program of {self.name} failed: {text}", None)
            circle.broadcast({"kind": "end", "code": FAILED, "why": str(error), "exclude": []})
            self._end_and_tell(head)
            return FAILED
        finally:
            circle.close()

    def _order_to_begin(self, head: Head, circle: Circle) -> dict[str, Any]:
        ranks, nodes = self.job["spec"]["ranks_per_node"], len(circle.present)
        asked_s = self.job["plan"]["checkpoint_every_s"]
        save_s = last_save_s(self.folder)
        every = checkpoint_interval(asked_s, save_s, nodes, observed_mtbf_h(self.folder))
        head.event(
            "attempt",
            f"attempt {head.attempt} on {', '.join(self.place.names[i] for i in sorted(circle.present))}; "
            f"checkpoints every {every.why}",
            nodes=[self.place.names[i] for i in sorted(circle.present)],
            ranks=ranks * nodes,
        )
        return {
            "kind": "begin",
            "attempt": head.attempt,
            "nodes": [min(head.contract.min_nodes, nodes), nodes],
            "ranks_per_node": ranks,
            "endpoint": f"{_in_url(circle.address or '127.0.0.1')}:{_free_port()}",
            # The nodes that stay after one is lost use up a restart or two; this program counts its own.
            "max_restarts": head.contract.max_retries + 2 * (nodes - 1),
            "checkpoint_every_s": every.value,
            "timeouts": {name: figure.value for name, figure in torchrun_timeouts(save_s).items()},
        }

    def _lead(self, head: Head, circle: Circle) -> int:
        assert self.member is not None
        terminated_at: float | None = None
        while True:
            for index, report in circle.wait(_TICK_S):
                head.take(index, report, time.monotonic())
            for index, why in circle.lost.items():
                head.lose(index, why, time.monotonic())
            if self.signals.received is not None:
                head.take(0, {"kind": "asked", "why": self.signals.received}, time.monotonic())
                if self.signals.received == "SIGTERM":
                    terminated_at = time.monotonic()
                self.signals.received = None
            for report in self.member.reports(time.monotonic()):
                head.take(0, report, time.monotonic())
            if terminated_at is not None and time.monotonic() > terminated_at + _LIMIT_S:
                terminated_at = None if self._requeue_if_timed_out(head) else time.monotonic()
            for order in head.orders(time.monotonic(), time.time()):
                if order["kind"] == "end":
                    return self._leave(order, head, circle)
                circle.broadcast(order)
                for report in self.obey(order):
                    head.take(0, report, time.monotonic())

    def _requeue_if_timed_out(self, head: Head) -> bool:
        """Requeue while this program lives; ranks that still save go on with it until they are killed.

        Returns:
            Whether the cluster told if it ends the job at its time limit.
        """
        try:
            timed_out = requeue.is_timed_out(self.place)
        except KernelPytorchError:
            return False
        if timed_out:
            decision = head.end_by_limit()
            try:
                self.requeue({"code": decision.exit_code, "exclude": []})
            except KernelPytorchError as error:
                print(f"not requeued at the time limit: {error}", file=sys.stderr, flush=True)
        return True

    def _why_not_begin(self) -> str | None:
        """What asked the job to stop while the nodes met."""
        if self.signals.received is not None:
            return self.signals.received
        if self.folder.ended():
            return "cancelled"
        return self.folder.stop_reason()

    def _leave(self, order: Mapping[str, Any], head: Head, circle: Circle) -> int:
        """Carry out an order ``end``."""
        circle.broadcast(order)
        self._end_and_tell(head)
        self._wait_for_others(circle)
        self.requeue(order)
        return int(order["code"])

    def _end_and_tell(self, head: Head) -> None:
        if (left := self.end()) is not None:
            head.event("note", left, nodes=[self.name])

    def _wait_for_others(self, circle: Circle) -> None:
        """Until they have ended, or for a while: a job that is requeued is not to find its own ranks."""
        until = time.monotonic() + _GOODBYE_S
        while set(circle.present) - {0} - circle.lost.keys() and time.monotonic() < until:
            circle.wait(_TICK_S)

    def _run_on_all_nodes(self, attempt: int, contract: Contract) -> int:
        """Slurm starts a job that lost nodes again on those it had left; requeued once more, it gets all."""
        head = Head(self.folder, attempt, self.place.names, [0], contract)
        text = f"{len(self.place.names)} nodes are too few: {contract.min_nodes} are needed"
        failure = Failure(kind="node_lost", text=text, attempt=attempt)
        decision = head.decision_on(failure)
        head.record(decision, failure, {})
        self.requeue({"code": decision.exit_code, "exclude": []})
        return decision.exit_code

    def _nobody_came(self, error: MeetingError, attempt: int, contract: Contract) -> int:
        """Nodes that met before may have been lost since; those that never did cannot reach each other."""
        head = Head(self.folder, attempt, self.place.names, [0], contract)
        met_before = any(event["kind"] == "attempt" for event in self.folder.events())
        if not met_before:
            head.end("failed", str(error), None)
            return FAILED
        for index, name in enumerate(self.place.names):
            if name in error.missing:
                head.present.add(index)
                head.lose(index, str(error), time.monotonic())
        head.take(0, {"kind": "ended", "code": FAILED}, time.monotonic())
        (order,) = (o for o in head.orders(time.monotonic() + 60, time.time()) if o["kind"] == "end")
        self.requeue(order)
        return int(order["code"])


class _Other(_Node):
    def run(self) -> int:
        circle = meet(self.job["token"], self.place, least=1, wait_s=_meet_s())
        try:
            return self._follow(circle)
        except (KernelPytorchError, OSError) as error:
            circle.send(0, {"kind": "gave_up", "why": f"its node program failed: {error}"})
            raise
        except Exception as error:
            circle.send(0, {"kind": "broke", "why": f"{type(error).__name__}: {error}"})
            raise
        finally:
            self.end()
            circle.close()

    def _follow(self, circle: Circle) -> int:
        while True:
            for _, order in circle.wait(_TICK_S):
                if order["kind"] == "begin":
                    self.begin(order, circle)
                elif order["kind"] == "end":
                    return int(order["code"])
                elif self.place.index in order.get("without", ()):
                    return 0
                elif self.member is not None:
                    for report in self.obey(order):
                        circle.send(0, report)
            if 0 in circle.lost:
                return self._without_first(circle.lost[0])
            if self.signals.received is not None:
                circle.send(0, {"kind": "asked", "why": f"{self.signals.received} on {self.name}"})
                self.signals.received = None
            if self.member is not None:
                for report in self.member.reports(time.monotonic()):
                    circle.send(0, report)

    def _without_first(self, why: str) -> int:
        """The first node is lost, and with it torchrun's store: the job is run again."""
        attempt = self.folder.attempt_numbers()[-1]
        first = self.place.names[0]
        failure = classify(Evidence(nodes_lost=(first,), first_node=first), attempt)
        contract = Contract.of(self.job, len(self.place.names))
        head = Head(self.folder, attempt, self.place.names, [self.place.index], contract)
        decision = head.decision_on(failure)
        left = self.end()
        # Of several that are left, one acts.
        if not self.folder.ended() and self.folder.claim_decision(attempt):
            head.record(decision, failure, {first: why})
            if left is not None:
                head.event("note", left, nodes=[self.name])
            self.requeue({"code": decision.exit_code, "exclude": decision.exclude})
        return decision.exit_code


def _meet_s() -> float:
    return positive_seconds("KERNEL_PYTORCH_MEET_S") or _MEET_S


def _free_port() -> int:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
