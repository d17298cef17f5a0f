"""A collective on its way."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Handle(Generic[T]):
    """What an asynchronous call returns. Who drops it loses nothing: the collective goes on.

    Until it is done, the tensors that were given to it must not be used.
    """

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def wait(self, timeout: float | None = None) -> bool:
        """Return when it is done, as torch's works do.

        Args:
            timeout: seconds; default: as long as it takes. The collective goes on after it.

        Raises:
            GroupError: it failed.
            TimeoutError: it is not done.
        """
        self.result(timeout)
        return True

    def is_completed(self) -> bool:
        """Whether it is done, or failed."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait, and return what the synchronous call returns.

        Raises:
            GroupError: it failed.
            TimeoutError: it is not done after ``timeout`` seconds.
        """
        try:
            return self._future.result(timeout)
        except concurrent.futures.TimeoutError as error:  # another class before Python 3.11
            if self._future.done():
                raise
            raise TimeoutError(f"the collective is not done after {timeout} s; it goes on") from error

    def awaited(self) -> Coroutine[Any, Any, T]:
        """For an event loop, which goes on meanwhile. Cancelling it leaves the collective on its way."""

        async def wait() -> T:
            # A cancelled collective would leave the other ranks waiting.
            return await asyncio.shield(asyncio.wrap_future(self._future))

        return wait()
