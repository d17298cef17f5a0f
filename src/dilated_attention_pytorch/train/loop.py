"""The training loop, in plain functions: batch, learning rate, step, evaluation.

Letters: b batch, n context, m held-out windows, V vocabulary.

Every rank of several takes its part of each batch, and all compute the same loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch_parts import IGNORED
from .contexts import Contexts, batch_of_step, evenly_spaced
from .data import Corpus
from .options import TrainOptions
from .parallel import Parallel

_MAX_SKIPPED = 20
"""Steps in a row that loss scaling may skip; the scale has fallen by a million then."""


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became infinite or NaN; the weights are those before ``step``.

    Args:
        step: the step that was not taken.
        loss: its loss, nats per token.
        gradient_norm: the norm of its gradient.
    """

    def __init__(self, step: int, loss: float, gradient_norm: float) -> None:
        super().__init__(f"not finite at step {step}: loss {loss}, gradient norm {gradient_norm}")


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(groups, lr=options.lr, betas=betas, fused=fused)


def make_scaler(options: TrainOptions, device: torch.device) -> torch.amp.GradScaler | None:
    """Loss scaling for float16, in which small gradients would become 0; None for other dtypes."""
    return torch.amp.GradScaler(device.type) if options.dtype == "float16" else None


def learning_rate(step: int, options: TrainOptions) -> float:
    """Linear warmup, then down to ``final_lr_fraction`` as ``schedule`` says: a function of the step.

    Args:
        step: 1 to ``options.steps``.
        options: the run's.
    """
    warmup = options.num_warmup_steps
    if step <= warmup:
        return options.lr * step / warmup
    fraction = options.final_lr_fraction
    start = warmup
    if options.schedule == "wsd":
        start = max(warmup, options.steps - options.num_decay_steps)
    done = max(step - start, 0) / max(options.steps - start, 1)
    if options.schedule == "cosine":
        return options.lr * (fraction + (1 - fraction) * 0.5 * (1 + math.cos(math.pi * done)))
    if options.schedule == "constant":
        return options.lr
    return options.lr * (1 - (1 - fraction) * done)


def training_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    options: TrainOptions,
    done: int,
    parallel: Parallel | None = None,
    scaler: torch.amp.GradScaler | None = None,
    beat: Callable[[int, str], None] = lambda step, phase: None,
) -> Iterator[dict[str, Any]]:
    """Take the steps after ``done`` up to ``options.steps``, one for each row of metrics that is asked for.

    Args:
        model: tokens int64 ``[b, n]`` (with ``parallel``: their positions, the attention) to logits
            ``[b, n, V]``.
        optimizer: of its parameters; its state is as after step ``done``.
        corpus: the text.
        options: the run's.
        done: steps taken before.
        parallel: how it is spread over ranks; default: this process alone.
        scaler: as :func:`make_scaler` made it; its state is as after step ``done``.
        beat: called with the last finished step and ``"evaluating"`` before each batch of an evaluation.

    Yields:
        ``step``, ``bytes`` of its batch's targets, ``train_bits_per_byte`` of the batch before the step,
        ``tokens_per_s`` without the evaluation, ``learning_rate``, with a scaler ``loss_scale`` after the
        step, and, where it was evaluated, ``val_bits_per_byte`` after the step.

    Raises:
        NonFiniteLossError: before the step that would have spoilt the weights.
    """
    parallel = parallel or Parallel()
    skipped = 0
    device = next(model.parameters()).device
    windows = evenly_spaced(corpus.held_out, options.eval_windows, options.seq_len)
    for step in range(done + 1, options.steps + 1):
        started = time.perf_counter()
        batch = batch_of_step(corpus.train, step, options.seed, options.batch_size, options.seq_len)
        tokens = batch.tokens.to(device).long()
        rate = learning_rate(step, options)
        loss, norm = _take_step(model, optimizer, tokens, rate, options, parallel, scaler)
        skipped = 0 if math.isfinite(norm) else skipped + 1
        if not math.isfinite(loss) or skipped == (1 if scaler is None else _MAX_SKIPPED):
            raise NonFiniteLossError(step, loss, norm)
        row = {
            "step": step,
            "bytes": batch.num_bytes,
            "train_bits_per_byte": loss / math.log(2) * (tokens[:, 1:].numel() / batch.num_bytes),
            "tokens_per_s": options.batch_size * options.seq_len / (time.perf_counter() - started),
            "learning_rate": rate,
        }
        if scaler is not None:
            row["loss_scale"] = scaler.get_scale()
        if step % options.eval_every == 0 or step == options.steps:
            beat_of_batch = partial(beat, step, "evaluating")
            row["val_bits_per_byte"] = evaluate(model, windows, options, parallel, beat_of_batch)
        yield row


@torch.no_grad()
def evaluate(
    model: nn.Module,
    windows: Contexts,
    options: TrainOptions,
    parallel: Parallel | None = None,
    beat: Callable[[], None] = lambda: None,
) -> float:
    """Mean bits per predicted byte over m windows; ``beat`` is called before each batch of them."""
    parallel = parallel or Parallel()
    device = next(model.parameters()).device
    model.eval()
    nats = torch.zeros((), dtype=torch.float64, device=device)
    for batch in torch.split(windows.tokens, options.batch_size // options.grad_accumulation):
        beat()
        nats += summed_loss(model, batch.to(device).long(), options.dtype, parallel)
    model.train()
    return parallel.ranks.total(nats).item() / windows.num_bytes / math.log(2)


def summed_loss(model: nn.Module, tokens: Tensor, dtype: str, parallel: Parallel) -> Tensor:
    """Summed cross entropy, nats in float32, of this rank's part of ``tokens [b, n + 1]``.

    Each token is predicted from those before it in its row.
    """
    inputs, targets, positions = parallel.part.take(tokens)
    with torch.autocast(tokens.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        # Without a ring the positions are 0 to n - 1, which is faster left out: attention need not gather.
        logits = model(inputs, None if parallel.attend is None else positions, parallel.attend)
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    rate: float,
    options: TrainOptions,
    parallel: Parallel,
    scaler: torch.amp.GradScaler | None,
) -> tuple[float, float]:
    """Take a step, if loss and gradient are finite; the loss, nats per token, and the gradient's norm."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    parts = tokens.chunk(options.grad_accumulation)
    losses = []
    for index, part in enumerate(parts, 1):
        if parallel.ranks.size > 1 and len(parts) > 1:
            # What is sent is the sum of the parts' gradients, which each rank holds whole until then.
            model.set_requires_gradient_sync(index == len(parts))  # type: ignore[operator]
        loss = summed_loss(model, part, options.dtype, parallel) / tokens[:, 1:].numel()
        losses.append(loss.detach())
        # The ranks' gradients are averaged, their losses are parts of a sum.
        loss = loss * parallel.ranks.size
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
    if parallel.ranks.size > 1:
        norm = norm.full_tensor()  # type: ignore[attr-defined]
    nn.utils.clip_grads_with_norm_(model.parameters(), options.grad_clip, norm)
    total = parallel.ranks.total(torch.stack(losses).sum())
    nats, gradient_norm = torch.stack([total, norm]).tolist()
    if math.isfinite(nats) and math.isfinite(gradient_norm):
        optimizer.step()
    if scaler is not None:
        scaler.update()
    return nats, gradient_norm
