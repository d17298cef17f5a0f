"""The thread that posts."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from kernel_pytorch.links.schedule.worker import Worker


class Thing:
    def act(self) -> str:
        return threading.current_thread().name

    def fail(self) -> None:
        raise RuntimeError("no")


def test_actions_run_in_their_order_on_one_thread_also_after_one_has_failed():
    worker, thing, seen = Worker("posts"), Thing(), []
    futures = [worker.submit(lambda i=i: seen.append(i)) for i in range(100)]
    failed = worker.submit(thing.fail)
    assert worker.submit(thing.act).result() == "posts"
    assert seen == list(range(100))
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="no"):
        failed.result()
    worker.close()
    with pytest.raises(RuntimeError, match="posts is closed"):
        worker.submit(thing.act)


def test_closing_waits_for_what_was_submitted():
    worker, gate, seen = Worker("posts"), threading.Event(), []
    worker.submit(gate.wait)
    worker.submit(lambda: seen.append(1))
    threading.Timer(0.05, gate.set).start()
    worker.close()
    assert seen == [1]


def test_what_has_run_is_not_kept():
    worker, thing = Worker("posts"), Thing()
    there = weakref.ref(thing)
    worker.submit(thing.act).result()
    del thing
    deadline = time.monotonic() + 30
    while there() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    worker.close()
