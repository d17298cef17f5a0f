"""The one thread of a rank that posts collectives on a group, in the order in which they were handed to it.

Nothing else posts on that group: messages between two ranks are matched in the order of their posting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Runs what it is given, one after the other. Its thread starts with the first, and is a daemon."""

    def __init__(self, name: str) -> None:
        """``name`` is that of the thread."""
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """Have ``action`` run after all that was submitted before.

        Raises:
            RuntimeError: the worker is closed.
        """
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = action()
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._tasks.put(task)
        return future

    def close(self) -> None:
        """Take nothing more; wait until all that was submitted has run."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._tasks.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # or what it refers to would live until the next one
