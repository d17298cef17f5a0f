"""Messages from all ranks to rank 0, and its answers, through the store of a process group.

Who waits sleeps, for as long as it takes: a store that gives up waiting writes warnings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Protocol

import msgspec

from .negotiate import Answer, Message

_COUNT, _MESSAGE, _ANSWER = "messages", "message", "answer"
_FOREVER = timedelta(days=7)
"""About as much as ``poll`` can wait."""


class Store(Protocol):
    """What is used of ``torch.distributed.Store``."""

    def add(self, key: str, amount: int, /) -> int: ...
    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta, /) -> None: ...
    def check(self, keys: list[str], /) -> bool: ...
    def delete_key(self, key: str, /) -> bool: ...
    def clone(self) -> Store: ...
    def has_extended_api(self) -> bool: ...
    def multi_set(self, keys: list[str], values: list[str], /) -> None: ...


class Said:
    """What this rank says, from any of its threads."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()

    def say(self, message: Message) -> None:
        """Tell rank 0.

        Raises:
            RuntimeError: the store is gone.
        """
        with self._lock:
            number = self._store.add(_COUNT, 1)
            self._store.set(f"{_MESSAGE}{number}", msgspec.json.encode(message).decode())

    def wake(self, answers: Answers) -> None:
        """Have :meth:`Answers.next` of this rank return, or do nothing if it just did.

        Raises:
            RuntimeError: the store is gone.
        """
        with self._lock:
            self._store.set(answers.key, "")


class Answers:
    """What rank 0 answers a rank, for one of its threads."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank, self._read = store, rank, 0

    @property
    def key(self) -> str:
        """Of the next."""
        return _key(self._rank, self._read + 1)

    def next(self) -> Answer | None:
        """Wait for the next; None: the rank woke this thread.

        Raises:
            RuntimeError: the store is gone.
        """
        key = self.key
        content = _waited(self._store, key, None)
        if not content:
            return None
        self._read += 1
        self._store.delete_key(key)
        return msgspec.json.decode(content, type=Answer)


class Desk:
    """On rank 0: what all say, and the answers, for one thread."""

    def __init__(self, store: Store, size: int, patience_s: float) -> None:
        """``patience_s``: how long a message may be on its way."""
        self._store, self._patience_s = store, patience_s
        self._heard, self._answers = 0, [0] * size
        self._gap_since: float | None = None

    def hear(self, seconds: float | None) -> Iterator[Message]:
        """Wait for a message, for so long (None: as long as it takes); it and what has come meanwhile.

        Raises:
            RuntimeError: the store is gone, or a rank ended in the middle of a message.
        """
        content = _waited(self._store, self._next, seconds)
        count = self._store.add(_COUNT, 0)
        if content is None and count > self._heard:
            now = time.monotonic()
            self._gap_since = self._gap_since or now
            if now - self._gap_since > self._patience_s:
                raise RuntimeError("a rank failed while it told rank 0 what it submits")
        while content is not None:
            key, self._heard, self._gap_since = self._next, self._heard + 1, None
            self._store.delete_key(key)
            yield msgspec.json.decode(content, type=Message)
            more = self._heard < count and self._store.check([self._next])
            content = self._store.get(self._next) if more else None

    @property
    def _next(self) -> str:
        return f"{_MESSAGE}{self._heard + 1}"

    def answer(self, answer: Answer, ranks: Collection[int]) -> None:
        """Tell some ranks.

        Raises:
            RuntimeError: the store is gone.
        """
        for rank in ranks:
            self._answers[rank] += 1
        keys = [_key(rank, self._answers[rank]) for rank in ranks]
        content = msgspec.json.encode(answer).decode()
        if self._store.has_extended_api():
            self._store.multi_set(keys, [content] * len(keys))
        else:
            for key in keys:
                self._store.set(key, content)


def _key(rank: int, number: int) -> str:
    return f"{_ANSWER}{rank}/{number}"


def _waited(store: Store, key: str, seconds: float | None) -> bytes | None:
    """The value of a key once it has one; None: it has none after so many seconds."""
    patience = _FOREVER if seconds is None else timedelta(seconds=seconds)
    begin = time.monotonic()
    try:
        store.wait([key], patience)
    except RuntimeError:
        # Stores raise the same for a timeout as for a lost connection.
        if time.monotonic() - begin < 0.5 * patience.total_seconds():
            raise
        return None
    return store.get(key)
