"""A worker: in a session of its own, heard through a pipe of its own, killed with its children.

Without torch.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ..jobs.node.processes import Family, oom_kills
from .messages import Message, Request, decode_message, encode

MARK = "KERNEL_PYTORCH_ADVICE"
"""Variable in the environment of a worker and its children: the folder of the run."""
_LOOK_EVERY_S = 0.05
_MOST_BYTES = 1 << 26
"""Of one message."""


class WorkerEndedError(Exception):
    """The worker has ended, or can no longer be heard; the reason."""


class WorkerProcess:
    """One worker.

    Args:
        command: to which the file of the request and the number of the pipe's descriptor are appended.
        folder: of the run, for temporary files.
        environment: variables beyond those of this process.
    """

    def __init__(
        self, command: Sequence[str], request: Request, folder: Path, environment: Mapping[str, str]
    ) -> None:
        asked = folder / "request.json"
        asked.write_bytes(encode(request))
        mark = {MARK: str(folder)}
        self._family = Family(mark) if os.path.isdir("/proc/self") else None
        self._oom_kills = oom_kills()
        self._read, write = os.pipe()
        self._buffer = b""
        try:
            # Ctrl-C is for this process, which kills the worker. What the model prints goes to stderr.
            self._process = subprocess.Popen(
                [*command, str(asked), str(write)],
                stdin=subprocess.DEVNULL,
                stdout=2 if _is_open(2) else subprocess.DEVNULL,
                stderr=None if _is_open(2) else subprocess.DEVNULL,
                env={**os.environ, **environment, **mark},
                pass_fds=[write],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._read)
            raise
        finally:
            os.close(write)

    def receive(self, until: float) -> Message | None:
        """The next message; None: there was none until then, by the monotonic clock.

        Raises:
            WorkerEndedError: there will be none.
        """
        while b"\n" not in self._buffer:
            ended = self._process.poll() is not None  # a child may hold the pipe open
            left = 0.0 if ended else min(_LOOK_EVERY_S, until - time.monotonic())
            if select.select([self._read], [], [], max(0.0, left))[0]:
                data = os.read(self._read, 1 << 16)
                if not data:
                    raise WorkerEndedError(self._why())
                self._buffer += data
                if len(self._buffer) > _MOST_BYTES:
                    raise WorkerEndedError("it wrote what is no message")
            elif ended:
                raise WorkerEndedError(self._why())
            elif time.monotonic() >= until:
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return decode_message(line)
        except msgspec.MsgspecError as error:
            raise WorkerEndedError(f"it wrote what is no message: {error}") from error

    def _why(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1.0)
            if status >= 0:
                return f"its process ended with status {status}"
            now = oom_kills()
            starved = status == -signal.SIGKILL and None not in (now, self._oom_kills)
            memory = starved and now != self._oom_kills
            return f"killed by signal {-status}" + (", out of memory" if memory else "")
        return "it closed its pipe"

    def kill(self, within_s: float = 2.0) -> None:
        """Kill it with its children, and return when they are gone or after ``within_s`` seconds."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a device or a disk
            self._process.wait(within_s)
        give_up = time.monotonic() + within_s
        while self._family is not None and (left := self._family.living()):
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > give_up:
                break
            time.sleep(_LOOK_EVERY_S)
        if self._read >= 0:
            os.close(self._read)
            self._read = -1


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
