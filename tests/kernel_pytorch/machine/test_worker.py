"""Calls that hang are left behind: whoever waits for them goes on, and so does the rest."""

from __future__ import annotations

import gc
import signal
import threading
from types import SimpleNamespace

import pytest

from kernel_pytorch.errors import Unavailable
from kernel_pytorch.machine import worker as module
from kernel_pytorch.machine.worker import NoAnswerError, Rounds, Worker

SOON_S = 60.0


@pytest.fixture
def clock(monkeypatch):
    """The workers' monotonic clock, which stands still."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def gate():
    """Closed: what waits for it hangs until the test ends."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_call_returns_or_raises_what_the_function_does():
    worker = Worker("x")
    assert worker.call(lambda: threading.current_thread().name, SOON_S) == "worker of x"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0, SOON_S)
    assert worker.call(lambda: 2, SOON_S) == 2


def test_a_call_that_hangs_is_given_up(gate):
    worker = Worker("NVML")
    with pytest.raises(NoAnswerError, match=r"NVML did not answer within 0\.01 s: look into"):
        worker.call(gate.wait, 0.01)
    assert issubclass(NoAnswerError, Unavailable)


def test_nobody_waits_again_for_a_call_that_has_hung_for_long(gate, clock):
    worker, entered, late = Worker("x"), threading.Event(), []
    worker.submit(lambda: (entered.set(), gate.wait()))
    entered.wait()
    clock.now += SOON_S  # the bound of the next call, which the hanging one has used up
    with pytest.raises(NoAnswerError):
        worker.call(lambda: late.append("made after it was given up"), SOON_S)
    gate.set()
    assert worker.call(lambda: "works again", 2 * SOON_S) == "works again"
    assert late == []


def test_ctrl_c_ends_the_wait(gate):
    worker = Worker("x")

    def hang():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        gate.wait()

    with pytest.raises(KeyboardInterrupt):
        worker.call(hang, SOON_S)


def test_the_thread_ends_with_its_owner():
    worker = Worker("of nobody")
    worker.call(lambda: None, SOON_S)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "worker of of nobody"]
    assert thread.daemon
    del worker
    gc.collect()
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_a_round_reads_all_and_ages(clock):
    rounds = Rounds(Worker("x"), lambda: "ab", str.upper)
    assert rounds.latest(clock.now) == {}
    rounds.ask()
    assert rounds.latest(clock.now) == {"a": (0.0, "A"), "b": (0.0, "B")}
    clock.now += module.FRESH_S
    assert rounds.latest(clock.now) == {"a": (3.0, "A"), "b": (3.0, "B")}
    clock.now += 0.001
    assert rounds.latest(clock.now) == {}


def test_what_was_begun_since_it_was_asked_for_is_new(clock):
    """However long it took."""

    def read(key):
        clock.now += 0.25
        return key

    rounds, asked_s = Rounds(Worker("x"), lambda: "ab", read), clock.now
    rounds.ask()
    assert rounds.latest(asked_s) == {"a": (0.0, "a"), "b": (0.0, "b")}
    assert rounds.latest(clock.now) == {"a": (0.5, "a"), "b": (0.25, "b")}


def test_what_was_read_before_a_hang_is_there_and_grows_old(gate, clock, monkeypatch):
    entered, hangs = threading.Event(), False

    def read(key):
        if key == "b" and hangs:
            entered.set()
            gate.wait()
        return key.upper()

    rounds = Rounds(Worker("x"), lambda: "abc", read)
    rounds.ask()
    rounds.wait()
    hangs, asked_s = True, clock.now + 1
    clock.now = asked_s
    rounds.ask()
    entered.wait()
    monkeypatch.setattr(module, "READ_S", 0.0)
    assert rounds.latest(asked_s) == {"a": (0.0, "A"), "b": (1.0, "B"), "c": (1.0, "C")}
    clock.now += 2.5
    rounds.ask()  # one is under way: nothing is asked
    assert rounds.latest(clock.now) == {"a": (2.5, "A")}
    clock.now += 3600
    monkeypatch.setattr(module, "READ_S", 2 * 3600.0)
    gate.set()
    # An hour old by the time that it returns: its values were read before. What came after it is new.
    assert rounds.latest(clock.now).keys() == {"c"}
    rounds.ask()
    assert rounds.latest(clock.now).keys() == {"a", "b", "c"}


def test_who_asks_seldom_waits_longer(clock, monkeypatch):
    """Else a slow driver would never be read: what comes late is too old for the next snapshot."""
    waited = []

    def wait(worker, call, within_s):
        waited.append(within_s)
        return call.finished.wait(SOON_S)

    monkeypatch.setattr(Worker, "wait", wait)
    rounds = Rounds(Worker("x"), lambda: "a", str.upper)
    for seconds in (0, module.FRESH_S, module.FRESH_S + 0.1, 1):
        clock.now += seconds
        rounds.ask()
        assert rounds.latest(clock.now) == {"a": (0.0, "A")}
    assert waited == [module.FRESH_S, module.READ_S, module.FRESH_S, module.READ_S]


def test_what_a_reader_raises_is_raised(clock):
    rounds = Rounds(Worker("x"), lambda: "a", int)
    rounds.ask()
    with pytest.raises(ValueError, match="invalid literal"):
        rounds.latest(clock.now)
