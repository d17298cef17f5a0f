"""``longnet generate``, and the sample at the end of a run."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from kernel_pytorch.cli.shell import add_json, print_json

from ..models import LongNetLM
from .checkpoint_files import find_checkpoint
from .device import resolve_device
from .errors import CommandError
from .options import length
from .run_folder import existing_run_folder
from .tokenizer import Tokenizer, tokenizer_of_run
from .weights import load_model

_EXAMPLES = """\
examples:
  longnet generate runs/books-64k --prompt 'It was ' --bytes 200 --temperature 0.8 --top-k 50 --seed 0
  longnet generate runs/books-64k --prompt-file chapter.txt --checkpoint best
  tail -c 60000 book.txt | longnet generate runs/books-64k --prompt-file -

Bytes are printed as they are drawn. Ctrl-C ends it, with exit status 130.
"""


def draw_bytes(
    model: LongNetLM,
    prompt: bytes,
    count: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    tokenizer: Tokenizer | None = None,
) -> Iterator[bytes]:
    """Continue ``prompt`` (at least one byte) by ``count`` bytes, one at a time.

    With a tokenizer the bytes of one token at a time, until there are at least ``count``.

    Raises:
        CommandError: the prompt has no tokens, or the model's logits are not finite.
    """
    ids = encode_prompt(prompt, tokenizer)
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    model.eval()
    drawn = (
        int(token) for token in model.stream(tokens, count, temperature=temperature, top_k=top_k, seed=seed)
    )
    pieces = (bytes([id]) for id in drawn)
    if tokenizer is not None:
        pieces = (text.encode() for text in tokenizer.decode(ids, drawn))
    try:
        while count > 0 and (piece := next(pieces, None)) is not None:
            count -= len(piece)
            yield piece
    except ArithmeticError as error:
        raise CommandError(str(error), status=1) from error


def encode_prompt(prompt: bytes, tokenizer: Tokenizer | None) -> list[int]:
    """The token ids of a prompt: its bytes, or those of a tokenizer.

    Raises:
        CommandError: the tokenizer makes none of it.
    """
    if tokenizer is None:
        return list(prompt)
    ids: list[int] = tokenizer.encode(prompt.decode(errors="replace"))[0].tolist()
    if not ids:
        raise CommandError("the prompt must have at least one token, got none")
    return ids


def continue_bytes(
    model: LongNetLM,
    prompt: bytes,
    count: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    tokenizer: Tokenizer | None = None,
) -> bytes:
    """What :func:`draw_bytes` draws, when it is all there."""
    return b"".join(
        draw_bytes(model, prompt, count, temperature=temperature, top_k=top_k, seed=seed, tokenizer=tokenizer)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``longnet generate``."""
    parser.description = "Continue a prompt with the model of a run."
    parser.epilog = _EXAMPLES
    parser.add_argument("run", metavar="RUN", help="folder of the run, or its name below runs/")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="PATH", help="file whose bytes to continue; - for standard input"
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best (by held-out loss) or a step (default: last)",
    )
    parser.add_argument(
        "--bytes", type=length, default=200, metavar="N", help="bytes to generate (default: 200)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0: always the likeliest byte (default: 0.8)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="N", help="choose among this many bytes only; default: all"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    add_json(parser, "one JSON object, at the end")


def run(args: argparse.Namespace) -> int:
    """``longnet generate``: print what the model of a run makes of a prompt."""
    if args.bytes < 1:
        raise CommandError(f"--bytes must be at least 1, got {args.bytes}")
    if not 0 <= args.temperature < float("inf"):
        raise CommandError(f"--temperature must be at least 0 and finite, got {args.temperature}")
    if args.top_k is not None and args.top_k < 1:
        raise CommandError(f"--top-k must be at least 1, got {args.top_k}")
    if not 0 <= args.seed < 2**63:
        raise CommandError(f"--seed must be at least 0 and below 2**63, got {args.seed}")
    prompt = _read_prompt(args)
    path = find_checkpoint(existing_run_folder(args.run), args.checkpoint)
    model, checkpoint = load_model(path, resolve_device(args.device))
    tokenizer = tokenizer_of_run(path.parent, checkpoint)
    trained_with, prompt_length = checkpoint["options"]["seq_len"], len(encode_prompt(prompt, tokenizer))
    if prompt_length > trained_with:
        print(
            f"longnet generate: note: the prompt has {prompt_length:,} "
            f"{'bytes' if tokenizer is None else 'tokens'}, the model was trained on contexts of "
            f"{trained_with:,}",
            file=sys.stderr,
        )
    drawn = draw_bytes(
        model,
        prompt,
        args.bytes,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
        tokenizer=tokenizer,
    )
    if args.json:
        result = {
            "checkpoint": str(path),
            "step": checkpoint["step"],
            "prompt": prompt.decode(errors="replace"),
            "continuation": b"".join(drawn).decode(errors="replace"),
        }
        print_json(result)
    else:
        _print_as_drawn(drawn)
    return 0


def _read_prompt(args: argparse.Namespace) -> bytes:
    if args.prompt_file is None:
        option, prompt = "--prompt", os.fsencode(args.prompt)
    else:
        option = f"--prompt-file {args.prompt_file}"
        try:
            if args.prompt_file != "-":
                prompt = Path(args.prompt_file).read_bytes()
            elif sys.stdin is None:
                raise CommandError(f"{option}: standard input is closed")
            else:
                prompt = sys.stdin.buffer.read()
        except OSError as error:
            raise CommandError(f"cannot read {option}: {error.strerror}") from error
    if not prompt:
        raise CommandError(f"{option} must have at least one byte, got none")
    return prompt


def _print_as_drawn(drawn: Iterator[bytes]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    started = False
    try:
        for piece in drawn:
            started = True
            print(decoder.decode(piece), end="", flush=True)
    finally:
        if started:
            print(decoder.decode(b"", final=True), flush=True)
