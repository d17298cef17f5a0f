"""Tokens of a Hugging Face ``tokenizers`` file instead of bytes: of the text of a run, and in generation.

Letters: N tokens.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_atomically
from .errors import CommandError
from .options import BYTES

TOKENIZER = "tokenizer.json"
"""The copy of the file in the folder of a run."""


class Tokenizer:
    """A tokenizer: text to token ids and back.

    Bits per byte count the bytes of the text. Of a tokenizer that does not keep all of it (that changes case,
    say, or has one token for everything unknown) they are too low.

    Args:
        content: the JSON that the ``tokenizers`` library saves.
        name: of the file, for errors.

    Raises:
        CommandError: the library is not installed, or the file is not one of it.
    """

    def __init__(self, content: bytes, name: str) -> None:
        try:
            from tokenizers import Tokenizer as Rules
            from tokenizers.decoders import DecodeStream
        except ImportError as error:
            raise CommandError(f"{name} needs tokenizers (pip install tokenizers)") from error
        try:
            self._rules = Rules.from_str(content.decode())
        except Exception as error:  # the library raises no narrower type
            raise CommandError(f"{name} is not a file of the tokenizers library: {error}") from error
        self._rules.no_truncation()
        self._rules.no_padding()
        self._new_decoder = DecodeStream
        self.content = content
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        ids = self._rules.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1

    def save(self, folder: Path) -> None:
        """Copy the file into the folder of a run, for :func:`tokenizer_of_run`.

        Raises:
            OSError: as the file system raised it.
        """
        write_atomically(folder / TOKENIZER, lambda file: file.write(self.content))

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of ``text``, int32 ``[N]``, and the bytes in UTF-8 from the end of the token before."""
        encoding = self._rules.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        bytes_before = np.zeros(len(text) + 1, np.int64)
        np.cumsum(1 + sum(characters >= least for least in (0x80, 0x800, 0x10000)), out=bytes_before[1:])
        # Tokens that share a character all have its offsets: the first one counts its bytes.
        ends = np.maximum.accumulate(bytes_before[[end for _, end in encoding.offsets]])
        ends[-1:] = bytes_before[-1]
        return ids, np.diff(ends, prepend=0).astype(np.int32)

    def decode(self, before: list[int], ids: Iterable[int]) -> Iterator[str]:
        """The text of each id as soon as it is known, after the ids ``before``: whole characters, or none."""
        decoder = self._new_decoder(before)
        for id in ids:
            yield decoder.step(self._rules, id) or ""


class TokenText:
    """The tokens of a text, in a temporary file: int32 ``[N]``, sliced as a tensor.

    Args:
        texts: the text in parts, each tokenised alone.
        tokenizer: makes the tokens.

    Raises:
        OSError: no room for the file.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        self.beginning = ""
        """The first 100 characters."""
        with tempfile.TemporaryFile() as ids_file, tempfile.TemporaryFile() as sizes_file:
            for text in texts:
                self.beginning += text[: 100 - len(self.beginning)]
                ids, sizes = tokenizer.encode(text)
                ids_file.write(ids.tobytes())
                sizes_file.write(sizes.tobytes())
            self.ids = _mapped(ids_file)
            self.num_bytes = _mapped(sizes_file)
            """Bytes of the text that each token stands for, ``[N]``."""
        self.total_bytes = int(self.num_bytes.sum())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, window: slice, /) -> Tensor:
        return self.ids[window]


def load_tokenizer(path: str) -> Tokenizer | None:
    """The tokenizer that ``--tokenizer`` names; None for ``bytes``.

    Raises:
        CommandError: the file cannot be read, or as :class:`Tokenizer`.
    """
    return None if path == BYTES else _load(Path(path), f"--tokenizer {path}")


def tokenizer_of_run(folder: Path, checkpoint: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that :meth:`Tokenizer.save` put into the folder of a run; None for a run on bytes.

    Args:
        folder: of the run.
        checkpoint: of the run.

    Raises:
        CommandError: as :func:`load_tokenizer`, or it has another number of tokens than the model.
    """
    if checkpoint["options"].get("tokenizer", BYTES) == BYTES:
        return None
    path = folder / TOKENIZER
    tokenizer = _load(path, str(path))
    expected = checkpoint["model_config"]["vocab_size"]
    if tokenizer.vocab_size != expected:
        raise CommandError(
            f"{path} has {tokenizer.vocab_size} tokens, the model of {folder} {expected}: "
            f"put the file back that the run was started with, {checkpoint['options']['tokenizer']}"
        )
    return tokenizer


def _load(path: Path, name: str) -> Tokenizer:
    try:
        return Tokenizer(path.read_bytes(), name)
    except OSError as error:
        raise CommandError(f"cannot read {name}: {error.strerror}") from error


def _mapped(file: IO[bytes]) -> Tensor:
    file.flush()
    if file.tell() == 0:
        return torch.empty(0, dtype=torch.int32)
    # Written to never, but PyTorch warns of memory that may not be.
    return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.int32)
