"""The files of a run folder. What is damaged or missing is said, and the rest read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from .record import FORMAT, VERSION, Header, RankRecords, Record, settled


class _Preamble(msgspec.Struct):
    format: str
    version: int


def read_folder(folder: str | Path) -> tuple[list[RankRecords], list[str]]:
    """Read the files of all ranks in a folder, whatever their names; other files are left alone.

    Returns:
        The records by rank, of a rank that was started again those of the last start; and what could not be
        read.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[int, RankRecords] = {}
    notes: list[str] = []
    for path in sorted(each for each in Path(folder).iterdir() if each.suffix == ".jsonl"):
        try:
            ranks = read_rank(path)
        except (OSError, ValueError) as error:
            notes.append(str(error))
            continue
        before = found.get(ranks.header.rank)
        if before is None or _start(before.header) <= _start(ranks.header):
            found[ranks.header.rank] = ranks
    last = max((records.header.restart for records in found.values()), default=0)
    if last:
        notes.append(
            f"the ranks were started again {last} time{'s' * (last > 1)}: only the last start is read"
        )
    return [found[rank] for rank in sorted(found) if found[rank].header.restart == last], notes


class _Answer(msgspec.Struct):
    rank: int
    main: str


class _Hang(msgspec.Struct):
    answers: list[_Answer]


def read_standing(folder: str | Path) -> dict[int, str]:
    """Of a job that did not go on, by rank: file:line on which its main thread stood. Empty: not known."""
    try:
        hang = msgspec.json.decode((Path(folder) / "hang.json").read_bytes(), type=_Hang)
    except (OSError, msgspec.DecodeError):
        return {}
    return {answer.rank: answer.main for answer in hang.answers}


def _start(header: Header) -> tuple[int, float]:
    return header.restart, header.started_at


def read_rank(path: str | Path) -> RankRecords:
    """Read a rank's file. Damaged lines are left out, and noted.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file, or of another version.
    """
    path = Path(path)
    with path.open("rb") as file:
        header = _header(path, file.readline())
        decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
        records: list[Record] = []
        damaged: list[int] = []
        for number, line in enumerate(file, 2):
            try:
                records.append(decoder.decode(line))
            except ValueError:
                if line.strip():
                    damaged.append(number)
    notes: tuple[str, ...] = ()
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (" and more" if len(damaged) > 5 else "")
        notes = (f"{path.name}: line{'s' * (len(damaged) > 1)} {which} cannot be read",)
    return RankRecords(header=header, records=settled(records), notes=notes)


def _header(path: Path, line: bytes) -> Header:
    try:
        preamble = msgspec.json.decode(line, type=_Preamble)
        if preamble.format != FORMAT:
            raise ValueError(f"its format is {preamble.format!r}, not {FORMAT!r}")
    except ValueError as error:
        raise ValueError(f"{path.name} has no records of a rank: {error}") from error
    if preamble.version != VERSION:
        raise ValueError(f"{path.name} has records of version {preamble.version}; only {VERSION} is read")
    try:
        return msgspec.json.decode(line, type=Header)
    except ValueError as error:
        raise ValueError(f"{path.name} has a damaged first line: {error}") from error
