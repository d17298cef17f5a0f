"""Where a rank stands when its job hangs, in words and with the entries of its own Flight Recorder."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .record import CallRecord

_HANG = "hang.json"


class Answer(msgspec.Struct, kw_only=True):
    """What a rank says when it is asked why the job does not go on."""

    rank: int
    world_size: int
    restart: int = 0
    main: str
    """file:line of the user's program on which the main thread stands; "" if there is none."""
    stack: list[str]
    """Of the main thread, the outermost frame first."""
    pending: list[CallRecord]
    """Calls that have been posted and are not over."""
    failed: list[CallRecord]
    calls: dict[str, int]
    """By group: how many calls the rank has made in it."""
    flight_recorder: list[dict[str, Any]] | None = None
    """The newest entries, as torch has them; None: this PyTorch has no Flight Recorder."""


class Hang(msgspec.Struct, kw_only=True):
    """What the ranks of a job that does not go on have answered."""

    asked_by: int | None
    """The rank that found it; None: not known."""
    why: str
    answers: list[Answer]
    """By rank, without the entries of the Flight Recorder, which are in the files of the ranks."""
    missing: list[int]
    """Ranks that have not answered: they are dead, or no thread of theirs runs."""


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts, and nothing that would have to be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it has a {module}.{name}")


def flight_recorder(newest: int = 100) -> list[dict[str, Any]] | None:
    """The newest entries of this process's own Flight Recorder; None: there is none.

    Its times are in nanoseconds since 1970; what it says of the state of a call is not to be trusted on gloo.
    """
    from torch._C import _distributed_c10d as c10d

    if not hasattr(c10d, "_dump_fr_trace"):
        return None
    try:
        entries = _Plain(io.BytesIO(c10d._dump_fr_trace())).load().get("entries", [])[-newest:]
    except (pickle.UnpicklingError, AttributeError, EOFError):
        return None
    # Only what JSON has: later versions may add more.
    plain: list[dict[str, Any]] = json.loads(json.dumps(entries, default=str))
    return plain


def hang_file(rank: int, restart: int = 0) -> str:
    """Name of a rank's answer in the run folder."""
    return f"rank-{rank}.hang.json" if not restart else f"rank-{rank}.restart-{restart}.hang.json"


def write(folder: Path, name: str, content: Answer | Hang) -> None:
    """Write a file whole, or not at all."""
    part = folder / f".{name}.{os.getpid()}"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    part.replace(folder / name)


def join_answers(answers: Iterable[Answer], world_size: int, why: str, asked_by: int | None = None) -> Hang:
    """All answers together."""
    found = {answer.rank: answer for answer in answers}
    return Hang(
        asked_by=asked_by,
        why=why,
        answers=[
            msgspec.structs.replace(answer, flight_recorder=None) for _, answer in sorted(found.items())
        ],
        missing=[rank for rank in range(world_size) if rank not in found],
    )


def join_folder(folder: Path) -> Hang | None:
    """Join what ranks have answered, where none has joined it: rank 0 was dead. None: none has been asked.

    Raises:
        OSError: the folder cannot be read or written.
        ValueError: an answer is damaged.
    """
    if (folder / _HANG).exists():
        return read_hang(folder)
    files = sorted(folder.glob("rank-*.hang.json"))
    answers = [msgspec.json.decode(path.read_bytes(), type=Answer) for path in files]
    if not answers:
        return None
    restart = max(answer.restart for answer in answers)
    answers = [answer for answer in answers if answer.restart == restart]
    hang = join_answers(answers, answers[0].world_size, _first_failure(answers))
    write(folder, _HANG, hang)
    return hang


def write_hang(folder: Path, hang: Hang) -> None:
    """Write the joined answers."""
    write(folder, _HANG, hang)


def read_hang(folder: Path) -> Hang:
    """The joined answers.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    return msgspec.json.decode((folder / _HANG).read_bytes(), type=Hang)


def _first_failure(answers: Sequence[Answer]) -> str:
    failed = ((answer.rank, call) for answer in answers for call in answer.failed)
    rank, call = next(failed, (None, None))
    return "a rank did not go on" if call is None else f"rank {rank}: {told(call)}"


def told(call: CallRecord) -> str:
    """What has failed, where, and why."""
    return f"{call.operation} at {call.site or 'an unknown line'}: {call.error}"
