"""``longnet generate``, and the sample at the end of a run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from kernel_pytorch.cli.shell import add_json, print_json

from ..models import LongNetConfig, LongNetLM
from .checkpoint import load_checkpoint
from .device import resolve_device
from .errors import CommandError
from .progress import say
from .ranks import Ranks
from .run_folder import CHECKPOINT, existing_run_folder

_EXAMPLE = """\
example:
  longnet generate runs/books-64k --prompt 'It was ' --bytes 200 --temperature 0.8 --top-k 50 --seed 0
"""


def load_model(path: Path, device: torch.device) -> tuple[LongNetLM, int]:
    """The model of a checkpoint, and the step it was written at.

    Raises:
        CommandError: as :func:`load_checkpoint`, or the weights do not fit the model.
    """
    checkpoint = load_checkpoint(path)
    try:
        model = LongNetLM(LongNetConfig(**checkpoint["model_config"]))
        if "shards" in checkpoint:
            from .shards import read_shards, tensors_of

            read_shards(path.parent, checkpoint["shards"], tensors_of(model), Ranks())
        else:
            model.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(f"{path} does not fit this version's LongNetLM: {error}") from error
    return model.to(device), int(checkpoint["step"])


def continue_bytes(
    model: LongNetLM, prompt: bytes, count: int, *, temperature: float, top_k: int | None, seed: int
) -> bytes:
    """``count`` bytes that continue ``prompt`` (at least one byte), sampled by ``LongNetLM.generate``."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(prompt)], device=device)
    model.eval()
    out = model.generate(tokens, count, temperature=temperature, top_k=top_k, seed=seed)
    return bytes(out[0, len(prompt) :].tolist())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``longnet generate``."""
    parser.description = "Continue a prompt with the model of a run."
    parser.epilog = _EXAMPLE
    parser.add_argument("run", metavar="RUN", help="folder of the run, or its name below runs/")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--bytes", type=int, default=200, help="bytes to generate (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest byte (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, help="choose among this many bytes only; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    add_json(parser, "one JSON object")


def run(args: argparse.Namespace) -> int:
    """``longnet generate``: print what the model of a run makes of a prompt."""
    if not args.prompt:
        raise CommandError("--prompt must have at least one byte, got ''")
    if args.bytes < 1:
        raise CommandError(f"--bytes must be at least 1, got {args.bytes}")
    if not 0 <= args.temperature < float("inf"):
        raise CommandError(f"--temperature must be at least 0 and finite, got {args.temperature}")
    if args.top_k is not None and args.top_k < 1:
        raise CommandError(f"--top-k must be at least 1, got {args.top_k}")
    if not 0 <= args.seed < 2**63:
        raise CommandError(f"--seed must be at least 0 and below 2**63, got {args.seed}")
    path = existing_run_folder(args.run) / CHECKPOINT
    model, step = load_model(path, resolve_device(args.device))
    continuation = continue_bytes(
        model,
        os.fsencode(args.prompt),
        args.bytes,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
    ).decode(errors="replace")
    if args.json:
        result = {"checkpoint": str(path), "step": step, "prompt": args.prompt, "continuation": continuation}
        print_json(result)
    else:
        say(continuation)
    return 0
