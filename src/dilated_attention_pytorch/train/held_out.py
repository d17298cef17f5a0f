"""How much of a text is held out from training, and which parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .errors import CommandError
from .text_files import Piece, TextFile

HELD_OUT_FRACTION = 1 / 20
_LARGEST_HELD_OUT_FRACTION = 1 / 2


def held_out_fraction(held_out: float | str | None) -> float | None:
    """The fraction that ``--held-out`` is; None if it is a path or not given.

    Raises:
        CommandError: not above 0 and at most 0.5.
    """
    if held_out is None:
        return None
    try:
        fraction = float(held_out)
    except ValueError:
        return None
    if not 0 < fraction <= _LARGEST_HELD_OUT_FRACTION:
        raise CommandError(
            f"--held-out must be a fraction above 0 and at most {_LARGEST_HELD_OUT_FRACTION}, or a file or "
            f"folder (./{held_out} for one of that name), got {held_out}"
        )
    return fraction


def held_out_size(total: int, seq_len: int, fraction: float | None, root: Path) -> int:
    """How many bytes of ``total`` to hold out.

    Args:
        total: bytes of the text in ``root``.
        seq_len: n; each part needs n + 1 bytes.
        fraction: to hold out; None for a twentieth, or as much as one context needs.
        root: for errors.

    Raises:
        CommandError: too few for a context.
    """
    least = seq_len + 1
    if total < 2 * least:
        raise CommandError(
            f"{root} has {total} bytes of text, --seq-len {seq_len} needs {2 * least} "
            "(a context and the byte after it, twice: to train on and held out): give more text"
            + (f" or --seq-len {total // 2 - 1} or less" if total >= 4 else "")
        )
    if fraction is None:
        return max(least, round(total * HELD_OUT_FRACTION))
    size = math.floor(round(total * fraction, 6))
    if size < least:
        enough = math.ceil(1000 * least / total) / 1000
        raise CommandError(
            f"--held-out {fraction:g} of {root} is {size} bytes, --seq-len {seq_len} needs {least}: "
            f"give --held-out {enough} or more, or more text"
            + (f", or --seq-len {size - 1} or less" if size > 1 else "")
        )
    return size


def check_length(size: int, seq_len: int, root: Path, purpose: str, unit: str = "bytes") -> None:
    """Raise CommandError if ``size`` is too short for a context and the target after it."""
    if size <= seq_len:
        raise CommandError(
            f"{root} has {size} {unit}{purpose}, --seq-len {seq_len} needs {seq_len + 1}: give more text"
            + (f" or --seq-len {size - 1} or less" if size > 1 else "")
        )


def cut_files(files: Sequence[TextFile], size: int) -> tuple[list[Piece], list[Piece]]:
    """The beginnings of the files, and their ends, of ``size`` bytes in all.

    Each end is in proportion to its file. The parts of a byte are carried over to the next file: of 30 files
    of 10 bytes, 15 have an end of 1 byte.
    """
    beginnings, ends = [], []
    total = sum(file.size for file in files)
    before = 0
    for file in files:
        after = before + file.size
        cut = file.size - (after * size // total - before * size // total)
        beginnings.append(Piece(file.path, 0, cut))
        ends.append(Piece(file.path, cut, file.size))
        before = after
    return beginnings, ends
