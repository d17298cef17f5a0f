"""Showing a run while it goes: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_PLAIN_EVERY_S = 10.0
_LIVE_EVERY_S = 0.25
_STEPS_OF_MEAN = 20


def say(text: str) -> None:
    """Print a line at once. A reader that went away (``| head``) does not end the run."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def minutes(seconds: float) -> str:
    """A duration as ``minutes:seconds``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Plain lines: one every ten seconds, one per evaluation.

    Loss, bits per byte and speed are means of the last 20 steps; ``metrics.jsonl`` has each step's.

    Args:
        steps: the run's last step.
        done: steps done before, above 0 when resuming.
    """

    interval_s = _PLAIN_EVERY_S

    def __init__(self, steps: int, done: int) -> None:
        self.steps = steps
        self.done = done
        self.started = self.shown = time.perf_counter()
        self.recent: deque[dict[str, Any]] = deque(maxlen=_STEPS_OF_MEAN)
        self.evaluated: tuple[int, float] | None = None

    def update(self, row: dict[str, Any]) -> None:
        """Take a row of the metrics, and show it if it is time to."""
        self.recent.append(row)
        evaluated = "val_bits_per_byte" in row
        if evaluated:
            self.evaluated = row["step"], row["val_bits_per_byte"]
        now = time.perf_counter()
        if evaluated or row["step"] == self.steps or now - self.shown >= self.interval_s:
            self.shown = now
            self.show(row["step"])

    def show(self, step: int) -> None:
        """Show the run as it is after ``step``."""
        say(
            f"step {step}/{self.steps}  " + "  ".join(f"{name} {value}" for name, value in self.figures(step))
        )

    def figures(self, step: int) -> list[tuple[str, str]]:
        """What is shown, as (name, value)."""
        left = (time.perf_counter() - self.started) / (step - self.done) * (self.steps - step)
        bits = self._mean("train_bits_per_byte")
        figures = [
            ("mean loss", f"{bits * math.log(2):.4f}"),
            ("mean bits per byte", f"{bits:.3f}"),
            ("held out", self.held_out(step)),
            ("tokens/s", f"{self._mean('tokens_per_s'):,.0f}"),
            ("left", minutes(left)),
        ]
        return [(name, value) for name, value in figures if value]

    def held_out(self, step: int) -> str:
        """Bits per byte of held-out text, where they are those after ``step``."""
        if self.evaluated is None or self.evaluated[0] != step:
            return ""
        return f"{self.evaluated[1]:.3f}"

    def _mean(self, name: str) -> float:
        return statistics.fmean(row[name] for row in self.recent)


class LiveProgress(Progress):
    """The same figures in place on a terminal, above a bar."""

    interval_s = _LIVE_EVERY_S

    def __init__(self, steps: int, done: int, live: Live) -> None:
        super().__init__(steps, done)
        self.live = live

    def held_out(self, step: int) -> str:
        """The latest, with the step after which it was."""
        if self.evaluated is None:
            return ""
        return f"{self.evaluated[1]:.3f} at step {self.evaluated[0]}"

    def show(self, step: int) -> None:
        self.live.update(self._panel(step), refresh=True)

    def _panel(self, step: int) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        figures = [("step", f"{step}/{self.steps}"), *self.figures(step)]
        table.add_row(*(f"[dim]{name}[/dim]" for name, _ in figures))
        table.add_row(*(f"[bold]{value}[/bold]" for _, value in figures))
        panel = Table.grid()
        panel.add_row(table)
        panel.add_row(ProgressBar(total=self.steps, completed=step, width=60))
        return panel


@contextmanager
def show_progress(steps: int, done: int) -> Iterator[Progress]:
    """Live on a terminal where rich is installed, plain lines otherwise; the terminal is restored after."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            pass
        else:
            console = Console()
            if not console.is_dumb_terminal:
                with Live(console=console, auto_refresh=False) as live:
                    yield LiveProgress(steps, done, live)
                return
    yield Progress(steps, done)
