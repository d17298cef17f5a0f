"""Bytes of text files: reading them, holding some out, and the batch of each step.

Letters: b batch, n context in bytes, N bytes of a text.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CommandError
from .run_folder import CHECKPOINT

HELD_OUT_FRACTION = 1 / 20
_LARGEST_HELD_OUT_FRACTION = 1 / 5
_CHUNK = 1 << 20

# Tables, tests and generated text would make the default data something else than a library's code.
_NOT_LIBRARY_SOURCES = {
    "dist-packages",
    "encodings",
    "idlelib",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


@dataclass(frozen=True)
class Corpus:
    """A text, cut in two."""

    train: Tensor
    """uint8 ``[N]``, what batches are taken from."""
    held_out: Tensor
    """uint8 ``[N]``, what the model never sees."""
    source: str
    """Absolute path of the file or folder."""
    num_files: int
    """Files read."""
    num_skipped: int
    """Files of the folder left out because they hold NUL bytes, as text files do not."""
    digest: str
    """BLAKE2b of both parts; equal digests mean equal batches."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the text it was trained on."""
        return {
            "train_bytes": len(self.train),
            "held_out_bytes": len(self.held_out),
            "digest": self.digest,
        }


def read_corpus(data: str | None, seq_len: int) -> Corpus:
    """Read a text file, or all text files below a folder, and hold part of the text out.

    Files are taken in the order of their paths. One in twenty is held out, evenly spaced; where that is not
    possible (a single file, or files of such sizes that a part would be shorter than one context or more than
    a fifth of the text held out) it is the last twentieth of the text, at least one context.
    Memory is the text itself, once.

    Args:
        data: a file, or a folder (hidden files and folders in it are left out, so are the folders of runs;
            files with NUL bytes are not text); None for the Python standard library's sources.
        seq_len: n; each part needs n + 1 bytes.

    Raises:
        CommandError: nothing there, not readable, no text, or too short.
    """
    root = Path(sysconfig.get_paths()["stdlib"] if data is None else data).absolute()
    try:
        kind = root.stat().st_mode
        if stat.S_ISDIR(kind):
            text, lengths, num_skipped = _read_files(_library_files(root) if data is None else _files(root))
        elif stat.S_ISREG(kind):
            text, num_skipped = bytearray(), 0
            _append(text, root, any_bytes=True)
            lengths = [len(text)]
        else:
            raise CommandError(f"--data must be a file or a folder, {root} is neither")
    except OSError as error:
        raise CommandError(f"cannot read {error.filename or root}: {error.strerror}") from error
    if not text:
        skipped = f" ({num_skipped} with NUL bytes skipped)" if num_skipped else ""
        raise CommandError(f"no text in {root}{skipped}: give --data a text file or a folder of them")
    train, held_out = _split(text, lengths, seq_len, root)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(train).to_bytes(8, "little"))
    digest.update(train)
    digest.update(held_out)
    return Corpus(
        train=torch.frombuffer(train, dtype=torch.uint8),
        held_out=torch.frombuffer(held_out, dtype=torch.uint8),
        source=str(root),
        num_files=len(lengths),
        num_skipped=num_skipped,
        digest=digest.hexdigest(),
    )


def batch_of_step(text: Tensor, step: int, seed: int, batch_size: int, seq_len: int) -> Tensor:
    """The contexts of one step, a function of ``seed`` and ``step`` alone, so that resuming replays nothing.

    Args:
        text: uint8 ``[N]``, N > n.
        step: any whole number from 0.
        seed: any whole number from 0.
        batch_size: b.
        seq_len: n.

    Returns:
        int64 ``[b, n + 1]``: inputs ``[:, :-1]`` and targets ``[:, 1:]``.
    """
    mixed = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
    starts = torch.randint(len(text) - seq_len, (batch_size,), generator=generator)
    return torch.stack([text[start : start + seq_len + 1] for start in starts.tolist()]).long()


def held_out_windows(text: Tensor, count: int, seq_len: int) -> Tensor:
    """At most ``count`` contexts of the text ``[N]``, evenly spaced: uint8 ``[count, n + 1]``.

    No byte is predicted twice; the last target of a context may be the first input of the next.
    """
    count = min(count, (len(text) - 1) // seq_len)
    last = len(text) - 1 - seq_len
    starts = [last * i // max(count - 1, 1) for i in range(count)]
    return torch.stack([text[start : start + seq_len + 1] for start in starts])


def _files(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root, onerror=_raise):
        if CHECKPOINT in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _library_files(root: Path) -> list[Path]:
    return [
        path
        for path in _files(root)
        if path.suffix == ".py" and not _NOT_LIBRARY_SOURCES.intersection(path.relative_to(root).parts)
    ]


def _raise(error: OSError) -> None:
    raise error


def _read_files(paths: list[Path]) -> tuple[bytearray, list[int], int]:
    """The text files' bytes in one piece, the length of each, and how many files were not text."""
    text, lengths, num_skipped = bytearray(), [], 0
    for path in paths:
        if not stat.S_ISREG(path.stat().st_mode):
            continue
        length = _append(text, path, any_bytes=False)
        if length is None:
            num_skipped += 1
        else:
            lengths.append(length)
    return text, lengths, num_skipped


def _append(text: bytearray, path: Path, any_bytes: bool) -> int | None:
    """Append a file's bytes to ``text`` and return how many; append nothing and return None if not text."""
    start = len(text)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if not any_bytes and b"\0" in chunk:
                del text[start:]
                return None
            text += chunk
    return len(text) - start


def _split(text: bytearray, lengths: list[int], seq_len: int, root: Path) -> tuple[bytearray, bytearray]:
    """Cut ``text``, files of ``lengths``, into training and held-out text. Reuses the memory of ``text``."""
    total, least = len(text), seq_len + 1
    if total < 2 * least:
        raise CommandError(
            f"{root} has {total} bytes of text, --seq-len {seq_len} needs {2 * least} "
            "(a context and the byte after it, twice: to train on and held out): give more text"
            + (f" or --seq-len {total // 2 - 1} or less" if total >= 4 else "")
        )
    count = max(1, round(len(lengths) * HELD_OUT_FRACTION))
    chosen = {(2 * i + 1) * len(lengths) // (2 * count) for i in range(count)}
    held_out_bytes = sum(lengths[index] for index in chosen)
    if not least <= held_out_bytes <= min(_LARGEST_HELD_OUT_FRACTION * total, total - least):
        size = max(least, round(total * HELD_OUT_FRACTION))
        held_out = text[total - size :]
        del text[total - size :]
        return text, held_out
    held_out = bytearray()
    read = written = 0
    for index, length in enumerate(lengths):
        content = text[read : read + length]
        read += length
        if index in chosen:
            held_out += content
        else:
            text[written : written + length] = content
            written += length
    del text[written:]
    return text, held_out
