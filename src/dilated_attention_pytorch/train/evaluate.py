"""``longnet evaluate``: bits per byte by position in the context.

Letters: m contexts, n tokens of a context.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_pytorch.cli.shell import add_json, print_json

from ..models import LongNetLM
from .checkpoint_files import find_checkpoint
from .contexts import Contexts, evenly_spaced
from .data import read_corpus, read_text
from .device import resolve_device
from .errors import CommandError
from .options import TrainOptions, length
from .progress import say
from .run_folder import existing_run_folder
from .tokenizer import tokenizer_of_run
from .weights import load_model

_EXAMPLE = """\
example:
  longnet evaluate runs/books-64k --checkpoint best
  longnet evaluate runs/books-64k --data letters.txt --windows 64

A byte near the start of a context is predicted from few bytes before it, one near its end from many: where
the bits stop falling, the model has no more use of a longer context. Of a run with a tokenizer, positions
and contexts are counted in tokens, and the bits of each token are divided by its bytes.
"""


@torch.no_grad()
def bits_by_position(model: LongNetLM, tokens: Tensor) -> Tensor:
    """The bits of the target at each position of a context, summed over ``tokens`` ``[m, n + 1]``.

    Returns:
        float64 ``[n]``.
    """
    device = next(model.parameters()).device
    total = torch.zeros(tokens.shape[1] - 1, dtype=torch.float64, device=device)
    for window in tokens.to(device).long():
        logits = model(window[None, :-1])[0].float()
        total += F.cross_entropy(logits, window[1:], reduction="none").double()
    return (total / math.log(2)).cpu()


def intervals(seq_len: int) -> list[tuple[int, int]]:
    """Positions ``[start, stop)`` to take the mean over: 0 to 64, to 256 and so on, up to ``seq_len``."""
    ends = [64]
    while ends[-1] < seq_len:
        ends.append(4 * ends[-1])
    ends[-1] = min(ends[-1], seq_len)
    return list(zip([0, *ends], ends, strict=False))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``longnet evaluate``."""
    parser.description = "Bits per byte of a run's model on text, by position in the context."
    parser.epilog = _EXAMPLE
    parser.add_argument("run", metavar="RUN", help="folder of the run, or its name below runs/")
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best (by held-out loss) or a step (default: last)",
    )
    parser.add_argument(
        "--data", help="file or folder to evaluate on all of; default: what the run held out of its own"
    )
    parser.add_argument("--seq-len", type=length, metavar="N", help="context; default: that of the run")
    parser.add_argument(
        "--windows", type=int, default=16, metavar="N", help="contexts, evenly spaced (default: 16)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    add_json(parser, "one JSON object")


def run(args: argparse.Namespace) -> int:
    """``longnet evaluate``: print the bits per byte of a run's model."""
    path = find_checkpoint(existing_run_folder(args.run), args.checkpoint)
    model, checkpoint = load_model(path, resolve_device(args.device))
    tokenizer = tokenizer_of_run(path.parent, checkpoint)
    options = TrainOptions(**checkpoint["options"])
    unit = "bytes" if tokenizer is None else "tokens"
    seq_len = options.seq_len if args.seq_len is None else args.seq_len
    for name, value in (("--windows", args.windows), ("--seq-len", seq_len)):
        if value < 1:
            raise CommandError(f"{name} must be at least 1, got {value}")
    if args.data is not None:
        text, source = read_text(args.data, seq_len, tokenizer=tokenizer)
    else:
        # Cut as in training, whatever the context is now.
        corpus = read_corpus(options.data, options.seq_len, options.held_out, tokenizer=tokenizer)
        way_out = "to evaluate on all of it as it is now, give --data {0}"
        corpus.check_same(checkpoint["data"], path.parent, way_out)
        text, source = corpus.held_out, f"the text held out of {corpus.source}"
        if len(text) <= seq_len:
            raise CommandError(
                f"{source} has {len(text):,} {unit}, --seq-len {seq_len} needs {seq_len + 1:,}: give --data, "
                "or a lower --seq-len"
            )
    windows = evenly_spaced(text, args.windows, seq_len)
    bits = bits_by_position(model, windows.tokens)
    if not bits.isfinite().all():
        raise CommandError(f"the losses of {path} are not finite", status=1)

    def per_byte(start: int, stop: int) -> float:
        part = Contexts(windows.tokens[:, start : stop + 1], windows.target_bytes[:, start:stop])
        return bits[start:stop].sum().item() / part.num_bytes

    rows = [
        {"from": start, "to": stop, "bits_per_byte": per_byte(start, stop)}
        for start, stop in intervals(seq_len)
    ]
    result: dict[str, Any] = {
        "run": args.run,
        "step": checkpoint["step"],
        "text": source,
        "contexts": len(windows.tokens),
        "seq_len": seq_len,
        "bits_per_byte": per_byte(0, seq_len),
        "by_position": rows,
    }
    if args.json:
        print_json(result)
        return 0
    contexts = f"{len(windows.tokens)} contexts of {seq_len:,} {unit}"
    say(f"{args.run} after step {checkpoint['step']}: {contexts} of {source}")
    for row in rows:
        say(f"  {unit} {row['from']:>9,} to {row['to']:>9,}  {row['bits_per_byte']:.3f} bits per byte")
    say(f"  {'all of them':<{len(unit) + 24}}{result['bits_per_byte']:.3f} bits per byte")
    return 0
