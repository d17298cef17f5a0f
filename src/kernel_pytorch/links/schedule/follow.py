"""The threads of the queue: one of each rank that carries out what rank 0 answers, and one that answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import NamedTuple

from torch import Tensor

from ...errors import KernelPytorchError
from ...groups import GroupError
from .channel import Answers, Desk, Said
from .negotiate import Answer, Coordinator, Message, Piece, Start, Submission
from .pieces import Piecewise


class _Pending(NamedTuple):
    what: Submission
    piecewise: Piecewise
    future: Future[Tensor]


class Follower:
    """What this rank has submitted, and the thread that carries it out."""

    def __init__(self, rank: int, said: Said, answers: Answers, patience_s: float) -> None:
        """``patience_s``: after which rank 0 counts as gone if it says nothing."""
        self._rank, self._said, self._answers, self._patience_s = rank, said, answers, patience_s
        self._changed = threading.Condition()
        self._pending: dict[int, _Pending] = {}
        self._running: dict[int, tuple[int, Start]] = {}
        """Serial and start of what was begun, by its number."""
        self._serials = 0
        self._heard_at = time.monotonic()
        self._over: str | None = None
        """Why nothing can be submitted."""
        self._ended = False

    def submit(self, describe: Callable[[int], Submission], piecewise: Piecewise) -> Future[Tensor]:
        """Tell rank 0. ``describe`` is given a serial number.

        Raises:
            GroupError: nothing can be submitted.
        """
        future: Future[Tensor] = Future()
        with self._changed:
            what = describe(self._serials)
            if self._over is not None:
                raise GroupError(f"{what} cannot be submitted: {self._over}")
            self._serials += 1
            self._pending[what.serial] = _Pending(what, piecewise, future)
            self._heard_at = time.monotonic()
            self._changed.notify_all()
        self.say(Message(rank=self._rank, submitted=what))
        return future

    def say(self, message: Message) -> None:
        """Tell rank 0.

        Raises:
            GroupError: that is not possible.
        """
        try:
            self._said.say(message)
        except RuntimeError as error:
            reason = f"rank 0 cannot be told anything: {_line(error)}"
            self._end(reason)
            raise GroupError(reason) from error

    def leave(self) -> None:
        """Take nothing more; return when nothing more can come."""
        with self._changed:
            took, self._over = self._over is None, self._over or "the queue was shut down"
            self._heard_at = time.monotonic()
            self._changed.notify_all()
        if took:
            with suppress(GroupError):
                self.say(Message(rank=self._rank, leaving=True))
        with self._changed:
            self._changed.wait_for(lambda: self._ended)

    def follow(self) -> None:
        """Until nothing more can come."""
        reason = "the queue was shut down"
        try:
            while not self._ended:
                answer = self._answers.next()
                if answer is None:
                    continue
                self._heard_at = time.monotonic()
                for failure in answer.failed:
                    self._fail(failure.serials.get(self._rank), failure.reason)
                if answer.broken is not None:
                    raise GroupError(answer.broken)
                self._carry_out(answer)
                if self._rank in answer.left:
                    return
        except Exception as error:  # of any kind: others wait for this thread
            reason = _line(error)
        finally:
            self._end(reason)

    def watch(self) -> None:
        """Until :meth:`follow` ends: see that rank 0 does not keep silent while it is waited for."""
        with self._changed:
            while not self._ended:
                waits = bool(self._pending) or self._over is not None
                left = self._heard_at + self._patience_s - time.monotonic()
                if waits and left <= 0:
                    break
                self._changed.wait(left if waits else None)
        self._end(f"rank 0 has said nothing for {self._patience_s:.3g} s")

    def wake(self, thread: Future[None]) -> None:
        """End :meth:`follow`, which runs in ``thread``, as soon as it waits, whatever is pending."""
        self._end("the queue was shut down")
        while not thread.done():
            with suppress(RuntimeError):  # without a store it does not wait
                self._said.wake(self._answers)
            wait([thread], 0.05)

    def _carry_out(self, answer: Answer) -> None:
        mine = [piece for piece in answer.run if self._rank in piece.ranks]
        for piece in mine:
            try:
                self._run(piece)
            except Exception as error:
                serial = self._running[piece.number][0]
                reason = f"{self._pending[serial].what}: {_line(error)}"
                self.say(Message(rank=self._rank, error=reason))
                raise GroupError(reason) from error
        if mine:
            self.say(Message(rank=self._rank, done=answer.cycle))
            self._heard_at = time.monotonic()

    def _run(self, piece: Piece) -> None:
        if piece.start is not None:
            self._running[piece.number] = piece.start.serials[self._rank], piece.start
        serial, start = self._running[piece.number]
        _, piecewise, future = self._pending[serial]
        piecewise.run(start.pattern, piece.chunk, start.chunks)
        if piece.chunk + 1 == start.chunks:
            result = piecewise.result()
            del self._running[piece.number]
            with self._changed:
                del self._pending[serial]
            future.set_result(result)

    def _fail(self, serial: int | None, reason: str) -> None:
        with self._changed:
            found = None if serial is None else self._pending.pop(serial, None)
        if found is not None:
            found.future.set_exception(GroupError(reason))

    def _end(self, reason: str) -> None:
        with self._changed:
            self._over, self._ended = self._over or reason, True
            pending, self._pending = self._pending, {}
            self._changed.notify_all()
        for what, _, future in pending.values():
            future.set_exception(GroupError(reason if str(what) in reason else f"{what}: {reason}"))


def coordinate(coordinator: Coordinator, desk: Desk) -> None:
    """On rank 0, until there is nobody left to answer."""
    while not coordinator.over:
        try:
            deadline = coordinator.deadline()
            patience = None if deadline is None else max(deadline - time.monotonic(), 0.01)
            for message in desk.hear(patience):
                coordinator.hear(message, time.monotonic())
            answer = coordinator.answer(time.monotonic())
        except Exception as error:  # of any kind: all ranks wait for this thread
            coordinator.broken = _line(error)
            answer = Answer(broken=coordinator.broken)
        if answer is not None:
            with suppress(RuntimeError):  # the others find that the store is gone, as this thread did
                desk.answer(answer, answer.concerns(coordinator.size))


def _line(error: BaseException) -> str:
    """One line; a user's own mistakes without their kind."""
    line = str(error).partition("\n")[0]
    return line if isinstance(error, KernelPytorchError) and line else f"{type(error).__name__}: {line}"
