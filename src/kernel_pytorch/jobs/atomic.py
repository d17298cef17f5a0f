"""Files that processes on several nodes read and write, each whole or not at all. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import KernelPytorchError


class JobFolderError(KernelPytorchError):
    """The folder of a job, or a file in it, cannot be used."""


@contextmanager
def one_line(path: Path, done: str) -> Iterator[None]:
    """Raise an OSError as a JobFolderError: that ``path`` cannot be ``done``, and why."""
    try:
        yield
    except OSError as error:
        vanished = error.errno == errno.ENOENT and not os.path.exists(path.parent)
        why = f"the folder {path.parent} has vanished" if vanished else error.strerror or str(error)
        raise JobFolderError(f"{path} cannot be {done}: {why}") from error


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Create or replace a file, on disk when this returns.

    Args:
        mode: its permissions from the first byte on.

    Raises:
        JobFolderError: the disk is full, the folder has vanished, ...; ``path`` is as it was.
    """
    with one_line(path, "written"):
        with _temporary(path, data, mode) as temporary:
            os.replace(temporary, path)
        sync_folder(path.parent)


def create_atomically(path: Path, data: bytes, mode: int = 0o600) -> bool:
    """As :func:`write_atomically`, but only the first of several callers writes the file.

    ``O_EXCL`` would show the others an empty file first, and leave it so where the disk is full.

    Returns:
        Whether this call created it.
    """
    with one_line(path, "written"):
        with _temporary(path, data, mode) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # NFS repeats a request whose answer was lost, and then finds the file it has made.
                if os.stat(temporary).st_nlink < 2:
                    return False
        sync_folder(path.parent)
    return True


def append_line(path: Path, line: bytes) -> None:
    """Append ``line`` and a newline to a file to which others append too.

    Raises:
        JobFolderError: nothing was appended.
    """
    with one_line(path, "written"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            locked = lock_file(descriptor)
            end = os.fstat(descriptor).st_size
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"  # by a node that lost power
            try:
                _write_all(descriptor, b"\n" * torn + line + b"\n")
            except OSError:
                if locked:
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        JobFolderError: it cannot be read, or is not JSON.
    """
    with one_line(path, "read"):
        data = path.read_bytes()
    return parse_json(path, data)


def parse_json(path: Path, data: bytes) -> Any:
    """As :func:`read_json`, of ``data`` that was read from ``path``."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise JobFolderError(f"{path} cannot be read: {error}") from error


@contextmanager
def _temporary(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """A file beside ``path``, its content on disk; removed at the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:  # a disk that fills up takes a part first, and says why at the next write
        data = data[os.write(descriptor, data) :]


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, as ``fsync`` has the content of a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not sync folders
            raise
    finally:
        os.close(descriptor)


def lock_file(descriptor: int, patience_s: float = 1.0) -> bool:
    """Lock a file until it is closed, as NFS needs for appending; False where that cannot be done."""
    patient_until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > patient_until:  # a node that died may hold it for ever
                return False
            time.sleep(0.001)
        except OSError:
            return False
