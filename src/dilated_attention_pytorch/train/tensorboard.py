"""The metrics of a run for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from .errors import CommandError


class TensorBoard:
    """Writes rows of metrics as scalars, each to be seen at once. Call :meth:`close` at the end.

    Args:
        folder: gets one more file; made with the first row.

    Raises:
        CommandError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise CommandError(
                "--tensorboard needs TensorBoard, which is not installed: pip install tensorboard"
            ) from error
        self._folder = folder
        self._event, self._value, self._summary = event_pb2, summary_pb2.Summary.Value, summary_pb2.Summary
        self._record_writer = RecordWriter
        self._records: Any = None

    def add(self, row: dict[str, Any]) -> None:
        """Write all of ``row`` but its ``step``, at that step.

        The first one of a resumed run takes the place of all that was written from its step on.

        Raises:
            OSError: the file cannot be written.
        """
        step = row["step"]
        if self._records is None:
            self._open(step)
        values = [self._value(tag=name, simple_value=row[name]) for name in row if name != "step"]
        self._write(step=step, summary=self._summary(value=values))
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()

    def _open(self, step: int) -> None:
        self._folder.mkdir(exist_ok=True)
        # Files are read in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = self._record_writer((self._folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=step, session_log=start)

    def _write(self, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
