"""Replacing a file's content, so that it is never half written."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class ChangedMeanwhileError(OSError):
    """A file is not what was read any more."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What was read of a file."""

    path: Path
    """Links resolved."""
    data: bytes
    status: os.stat_result

    @classmethod
    def read(cls, path: Path) -> Content:
        """Read a file.

        Raises:
            OSError: it cannot be read.
        """
        real = path.resolve()
        with real.open("rb") as file:
            status = os.fstat(file.fileno())
            return cls(path=real, data=file.read(), status=status)

    def replace(self, data: bytes) -> None:
        """Write a new file beside it and rename it. Mode is kept, and owner where that is permitted.

        Raises:
            ChangedMeanwhileError: the file was changed since it was read.
            OSError: it cannot be written.
        """
        if not os.access(self.path, os.W_OK):
            raise PermissionError(13, "Permission denied", str(self.path))
        number, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with suppress(PermissionError):
                os.chown(name, self.status.st_uid, self.status.st_gid)
            os.chmod(name, self.status.st_mode & 0o7777)
            if _identity(self.path.stat()) != _identity(self.status):
                raise ChangedMeanwhileError(0, "was changed meanwhile", str(self.path))
            os.replace(name, self.path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
