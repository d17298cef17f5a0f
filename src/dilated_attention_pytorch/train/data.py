"""The text of a run: reading files, and holding some of it out.

Letters: n context, N length of a text, in bytes or, of a tokenizer, in tokens.
"""

from __future__ import annotations

import hashlib
import shlex
import stat
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import CommandError
from .held_out import check_length, cut_files, held_out_fraction, held_out_size
from .text_files import FileText, Identity, Piece, Skipped, Text, TextFile, decoded, find_files, read_file
from .tokenizer import Tokenizer, TokenText

_KEPT_IN_MEMORY = 1 << 28  # bytes; of a larger text the files are read at each step
_REPORT_READING_FROM = 1 << 30  # bytes that take long enough to say so
_REPORT_TOKENS_FROM = 1 << 24

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


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text, cut in two."""

    train: Text
    """``[N]``, uint8, or int32 for tokens: what batches are taken from."""
    held_out: Text
    """As ``train``, what the model never sees."""
    source: str
    """Absolute path of the file or folder."""
    num_files: int
    """Files of ``source`` that were read."""
    digest: str
    """BLAKE2b of both parts; equal digests mean equal batches."""
    held_out_source: str | None = None
    """Absolute path of the file or folder that is held out; None if it is the ends of the files."""
    num_held_out_files: int = 0
    """Files of ``held_out_source`` that were read."""
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    """What was left out of both, hidden files and the folders of runs aside."""
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    """What made tokens of the text; None for bytes."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the text it was trained on."""
        return {
            "train_bytes": num_bytes(self.train),
            "held_out_bytes": num_bytes(self.held_out),
            "digest": self.digest,
        }

    def check_same(self, facts: Mapping[str, Any], run: Path, way_out: str) -> None:
        """Raise CommandError if this is not the text of ``facts``, that ``run`` was trained on.

        Args:
            facts: as :meth:`facts` gave them.
            run: its folder, for the error.
            way_out: the end of the error, with ``{0}`` for the source.
        """
        if facts == self.facts():
            return
        now, then = (
            f"{each['train_bytes'] + each['held_out_bytes']:,} bytes" for each in (self.facts(), facts)
        )
        raise CommandError(
            f"the text in {self.source} is not the one that {run} was trained on "
            f"({f'{now} now, {then} then' if now != then else f'{now} with other content'}): "
            + way_out.format(shlex.quote(self.source))
        )

    def held_out_in_words(self) -> str:
        """Such as ``the last 5% of each of 529 files, 450,926 bytes``."""
        bytes_held_out = num_bytes(self.held_out)
        size = size_in_words(self.held_out)
        if self.held_out_source is not None:
            return f"{self.held_out_source}, {_files_in_words(self.num_held_out_files)}, {size}"
        percent = f"{100 * bytes_held_out / (num_bytes(self.train) + bytes_held_out):.3g}%"
        of_what = f"each of {self.num_files} files" if self.num_files > 1 else "the file"
        return f"the last {percent} of {of_what}, {size}"

    def skipped_in_words(self) -> str | None:
        """Such as ``2 skipped: a (binary), b (dangling link)``; None for none."""
        return _skipped_in_words(self.skipped, Path(self.source)) if self.skipped else None


def read_corpus(
    data: str | None,
    seq_len: int,
    held_out: float | str | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], object] | None = None,
) -> Corpus:
    """Read a text file, or all text files below a folder, and hold part of the text out.

    Files are taken in the order of their paths, each once whatever names it has, and links are followed.
    The end of each is held out, as large a part of it as of the others. Contexts run over from one file to
    the next, in training and in what is held out.

    A text of up to 256 MiB is kept in memory. Of a larger one the files are read again at each step: they
    must stay as they are. Tokens are in a temporary file.

    Args:
        data: a file, or a folder (hidden files and folders in it are left out, so are the folders of runs;
            files with NUL bytes are not text); None for the Python standard library's sources.
        seq_len: n; each part needs n + 1 bytes or tokens.
        held_out: the fraction to hold out, above 0 and at most 0.5, or a file or folder to hold out instead,
            which is not trained on if it is part of ``data``. None for a twentieth, or as much as one
            context needs.
        tokenizer: what makes tokens of the text, which is then UTF-8 and cut where it would be without; None
            for bytes.
        report: called with a line of text before what takes long.

    Raises:
        CommandError: nothing there, not readable, no text, or too short.
    """
    utf8 = tokenizer is not None
    fraction = held_out_fraction(held_out)
    seen: set[Identity] = set()
    skipped: list[Skipped] = []
    others: list[TextFile] = []
    other_root = None
    if isinstance(held_out, str) and fraction is None:
        other_root, others = _read("--held-out", held_out, seen, skipped, utf8, report)
    root, files = _read("--data", data, seen, skipped, utf8, report)
    total = sum(file.size for file in files)
    if other_root is None:
        size = held_out_size(total, seq_len, fraction, root)
        pieces, held_out_pieces = cut_files(files, size)
    else:
        size = sum(file.size for file in others)
        check_length(total, seq_len, root, " to train on")
        check_length(size, seq_len, other_root, " to hold out")
        pieces, held_out_pieces = cut_files(files, 0)[0], cut_files(others, 0)[0]
    digest = hashlib.blake2b(f"{total} {size} {len(files)}".encode(), digest_size=16)
    for file in [*files, *others]:
        digest.update(file.size.to_bytes(8, "little") + file.digest)
    if tokenizer is not None:
        digest.update(tokenizer.digest.encode())
        if report is not None and total + size >= _REPORT_TOKENS_FROM:
            report(f"making tokens of {total / 1e6:,.0f} MB ...")
    contents = {file.path: file.content for file in [*files, *others]}
    train, end = (_text(part, contents, tokenizer) for part in (pieces, held_out_pieces))
    if tokenizer is not None:
        check_length(len(train), seq_len, root, " to train on", "tokens")
        check_length(len(end), seq_len, other_root or root, " to hold out", "tokens")
    return Corpus(
        train=train,
        held_out=end,
        source=str(root),
        num_files=len(files),
        digest=digest.hexdigest(),
        held_out_source=None if other_root is None else str(other_root),
        num_held_out_files=len(others),
        skipped=tuple(skipped),
        tokenizer=tokenizer,
    )


def read_text(
    data: str,
    seq_len: int,
    *,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], object] | None = None,
) -> tuple[Text, str]:
    """All of a text file, or of the text files below a folder, and its absolute path.

    Args:
        data, tokenizer, report: as for :func:`read_corpus`.
        seq_len: n; the text needs n + 1 bytes or tokens.

    Raises:
        CommandError: nothing there, not readable, no text, or too short.
    """
    root, files = _read("--data", data, set(), [], tokenizer is not None, report)
    pieces, _ = cut_files(files, 0)
    text = _text(pieces, {file.path: file.content for file in files}, tokenizer)
    check_length(len(text), seq_len, root, "", "bytes" if tokenizer is None else "tokens")
    return text, str(root)


def num_bytes(text: Text) -> int:
    """The bytes of a text, also if it is tokens."""
    return text.total_bytes if isinstance(text, TokenText) else len(text)


def size_in_words(text: Text) -> str:
    """Such as ``450,926 bytes``, or ``450,926 bytes in 120,311 tokens``."""
    size = f"{num_bytes(text):,} bytes"
    return f"{size} in {len(text):,} tokens" if isinstance(text, TokenText) else size


def beginning(text: Text) -> bytes:
    """The first 100 bytes of a text; of a tokenizer's no part of a character."""
    if not isinstance(text, TokenText):
        return bytes(text[:100].tolist())
    return text.beginning.encode()[:100].decode(errors="ignore").encode()


def _read(
    option: str,
    given: str | None,
    seen: set[Identity],
    skipped: list[Skipped],
    utf8: bool,
    report: Callable[[str], object] | None,
) -> tuple[Path, list[TextFile]]:
    """Read what ``option`` names. Files are added to ``seen`` and, with what is no text, to ``skipped``."""
    if given == "":
        raise CommandError(f"{option} must name a file or a folder, got ''")
    root = Path(sysconfig.get_paths()["stdlib"] if given is None else given).absolute()
    try:
        kind = root.stat().st_mode
    except OSError as error:
        raise CommandError(f"cannot read {root}: {error.strerror}") from error
    if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
        raise CommandError(f"{option} must be a file or a folder, {root} is neither")
    left_out: list[Skipped] = []
    not_held_out = " that is not held out" if seen else ""
    found = list(find_files(root, seen, left_out))
    if given is None:
        found = [(path, size) for path, size in found if _is_library_source(path, root)]
        left_out = [entry for entry in left_out if _is_library_source(entry.path, root)]
    size = sum(size for _, size in found)
    if report is not None and size >= _REPORT_READING_FROM:
        report(f"reading {size / 1e9:,.1f} GB of {root} ...")
    files = []
    for path, _ in found:
        file = read_file(path, any_bytes=path == root, utf8=utf8, keep=size <= _KEPT_IN_MEMORY)
        if isinstance(file, TextFile):
            files.append(file)
        else:
            left_out.append(file)
    left_out.sort(key=lambda entry: entry.path)
    if left_out and left_out[0].path == root:
        raise CommandError(f"cannot read {root}: {left_out[0].reason}")
    if not any(file.size for file in files):
        besides = f" ({_skipped_in_words(left_out, root)})" if left_out else ""
        raise CommandError(
            f"no text in {root}{not_held_out}{besides}: give {option} a text file or a folder of them"
        )
    skipped += left_out
    return root, files


def _is_library_source(path: Path, root: Path) -> bool:
    return path.suffix == ".py" and not _NOT_LIBRARY_SOURCES.intersection(path.relative_to(root).parts)


def _text(
    pieces: Sequence[Piece], contents: Mapping[Path, bytearray | None], tokenizer: Tokenizer | None
) -> Text:
    if tokenizer is not None:
        parts = (part for piece in pieces for part in decoded(_text([piece], contents, None)))
        return TokenText(parts, tokenizer)
    text = bytearray()
    for piece in pieces:
        content = contents[piece.path]
        if content is None:
            return FileText(pieces)
        text += memoryview(content)[piece.start : piece.stop]
    return torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _files_in_words(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _skipped_in_words(skipped: Sequence[Skipped], root: Path) -> str:
    """Such as ``4 skipped: a (binary), b (dangling link), c (binary), ...``."""
    named = [
        f"{entry.path.relative_to(root) if entry.path.is_relative_to(root) else entry.path} ({entry.reason})"
        for entry in skipped[:3]
    ]
    return f"{len(skipped)} skipped: {', '.join(named)}" + ", ..." * (len(skipped) > 3)
