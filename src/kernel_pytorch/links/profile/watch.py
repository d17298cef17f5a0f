"""When a call fails or times out on a rank, all ranks say where they stand.

A thread of each rank waits on the store; nothing is sent until a rank asks.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from .flight import Answer, flight_recorder, hang_file, join_answers, told, write, write_hang
from .record import CallRecord
from .recorder import Recorder
from .sites import Sites, main_thread_stack

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_ANSWERED, _STOP = "answered", "stop"
_MOST_CALLS = 20
"""Pending and failed calls in an answer."""


class Question(msgspec.Struct):
    """Why a rank asks the others."""

    rank: int
    why: str


class Watch:
    """Answers for this rank, and asks all ranks when one of its calls has failed.

    Args:
        recorder: has a folder, and has begun.
        store: of the job. It is cloned for each thread: a client that waits holds up all that use it.
        patience_s: how long the others may take to answer. A failed call raises only after that.
    """

    def __init__(self, recorder: Recorder, store: Store, *, patience_s: float = 3.0) -> None:
        assert recorder.header is not None
        assert recorder.folder is not None
        self._recorder, self._folder, self._header = recorder, recorder.folder, recorder.header
        self._ask_store, self._wait_store = _clone(store), _clone(store)
        self._patience_s = patience_s
        self._prefix = f"kernel-pytorch/hang/{self._header.restart}"
        self._lock = threading.Lock()
        self._asked = False
        self._answered: Answer | None = None
        self._askers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="kernel-pytorch watch", daemon=True)
        self._thread.start()
        recorder.on_failure = self._on_failure

    def ask(self, why: str) -> None:
        """Have all ranks say where they stand. Returns when they have, or after a while."""
        with self._lock:
            if self._asked:
                return
            self._asked = True
        question = msgspec.json.encode(Question(self._header.rank, why)).decode()
        with suppress(RuntimeError):  # the store has gone, with the process that had it
            for rank in range(self._header.world_size):
                self._ask_store.set(self._key("ask", rank), question)
            self._answer(self._ask_store)
            self._ask_store.wait([self._key("joined", 0)], timedelta(seconds=self._patience_s + 1))
        self._answer(self._ask_store)

    def close(self) -> None:
        """End the thread."""
        self._recorder.on_failure = None
        for asker in self._askers:
            asker.join(2 * self._patience_s)
        with suppress(RuntimeError):
            # A question that came first is answered first.
            self._ask_store.compare_set(self._key("ask", self._header.rank), "", _STOP)
        self._thread.join(2 * self._patience_s)

    def _on_failure(self, call: CallRecord, may_wait: bool) -> None:
        why = told(call)
        if may_wait:
            self.ask(why)
            return
        asker = threading.Thread(target=self.ask, args=(why,), name="kernel-pytorch ask", daemon=True)
        self._askers.append(asker)
        asker.start()

    def _run(self) -> None:
        mine = self._key("ask", self._header.rank)
        while True:
            try:
                self._wait_store.wait([mine], timedelta(days=1))
                told = self._wait_store.get(mine)
                break
            except RuntimeError as error:
                if "timeout" not in str(error).lower():
                    return  # the store has gone: the job is over
        if told == _STOP.encode():
            return
        with self._lock:
            self._asked = True
        question = msgspec.json.decode(told, type=Question)
        self._answer(self._wait_store)
        if self._header.rank == 0:
            self._join(question)

    def _answer(self, store: Store) -> None:
        with self._lock:
            if self._answered is not None:
                return
            answer = self._answered = self.answer()
        with suppress(OSError):  # a full disk: the others still hear of it
            write(self._folder, hang_file(answer.rank, answer.restart), answer)
        short = msgspec.structs.replace(answer, flight_recorder=None)
        with suppress(RuntimeError):
            store.set(self._key(_ANSWERED, answer.rank), msgspec.json.encode(short).decode())

    def answer(self) -> Answer:
        """Where this rank stands."""
        recorder, calls = self._recorder, list(self._recorder.calls)
        recorder.write_finished()
        return Answer(
            rank=self._header.rank,
            world_size=self._header.world_size,
            restart=self._header.restart,
            main=Sites().of_main_thread(),
            stack=main_thread_stack(),
            pending=[call for call in calls if call.done is None and call.error is None][-_MOST_CALLS:],
            failed=[call for call in calls if call.error is not None][:_MOST_CALLS],
            calls={call.group: call.number + 1 for call in calls},
            flight_recorder=flight_recorder(),
        )

    def _join(self, question: Question) -> None:
        """On rank 0."""
        until = time.monotonic() + self._patience_s
        answers = []
        for rank in range(self._header.world_size):
            key = self._key(_ANSWERED, rank)
            with suppress(RuntimeError):
                self._wait_store.wait([key], timedelta(seconds=max(0.1, until - time.monotonic())))
                answers.append(msgspec.json.decode(self._wait_store.get(key), type=Answer))
        why = f"rank {question.rank}: {question.why}"
        hang = join_answers(answers, self._header.world_size, why, question.rank)
        with suppress(OSError):
            write_hang(self._folder, hang)
        with suppress(RuntimeError):
            self._wait_store.set(self._key("joined", 0), "1")

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what}/{rank}"


def _clone(store: Any) -> Store:
    """Another client of the same store."""
    clone: Store = store.clone()
    return clone
