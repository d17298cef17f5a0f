"""``longnet train``: a run from its first step to its last, or to where it is stopped."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

from ..kernels.problem import HugeScoresError
from ..ring_attention.utils.communication import RingError
from .batch_parts import BatchPart
from .checkpoint import load_checkpoint, write_atomically
from .data import beginning
from .energy import TokenEnergy
from .errors import CommandError, RankError, raise_if_out_of_memory
from .generate import continue_bytes
from .loop import NonFiniteLossError, training_steps
from .metrics import append_row, complete_rows, lock_metrics
from .options import add_arguments
from .plot import plot_loss
from .progress import minutes, say, show_progress
from .ranks import Ranks
from .run import Run
from .run_folder import BEST, CHECKPOINT, CONFIG, METRICS, PLOT, SAMPLE
from .setup import describe, in_words, start_run
from .stop import StopRequest
from .tensorboard import TensorBoard
from .tokenizer import TOKENIZER
from .weights import load_model

__all__ = ["add_arguments", "run"]

_TIME_IS_UP = 128
"""Beyond all signals: why a rank wants to stop, where that is the time limit."""


def run(args: argparse.Namespace) -> int:
    """``longnet train``: train, or go on training, and return the exit status. Each rank calls it.

    Raises:
        CommandError: what its user can do something about.
    """
    run = start_run(args, args.peers or Ranks())
    describe(run)
    return _train(run, args.time_limit)


def _train(run: Run, time_limit: float | None) -> int:
    folder, options, ranks = run.folder, run.options, run.ranks
    again = _resume_command(run)
    try:
        with ExitStack() as opened:
            metrics = ranks.on_first(lambda: _open_metrics(run, again, opened))
            stop = opened.enter_context(StopRequest(quiet=not ranks.first))
            ranks.on_first(lambda: None if metrics is None else run.leave(metrics))
            run.write_config()
            run.save()
            # Only now: rows are never lost that the checkpoint on disk still has.
            rows = ranks.on_first(lambda: _complete(run, metrics)) or []
            started = time.perf_counter()
            why = _take_steps(run, metrics, rows, stop, time_limit)
        trained = minutes(time.perf_counter() - started)
        if why is not None:
            say(f"{why} after step {run.step} of {options.steps}; continue with: {again}")
            return 0 if stop.received is None else 128 + stop.received
        ranks.on_first(lambda: _finish(run, rows, trained))
    except OSError as error:
        kept = (
            "" if run.saved_step is None else f"; the checkpoint of step {run.saved_step} is whole: {again}"
        )
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}{kept}") from error
    except NonFiniteLossError as error:
        raise CommandError(f"{error}; {_way_back(run, again)}", status=1) from error
    except HugeScoresError as error:
        what = f"the loss diverged at step {run.step + 1}: {str(error).split(':')[0]}"
        raise CommandError(f"{what}; {_way_back(run, again)}", status=1) from error
    except (RuntimeError, MemoryError) as error:
        raise_if_out_of_memory(error, options)
        if ranks.size > 1 and _is_of_communication(error):
            reason = str(error).split("\n")[0].split(". ")[0]
            raise RankError(f"another rank has failed ({reason}); go on with: {again}", status=1) from error
        raise
    return 0


def _way_back(run: Run, again: str) -> str:
    """How to go on from before a loss that is not finite."""
    last = f"the last good checkpoint is of step {run.saved_step}, {run.folder / CHECKPOINT}"
    if run.best is None or run.best["val_bits_per_byte"] >= 8:  # nothing was learnt yet
        return f"{last}; go back to it with a lower rate: {again} --lr {run.options.lr / 2:g}"
    return (
        f"{last}, the best by held-out loss of step {run.best['step']}, {run.folder / BEST}; "
        f"go back to the best with a lower rate: {again} --checkpoint best --lr {run.options.lr / 2:g}"
    )


def _complete(run: Run, metrics: BinaryIO | None) -> list[dict[str, Any]]:
    return [] if metrics is None else complete_rows(metrics, run.folder, run.history, run.step)


def _open_metrics(run: Run, again: str, opened: ExitStack) -> BinaryIO:
    """The metrics, locked until ``opened`` is closed."""
    metrics = opened.enter_context(lock_metrics(run.folder / METRICS))
    # Until they were locked, another process could have gone on from here.
    if run.saved_step is not None and load_checkpoint(run.folder / CHECKPOINT)["step"] != run.saved_step:
        raise CommandError(f"another process went on training in {run.folder} meanwhile: {again}")
    return metrics


def _take_steps(
    run: Run,
    metrics: BinaryIO | None,
    rows: list[dict[str, Any]],
    stop: StopRequest,
    time_limit: float | None,
) -> str | None:
    """Train to the last step (None), or to where it is stopped: why."""
    options, ranks = run.options, run.ranks
    measured = run.step
    started = time.monotonic()
    board_wanted = options.tensorboard and ranks.first
    with (
        show_progress(options.steps, run.step) as progress,
        TokenEnergy(run.device, ranks) as energy,
        closing(TensorBoard(run.folder / "tensorboard")) if board_wanted else nullcontext() as board,
    ):
        for row in training_steps(
            run.model, run.optimizer, run.corpus, options, run.step, run.parallel, run.scaler
        ):
            run.step = row["step"]
            is_best = False
            if "val_bits_per_byte" in row:
                is_best = run.evaluated(row["val_bits_per_byte"])
                tokens = (run.step - measured) * options.batch_size * options.seq_len
                joules_per_token = energy.per_token(tokens)
                measured = run.step
                if joules_per_token is not None:
                    row["joules_per_token"] = joules_per_token
            rows.append(row)

            def record(row: dict[str, Any] = row) -> None:
                if metrics is not None:
                    append_row(metrics, row)
                if board is not None:
                    board.add(row)

            def sync() -> None:
                if metrics is not None:
                    os.fsync(metrics.fileno())

            ranks.together(record)
            progress.update(row)
            # A signal may have come to some ranks only, or to some of them after this step.
            late = time_limit is not None and time.monotonic() - started >= time_limit
            reason = ranks.highest(stop.received or (_TIME_IS_UP if late else 0))
            stop.received = signal.Signals(reason) if 0 < reason < _TIME_IS_UP else None
            last = run.step == options.steps or reason != 0
            due = last or run.step % options.checkpoint_every == 0
            if due or is_best:
                ranks.together(sync)
                run.save(is_best)
            if due:
                ranks.on_first(lambda: _plot(run, rows))
            if reason == _TIME_IS_UP and run.step < options.steps:
                return "time limit reached"
            if stop.received is not None:
                return "stopped"
            if last:
                break
    return None


def _finish(run: Run, rows: list[dict[str, Any]], trained: str) -> None:
    folder = run.folder
    plotted = _plot(run, rows)
    if not plotted:
        say("no loss.png: it needs matplotlib (pip install matplotlib)")
    sample = _sample(run)
    last = next((row for row in reversed(rows) if "val_bits_per_byte" in row), None)
    if last is not None:
        bits = f"{last['val_bits_per_byte']:.3f} bits per byte"
        say(f"held out: {bits} after step {last['step']}, trained {trained}")
    best = [] if run.best is None else [f"{BEST} (step {run.best['step']})"]
    shards = [] if run.shards is None else [run.shards]
    tokenizer = [] if run.corpus.tokenizer is None else [TOKENIZER]
    names = [CHECKPOINT, *best, *shards, CONFIG, *tokenizer, METRICS, *plotted, *sample]
    say(f"{folder}: {', '.join(names)}")
    say(f"generate: {_program()} generate {shlex.quote(str(folder))} --prompt 'def ' --bytes 500")


def _plot(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    o = run.options
    title = f"{run.folder.name}: {o.num_layers} layers, width {o.embed_dim}, context {o.seq_len}"
    try:
        resumes = [(entry["step"], in_words(entry["changed"]) or "resumed") for entry in run.history]
        plot_loss(run.folder / PLOT, rows, title, resumes=resumes)
    except ImportError:
        return []
    return [PLOT]


def _sample(run: Run) -> list[str]:
    options, corpus = run.options, run.corpus
    if options.sample_bytes == 0:
        return []
    prompt = beginning(corpus.held_out) if options.prompt is None else os.fsencode(options.prompt)
    # The other ranks have nothing to do with it: the model must be whole here.
    model = run.model if run.ranks.size == 1 else load_model(run.folder / CHECKPOINT, run.device)[0]
    continuation = continue_bytes(
        model,
        prompt,
        options.sample_bytes,
        temperature=0.8,
        top_k=None,
        seed=options.seed,
        tokenizer=corpus.tokenizer,
    )
    text = (prompt + continuation).decode(errors="replace")
    write_atomically(run.folder / SAMPLE, lambda file: file.write(text.encode()))
    return [f"{SAMPLE} ({len(prompt)} bytes of prompt, then {len(continuation)} generated)"]


def _program() -> str:
    """How the user can call ``longnet``: as now, where that is by a path outside PATH."""
    called = sys.argv[0]
    return called if Path(called).name == "longnet" and shutil.which("longnet") is None else "longnet"


def _is_of_communication(error: Exception) -> bool:
    return isinstance(error, (RingError, dist.DistError)) or "gloo" in str(error)


def _resume_command(run: Run) -> str:
    resume = f"--resume {shlex.quote(str(run.folder))}"
    if run.ranks.size == 1:
        return f"{_program()} train {resume}"
    command = [run.ranks.launcher()]
    if run.part.num_context > 1:
        command.append(f"--context-parallel {run.part.num_context}")
    if run.part.sharding != BatchPart.sharding:
        command.append(f"--sharding {run.part.sharding}")
    return " ".join([*command, resume])
