"""One run of the command: workers, one after the other, each killed at its deadline. Without torch."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from .facts import AdviceReport
from .messages import Failed, Finished, Refused, Request
from .run_record import RunRecord
from .target import TargetError
from .worker_process import WorkerEndedError, WorkerProcess

# With `python -m`, modules of the current folder would hide those of the standard library.
_MAIN = """import sys
sys.path = [folder for folder in sys.path if folder]
from kernel_pytorch.advice.worker import main
main(sys.argv[1:])"""
WORKER = (sys.executable, "-c", _MAIN)


class Supervisor:
    """Runs the workers of one request.

    Args:
        request: what the user asks for; its points in time are set here.
        say: gets a line for people at each step.
        command: runs a worker, with a file and a descriptor appended; see :mod:`.worker`.
    """

    def __init__(self, request: Request, say: Callable[[str], None], command: Sequence[str] = WORKER) -> None:
        self._record = RunRecord(request, say, time.monotonic())
        self._command = command

    def run(self) -> None:
        """Run workers until all is known or the time is over; none is left then.

        Raises:
            TargetError: what the user named is not there, is not what is needed, or raises.
            AdviceError: a worker cannot run.
            KeyboardInterrupt: Ctrl-C or SIGTERM.
        """
        with tempfile.TemporaryDirectory(prefix="kernel-pytorch-", ignore_cleanup_errors=True) as folder:
            try:
                while (request := self._record.next(time.monotonic())) is not None:
                    self._run_worker(request, Path(folder))
            except KeyboardInterrupt:
                self._record.why_no_more = "interrupted"
                raise

    def report(self) -> AdviceReport | None:
        """What is known, also after an exception; None: the model is not loaded yet."""
        return self._record.report(time.monotonic())

    def _run_worker(self, request: Request, folder: Path) -> None:
        # An empty cache, so that compile times are of a first run.
        environment = {"KINETO_LOG_LEVEL": "99", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        worker = WorkerProcess(self._command, request, folder, environment)
        record = self._record
        try:
            while True:
                message = worker.receive(record.deadline)
                now = time.monotonic()
                if message is None:
                    record.ended(request, "out of time", "it did not end in time", now)
                elif isinstance(message, Finished):
                    record.finished(request)
                elif isinstance(message, (Refused, Failed)):
                    if isinstance(message, Refused) and request.facts is None:
                        raise TargetError(message.why)
                    record.ended(request, "failed", message.why, now)
                else:
                    record.note(request, message, now)
                    continue
                return
        except WorkerEndedError as ended:
            record.ended(request, "killed", str(ended), time.monotonic())
        except KeyboardInterrupt:
            self._note_the_rest(worker, request)
            raise
        finally:
            worker.kill()

    def _note_the_rest(self, worker: WorkerProcess, request: Request) -> None:
        """Keep what the worker has reported up to now."""
        with suppress(WorkerEndedError):
            while (message := worker.receive(0.0)) is not None:
                if isinstance(message, (Finished, Refused, Failed)):
                    return
                self._record.note(request, message, time.monotonic())
