"""What a training loop calls to be stopped, watched and resumed. Standard library only.

::

    job = rank.current()                        # outside a job, all of this does nothing
    job.handle_signals()
    for step in range(first, steps):
        ...                                     # the training step
        job.beat(step)
        stop = any_rank(job.must_stop())        # an all-reduce: all ranks leave after the same step
        if stop or it_is_time:
            job.beat(step, "saving")
            ...                                 # save, if job.newest()
            job.saved(step, seconds)
        if stop:
            job.left(step)                      # then exit 0: requeued, the same command goes on from there
            break

``examples/job_loop.py`` is a whole one.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import monotonic
from types import FrameType, TracebackType

from ..atomic import JobFolderError, one_line
from .beats import BeatWriter
from .record import RankRecord, variable

_LOOK_EVERY_S = 0.1


@cache
def current() -> RankJob:
    """The job of which this process is a rank, or one that does nothing.

    In a job, an exception that ends the process is recorded in the job's folder from then on.

    Raises:
        JobFolderError: the environment is not what the node program sets, or a file cannot be made.
    """
    return _Rank() if os.environ.get("KERNEL_PYTORCH_JOB") else RankJob()


class RankJob:
    """One rank's view of its job. This one is of no job: its methods do nothing."""

    id: str | None = None
    """The job's id; None outside a job."""
    attempt: int | None = None
    """Number of the job's attempt, from 1 on; None outside a job."""
    checkpoint_every_s: float | None = None
    """Seconds between checkpoints that the job's plan asks for; None: the loop's own choice."""

    def handle_signals(self) -> None:
        """Have SIGUSR1, SIGTERM and the first Ctrl-C ask to stop instead of ending the process."""

    def beat(self, step: int, phase: str = "training") -> None:
        """Say that the rank is alive. Takes a microsecond or two.

        Args:
            step: the last finished training step.
            phase: starting, training, evaluating or saving. Each has its limit for the time to the next beat.
        """

    def must_stop(self) -> bool:
        """Whether this rank was asked to stop: to save and leave, after which the job is requeued.

        Other ranks may not have been asked yet: agree before acting on it.
        """
        return False

    def newest(self) -> bool:
        """Whether this is still the newest attempt. If not, another one runs: write nothing more, exit.

        To be asked before a checkpoint is replaced.
        """
        return True

    def saved(self, step: int, seconds: float) -> None:
        """Say that a checkpoint of ``step`` is complete, and what it took."""

    def left(self, step: int | None = None) -> None:
        """Say that the rank leaves because it was asked to, with all up to ``step`` saved.

        Args:
            step: default: that of the last beat.
        """

    def failed(self, error: BaseException) -> None:
        """Record the exception that ends the process, if the program catches it to report it itself."""


class _Rank(RankJob):
    def __init__(self) -> None:
        self._record = RankRecord.of_this_process()
        self.id, self.attempt = self._record.folder.id, self._record.attempt
        self.checkpoint_every_s = _seconds("KERNEL_PYTORCH_CHECKPOINT_EVERY")
        beats = Path(variable("KERNEL_PYTORCH_BEATS"))
        path = beats / f"rank-{self._record.local_rank}"
        with one_line(path, "written"):
            self._beats = BeatWriter(path, self._record.rank)
        self._stop_file, self._asked, self._look_at = beats / "stop", False, 0.0
        self._pid, self._excepthook, sys.excepthook = os.getpid(), sys.excepthook, self._uncaught

    def handle_signals(self) -> None:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._ask)
        before = signal.getsignal(signal.SIGINT)

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._asked = True
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # a second one quits

        if before != signal.SIG_IGN:  # ignored in the background of a shell
            signal.signal(signal.SIGINT, interrupt)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def beat(self, step: int, phase: str = "training") -> None:
        self._beats.write(step, phase)

    def must_stop(self) -> bool:
        if not self._asked and (now := monotonic()) >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._asked = os.path.exists(self._stop_file)
        return self._asked

    def newest(self) -> bool:
        return max(self._record.folder.attempt_numbers(), default=0) <= self._record.attempt

    def saved(self, step: int, seconds: float) -> None:
        self._beats.saved(step, seconds)
        self._beats.write(self._beats.step, "training")
        self._record.saved(step, seconds)

    def left(self, step: int | None = None) -> None:
        self._record.left(self._beats.step if step is None else step)
        self._beats.write(self._beats.step, "left")
        for number in (signal.SIGUSR1, signal.SIGTERM):
            # While Python exits, its handlers are gone, and the next request would end the process.
            if signal.getsignal(number) == self._ask:
                signal.signal(number, signal.SIG_IGN)

    def failed(self, error: BaseException) -> None:
        if os.getpid() == self._pid:
            with suppress(JobFolderError):  # the error itself is printed too
                text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
                self._record.failed(error, text, self._beats.step)

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._excepthook(kind, error, trace)
        self.failed(error)


def _seconds(name: str) -> float | None:
    value = os.environ.get(name)
    try:
        return float(value) if value else None
    except ValueError:
        raise JobFolderError(f"{name} must be a number of seconds, got {value!r}") from None
