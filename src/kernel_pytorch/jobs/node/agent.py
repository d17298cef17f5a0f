"""torchrun, which starts the ranks of a node and restarts them, as a child of the node program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from ...errors import KernelPytorchError
from ..rank.beats import Beats
from .launch import Launch as Launch
from .processes import Family, session_of, started_with
from .torchrun import ASKING

CLOSING_S = 3.0
"""Seconds that ranks have to end when torchrun restarts them.

torchrun waits 30 s, which no option changes (2.13), for ranks that handle SIGTERM but are blocked in a
collective with a rank that is dead.
"""

_LINES_KEPT = 50
_LINE_KEPT = 10_000
_CLOSING = re.compile(r"Sending process (\d+) closing signal SIGTERM")
_CODE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
_RANK = re.compile(r"  rank      : \d+ \(local_rank: (\d+)\)")
_CODE_OF_RANK = re.compile(r"  exitcode  : (-?\d+) \(pid: (\d+)\)")


class AgentError(KernelPytorchError):
    """The agent cannot be started, or not be killed."""


@dataclass(frozen=True)
class RankExit:
    """How a rank's process ended."""

    local_rank: int
    pid: int
    exit_code: int
    """Negative: ended by that signal."""


class Agent:
    """One torchrun. What it prints is copied to stderr.

    Its pipe is read by :meth:`poll` and :meth:`new_exits`: call one of them at least every few seconds.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._process: subprocess.Popen[bytes] | None = None
        self._family = Family(launch.identity())
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._rest = b""
        self._local_rank: int | None = None
        """Of the part of torchrun's last report that is being read."""
        self._exits: list[RankExit] = []
        self._known: set[int] = set()
        """Process ids of exits that were found."""
        self._closing: dict[int, float] = {}
        """When torchrun told a process to end, by its id."""
        self._killed: set[int] = set()

    def start(self) -> None:
        """Start it.

        Raises:
            AgentError: it cannot be started.
            RuntimeError: this is not the main thread, with the end of which the kernel would kill the agent.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("an agent must be started by the main thread")
        # A signal that comes before the agent can ignore it waits until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        try:
            self._process = subprocess.Popen(
                self.launch.command(),
                env=self.launch.variables(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise AgentError(f"{self.launch.python} cannot be started: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        self._read()
        self._kill_what_does_not_end()
        return code

    def new_exits(self) -> list[RankExit]:
        """Ranks that are known to have failed since the last call.

        torchrun tells of one, the first, when it has ended the others, and of all when it gives up. It tells
        of none that returned 0.
        """
        self._read()
        exits, self._exits = self._exits, []
        return exits

    @property
    def closing(self) -> frozenset[int]:
        """Processes of ranks that torchrun has told to end, because others have failed."""
        return frozenset(self._closing)

    @property
    def failed(self) -> frozenset[int]:
        """Processes of ranks that are known to have failed."""
        return frozenset(self._known)

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of torchrun's log."""
        return tuple(self._lines)

    def kill(self, within_s: float = 10.0) -> None:
        """Kill the agent and all processes of this node's ranks, and return when none is left.

        Also to be called when the agent has ended: ranks may have left children behind.

        Raises:
            AgentError: one is left after ``within_s`` seconds.
        """
        give_up = time.monotonic() + within_s
        while True:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
            left = self._family.living()
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not left and (self._process is None or self._process.poll() is not None):
                break
            if time.monotonic() > give_up:
                pids = ", ".join(map(str, left))
                raise AgentError(
                    f"processes {pids} of {self.launch.folder.name} are left {within_s:g} s after SIGKILL",
                    "they wait for a device or a disk: drain the node",
                )
            time.sleep(0.02)
        if self._process is not None and self._process.stdout is not None:
            self._read()
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return
        with suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 1 << 16):
                _copy(data)
                *lines, self._rest = (self._rest + data).split(b"\n")
                self._rest = self._rest[-_LINE_KEPT:]
                for line in lines:
                    self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        self._lines.append(line[:_LINE_KEPT])
        if found := _CLOSING.search(line):
            self._closing[int(found[1])] = time.monotonic()
        elif found := _CODE.search(line):
            self._found(RankExit(int(found[2]), int(found[3]), int(found[1])))
        elif found := _RANK.match(line):
            self._local_rank = int(found[1])
        elif (found := _CODE_OF_RANK.match(line)) and self._local_rank is not None:
            self._found(RankExit(self._local_rank, int(found[2]), int(found[1])))

    def _found(self, found: RankExit) -> None:
        if found.pid not in self._known:
            self._known.add(found.pid)
            self._exits.append(found)

    def _kill_what_does_not_end(self) -> None:
        now = time.monotonic()
        late = {pid for pid, told_s in self._closing.items() if now > told_s + CLOSING_S} - self._killed
        if late:
            beats = Beats(self.launch.beats).read().values()
            saving = {session_of(beat.pid) for beat in beats if beat.phase == "saving"}
            for pid in late - saving:
                self._killed.add(pid)
                with suppress(OSError):
                    if started_with(pid, self.launch.identity()):
                        os.killpg(pid, signal.SIGKILL)  # torchrun gives each rank a group


def _copy(data: bytes) -> None:
    with suppress(OSError):  # a full disk: the job is worth more than its log
        while data:
            data = data[os.write(2, data) :]
