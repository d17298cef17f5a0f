"""Files that survive: written whole or not at all, and checked when read."""

from __future__ import annotations

import glob
import os
import pickle
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import CommandError

FORMAT = "longnet-checkpoint"
VERSION = 1
_KEYS = {"format", "version", "step", "options", "model_config", "data", "rng"}
_TENSORS = {"model", "optimizer"}


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], check: Callable[[], object] | None = None
) -> None:
    """Replace ``path`` by what ``write`` writes, or leave it as it was, whatever happens in between.

    Args:
        path: the file.
        write: called with a new file.
        check: called when all is written, directly before ``path`` is replaced; it raises to prevent that.

    Raises:
        OSError: as the file system raised it; ``path`` is untouched.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):  # by a process that was killed
        left.unlink(missing_ok=True)
    # A name of its own: an older process that was thought dead may still write to the one it had.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on disk, as ``fsync`` has the content of a file."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(
    path: Path, checkpoint: Mapping[str, Any], check: Callable[[], object] | None = None
) -> None:
    """Write a checkpoint atomically: ``checkpoint`` is all keys but the format and its version.

    It has ``model`` and ``optimizer``, or ``shards`` that say where their tensors are. ``check`` is as that
    of :func:`write_atomically`.

    Raises:
        OSError: the previous checkpoint, if there was one, is untouched.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save({"format": FORMAT, "version": VERSION, **checkpoint}, file)
        except RuntimeError as error:
            # torch's archive writer, unwinding, hides what the file system said.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write, check)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, executing nothing that it contains.

    Raises:
        CommandError: not there, not readable, damaged, not a checkpoint, or of another version.
    """
    try:
        with path.open("rb") as file:
            # torch.load does not check the archive's checksums.
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CommandError(f"no checkpoint {path}") from None
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CommandError(
            f"{path} is not a checkpoint: it holds more than tensors and plain values"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # Damage anywhere in an archive surfaces as any of a dozen types.
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CommandError(f"{path} is damaged or not a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CommandError(f"{path} is not a checkpoint of longnet train")
    if checkpoint.get("version") != VERSION:
        raise CommandError(
            f"{path} is of checkpoint version {checkpoint.get('version')!r}, "
            f"this longnet reads version {VERSION}"
        )
    needed = _KEYS if "shards" in checkpoint else _KEYS | _TENSORS
    if missing := needed - set(checkpoint):
        raise CommandError(f"{path} is not a whole checkpoint, it lacks: {', '.join(sorted(missing))}")
    return checkpoint
