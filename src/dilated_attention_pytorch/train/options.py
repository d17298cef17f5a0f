"""The options of ``longnet train``: one table of names, defaults, help and checks."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, get_args

from ..core.sharding import Sharding
from ..core.validation import check_no_dropout

_EXAMPLES = """\
examples:
  longnet train                                   on the Python standard library, context 8192
  longnet train --data books --seq-len 65536 --run books-64k --steps 2000
  longnet train --resume runs/books-64k           go on after Ctrl-C, SIGTERM, SIGUSR1 or a crash
  longnet train --resume runs/books-64k --checkpoint best --lr 1e-3 --steps 4000
  longnet train --init-from runs/books-64k --data letters --run letters --lr 5e-4 --steps 300
  longnet train --data books --tokenizer gpt2.json --run books-gpt2
  torchrun --nproc-per-node 4 -m dilated_attention_pytorch.train -- --run long --context-parallel 4

Each process that torchrun starts has a part of the parameters, of each batch and, with --context-parallel,
of each context; the numbers are those of one process. Any number of processes, one too, resumes the run.
The -- keeps torchrun from taking --run for one of its own options.

A run folder has config.json, metrics.jsonl, loss.png, sample.txt, checkpoint.pt, best.pt (the checkpoint
with the lowest held-out loss), with --keep checkpoint-STEP.pt, and of several processes the folders with
their tensors, shards-STEP. With --tokenizer it has tokenizer.json too, and once it went back to an
earlier checkpoint metrics-abandoned.jsonl, the metrics of what it left.
--resume takes the options from there. New values are printed, and noted in config.json by step.
Exit status: 0 trained, or stopped by --time-limit; 130, 143 or 138 stopped by Ctrl-C, SIGTERM or SIGUSR1
with a checkpoint (a second Ctrl-C quits at once); 2 a mistake in what was given; 1 a failure of the
computation.

In a job (kernel-pytorch submit) the same command goes on where the job's last attempt stopped, also with
--run, --resume or --init-from, on any number of processes: rings become smaller, and rows of padding,
which count for nothing, make up for what does not divide. A job that is asked to stop saves and exits
with 0. Only the newest attempt writes to the run's folder, as attempt.json there says.
"""

BYTES = "bytes"
"""The tokenizer of a run without one."""
_SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def length(text: str) -> int:
    """A number of bytes or tokens, such as 32768 or 32K."""
    factor = _SUFFIXES.get(text[-1:].upper())
    try:
        return int(text) if factor is None else int(text[:-1]) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected an integer, with K, M or G for 1024, 1024^2 or 1024^3 of them, got {text!r}"
        ) from None


def lengths(text: str) -> tuple[int, ...]:
    return tuple(length(part) for part in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers with commas between, got {text!r}") from None


def _seconds(text: str) -> float | None:
    """Seconds of a time such as 90m, 2h, 1h30m or 45s; None if it is none."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60 * minutes + seconds


def _duration(text: str) -> float:
    seconds = _seconds(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 90m, 2h, 1h30m or 45s, got {text!r}")
    return seconds


def _steps_or_time(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        if _seconds(text) is None:
            raise argparse.ArgumentTypeError(
                f"expected a number of steps, or a time such as 10m, 2h, 1h30m or 45s, got {text!r}"
            ) from None
        return text


_METAVARS = {
    _steps_or_time: "N|TIME",
    int: "N",
    length: "N",
    float: "X",
    lengths: "W,W,...",
    _integers: "R,R,...",
}


def _option(default: Any, help: str, type: Any = int, **keywords: Any) -> Any:
    metadata: dict[str, Any] = {"help": help, "type": type, **keywords}
    if type in _METAVARS:
        metadata["metavar"] = _METAVARS[type]
    return dataclasses.field(default=default, metadata=metadata)


def _switch(help: str) -> Any:
    """An option that is on or off: ``--name`` and ``--no-name``."""
    return dataclasses.field(default=False, metadata={"help": help, "action": argparse.BooleanOptionalAction})


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a run is made of. The defaults here are the defaults of ``longnet train``.

    Raises:
        ValueError: naming the option and its value.
    """

    data: str | None = _option(
        None, "file, or folder with all its text files; default: this Python's standard library", str
    )
    held_out: str | None = _option(
        None,
        "text to evaluate on: a file or folder, or the fraction of the end of each file of --data; "
        "default: 0.05",
        str,
        metavar="FILE|FRACTION",
    )
    tokenizer: str = _option(
        BYTES,
        "bytes, or a file of the Hugging Face tokenizers library, which is copied into the run's folder",
        str,
        metavar="bytes|FILE",
    )
    seq_len: int = _option(8192, "context: bytes, or tokens of --tokenizer", length)
    batch_size: int = _option(1, "contexts per step")
    grad_accumulation: int = _option(
        1, "parts of a batch, a divisor of --batch-size, whose gradients add up before a step: less memory"
    )
    steps: int = _option(500, "optimizer steps; the learning rate's decay ends there")
    lr: float = _option(4e-3, "highest learning rate", float)
    schedule: str = _option(
        "cosine",
        "how the learning rate falls after the warmup; wsd is constant until the last --decay-steps",
        str,
        choices=("cosine", "linear", "constant", "wsd"),
    )
    final_lr_fraction: float = _option(0.1, "learning rate at the last step, as a fraction of --lr", float)
    warmup_steps: int | None = _option(
        None, "steps of linear warmup before the decay; default: a twentieth of --steps"
    )
    decay_steps: int | None = _option(None, "steps in which wsd falls linearly; default: a fifth of --steps")
    beta1: float = _option(0.9, "AdamW's decay of the mean of gradients", float)
    beta2: float = _option(0.95, "AdamW's decay of the mean of squared gradients", float)
    weight_decay: float = _option(0.1, "AdamW's decay of weight matrices", float)
    grad_clip: float = _option(1.0, "largest norm of the gradient", float)
    dropout: float = _option(0.0, "must be 0: the kernels compute attention without dropout", float)
    embed_dim: int = _option(128, "width of the model")
    num_layers: int = _option(2, "blocks")
    num_heads: int = _option(4, "query heads")
    ffn_dim: int | None = _option(None, "width of the feed-forward; default: 4 times --embed-dim")
    num_kv_heads: int | None = _option(None, "key/value heads, a divisor of --num-heads; default: as many")
    segment_lengths: tuple[int, ...] | None = _option(
        None,
        "segment length of each branch; default: 256, then 8 times longer each up to half of --seq-len, "
        "then --seq-len itself: 256,2048,8192 for 8192",
        lengths,
    )
    dilation_rates: tuple[int, ...] | None = _option(
        None, "dilation rate of each branch; default: 1, 4, 16, ...: 1,4,16 for 8192", _integers
    )
    seed: int = _option(0, "seed of the initial weights, the order of the data and the sample")
    eval_every: int = _option(100, "steps between evaluations on held-out text; also after the last step")
    eval_windows: int = _option(16, "contexts of held-out text in an evaluation, always the same ones")
    checkpoint_every: int | str = _option(
        100,
        "steps between checkpoints, or a time such as 10m; also before the first step and after the last",
        _steps_or_time,
    )
    keep: int = _option(1, "checkpoints to keep, the last ones; the best by held-out loss is kept as well")
    prompt: str | None = _option(
        None, "text that the sample continues; default: the first 100 bytes of the held-out text", str
    )
    sample_bytes: int = _option(500, "length of the sample; 0 for none", length)
    device: str = _option("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one", str)
    dtype: str = _option(
        "float32",
        "bfloat16 and float16 (on CUDA, with loss scaling) compute under autocast; weights stay float32",
        str,
        choices=("float32", "bfloat16", "float16"),
    )
    recompute: bool = _switch(
        "compute each block's activations again in the backward: less memory, more time"
    )
    compile: bool = _switch(
        "compile the blocks with torch.compile: half a minute at the start; no gain on a CPU"
    )
    tensorboard: bool = _switch("write the metrics for TensorBoard too, below the run's folder")
    threads: int | None = _option(None, "CPU threads; default: PyTorch's choice")

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            finite = "finite and " if isinstance(value, float) else ""
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be {finite}at least {least}, got {value}")
        every = self.checkpoint_every
        if not (every if isinstance(every, int) else _seconds(every) or 0) >= 1:
            raise ValueError(f"checkpoint_every must be at least 1 (or 1s), got {every}")
        for name in ("lr", "grad_clip"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.final_lr_fraction > 1:
            raise ValueError(f"final_lr_fraction must be at most 1, got {self.final_lr_fraction}")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        check_no_dropout("dropout", self.dropout)
        if self.batch_size % self.grad_accumulation:
            raise ValueError(
                "grad_accumulation must divide batch_size, "
                f"got grad_accumulation={self.grad_accumulation}, batch_size={self.batch_size}"
            )
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        if self.prompt == "":
            raise ValueError("prompt must have at least one byte, got ''")
        if (self.segment_lengths is None) != (self.dilation_rates is None):
            raise ValueError(
                "segment_lengths and dilation_rates must be given together, "
                f"got {self.segment_lengths} and {self.dilation_rates}"
            )
        if self.segment_lengths is None:
            segment_lengths, dilation_rates = default_pattern(self.seq_len)
            object.__setattr__(self, "segment_lengths", segment_lengths)
            object.__setattr__(self, "dilation_rates", dilation_rates)

    @property
    def num_warmup_steps(self) -> int:
        """``warmup_steps``, or its default for ``steps``."""
        return self.steps // 20 if self.warmup_steps is None else self.warmup_steps

    @property
    def num_decay_steps(self) -> int:
        """``decay_steps``, or its default for ``steps``."""
        return self.steps // 5 if self.decay_steps is None else self.decay_steps

    def saves_after(self, step: int) -> bool:
        """Whether there is to be a checkpoint because of the number of the step."""
        return isinstance(self.checkpoint_every, int) and step % self.checkpoint_every == 0

    @property
    def checkpoint_every_s(self) -> float:
        """Seconds between checkpoints; infinite where steps are counted."""
        seconds = None if isinstance(self.checkpoint_every, int) else _seconds(self.checkpoint_every)
        return math.inf if seconds is None else seconds


_LEAST: dict[str, float] = {
    "seq_len": 1,
    "batch_size": 1,
    "grad_accumulation": 1,
    "steps": 1,
    "lr": 0,
    "final_lr_fraction": 0,
    "warmup_steps": 0,
    "decay_steps": 0,
    "beta1": 0,
    "beta2": 0,
    "weight_decay": 0,
    "grad_clip": 0,
    "seed": 0,
    "eval_every": 1,
    "eval_windows": 1,
    "keep": 1,
    "sample_bytes": 0,
    "threads": 1,
}

SHAPE = (
    "embed_dim",
    "num_layers",
    "num_heads",
    "ffn_dim",
    "num_kv_heads",
    "segment_lengths",
    "dilation_rates",
)
"""The shape of the model, which a resumed run keeps."""


def flag(name: str) -> str:
    """The command-line spelling of an option."""
    return "--" + name.replace("_", "-")


def in_flags(message: str) -> str:
    """A message about options by their names in Python, with their names on the command line."""
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    at_a_value = "|".join(names)
    anywhere = "|".join(name for name in names if "_" in name)
    pattern = rf"(?<!-)\b(?:^(?:{at_a_value})\b|(?:{at_a_value})(?==)|(?:{anywhere})\b)"
    return re.sub(pattern, lambda found: flag(found[0]), message)


def default_pattern(seq_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Segment lengths and dilation rates for a context of ``seq_len`` tokens.

    Segments grow by 8 from 256 while they are at most half the context; the last is the context. Rates grow
    by 4 from 1: from one branch to the next a query sees twice the keys, ``w / r``, and a quarter of the
    queries do, so that every branch costs half of the one before.
    """
    segments = []
    length = 256
    while 2 * length <= seq_len:
        segments.append(length)
        length *= 8
    segments.append(seq_len)
    return tuple(segments), tuple(4**branch for branch in range(len(segments)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``longnet train``: the run, an option per field, and how ranks divide the work.

    An option of a field that is not given stays absent from the parsed namespace.
    """
    parser.description = "Train a LongNet language model on text files, byte by byte or with a tokenizer."
    parser.epilog = _EXAMPLES
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run", help="name of the new run below runs/, or its folder; default: the time")
    where.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with this run, its folder or its name below runs/; every option may be given a new value "
        "but those of the model's shape",
    )
    parser.add_argument(
        "--init-from",
        metavar="RUN",
        help="start with the weights of this run; the options of the model's shape are taken from there, "
        "but for the branches",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="which one to --resume or --init-from: last, best (by held-out loss) or a step (default: last); "
        "--resume of an earlier one keeps the last, too",
    )
    parser.add_argument(
        "--time-limit",
        type=_duration,
        metavar="TIME",
        help="save and stop, with exit status 0, at the end of the step in which this time is over: 90m, 2h, "
        "1h30m, 45s",
    )
    for field in dataclasses.fields(TrainOptions):
        keywords = dict(field.metadata)
        if field.default is not None:
            default = "off" if field.default is False else field.default
            keywords["help"] += f" (default: {default})"
        parser.add_argument(flag(field.name), dest=field.name, default=argparse.SUPPRESS, **keywords)
    add_split_arguments(parser)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were on the command line, by field name."""
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    return {name: getattr(args, name) for name in names if name in args}


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the work is spread over the processes that torchrun starts.

    They are no part of a run: they change no more than rounding.
    """
    parser.add_argument(
        "--context-parallel",
        type=int,
        default=1,
        metavar="C",
        help="processes that share each context, in a ring; the others divide the batch (default: 1)",
    )
    parser.add_argument(
        "--sharding",
        choices=get_args(Sharding),
        default="contiguous",
        help="which part of a context each of them has: one piece, or zigzag: one from each end, which "
        "balances the work of causal attention (default: contiguous)",
    )
