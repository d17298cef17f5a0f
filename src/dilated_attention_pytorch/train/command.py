"""``longnet train``: a run from its first step to its last, or to where it is stopped."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
import time
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

from kernel_pytorch.jobs import rank

from ..kernels.problem import HugeScoresError
from ..ring_attention.utils.communication import RingError
from .batch_parts import BatchPart
from .checkpoint import load_checkpoint, write_atomically
from .data import beginning
from .energy import TokenEnergy
from .errors import CommandError, RankError, raise_if_out_of_memory
from .fence import claim_folder, read_claim
from .generate import continue_bytes
from .loop import NonFiniteLossError, training_steps
from .metrics import append_row, complete_rows, lock_metrics, take_over_metrics
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

# What ranks agree on after a step, as the highest number of any: these, or the signal that one has received.
_GO_ON, _SAVE = 0, 1
_JOB_ASKS, _TIME_IS_UP = 127, 128


def run(args: argparse.Namespace) -> int:
    """``longnet train``: train, or go on training, and return the exit status. Each rank calls it.

    Raises:
        CommandError: what its user can do something about.
    """
    ranks = args.peers or Ranks()
    job = ranks.together(rank.current)
    job.handle_signals()
    try:
        run = start_run(args, ranks, job)
        describe(run, args.context_parallel)
        return _train(run, args.time_limit)
    except Exception as error:  # most are printed as one line, and so never reach sys.excepthook
        job.failed(error)
        raise


def _train(run: Run, time_limit: float | None) -> int:
    folder, options, ranks, job = run.folder, run.options, run.ranks, run.job
    again = _resume_command(run)
    try:
        with ExitStack() as opened:
            metrics = ranks.on_first(lambda: _open_metrics(run, again, opened))
            stop = StopRequest(quiet=not ranks.first)
            if job.attempt is None:
                opened.enter_context(stop)
            ranks.on_first(lambda: None if metrics is None else run.leave(metrics))
            run.write_config()
            run.save()
            # Only now: rows are never lost that the checkpoint on disk still has.
            rows = ranks.on_first(lambda: _complete(run, metrics)) or []
            started = time.perf_counter()
            why = _take_steps(run, metrics, rows, stop, time_limit)
        trained = minutes(time.perf_counter() - started)
        if why == _JOB_ASKS:
            ranks.together(lambda: job.left(run.step))
            say(f"stopped after step {run.step} of {options.steps}; goes on when job {job.id} does")
            return 0
        if why != _GO_ON:
            reason = "time limit reached" if why == _TIME_IS_UP else "stopped"
            say(f"{reason} after step {run.step} of {options.steps}; continue with: {again}")
            return 0 if why == _TIME_IS_UP else 128 + why
        job.beat(run.step, "evaluating")  # as long as the others wait for the sample
        ranks.on_first(lambda: _finish(run, rows, trained))
    except OSError as error:
        kept = (
            "" if run.saved_step is None else f"; the checkpoint of step {run.saved_step} is whole: {again}"
        )
        raise CommandError(
            f"cannot write to {folder}: {error.strerror or error}{kept}",
            status=2 if job.attempt is None else 1,  # a job tries again what is not the user's mistake
        ) from error
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
    """The metrics, locked until ``opened`` is closed. In a job, the folder is claimed for this attempt."""
    in_job = run.job.attempt is not None
    path = run.folder / METRICS
    try:
        metrics = opened.enter_context(lock_metrics(path))
    except CommandError:
        # An earlier attempt may live on, on a machine that was given up.
        if not in_job or read_claim(run.folder).get("job") != run.job.id:
            raise
    run.fence = claim_folder(run.folder, run.job)
    if in_job:
        metrics = opened.enter_context(take_over_metrics(path))
    # Until then, another process could have gone on from here.
    now = load_checkpoint(run.folder / CHECKPOINT)["step"] if (run.folder / CHECKPOINT).exists() else None
    if now != run.saved_step:
        raise CommandError(
            f"another process went on training in {run.folder} meanwhile: {again}", status=1 if in_job else 2
        )
    return metrics


def _take_steps(
    run: Run,
    metrics: BinaryIO | None,
    rows: list[dict[str, Any]],
    stop: StopRequest,
    time_limit: float | None,
) -> int:
    """Train to the last step (0), or to where it is stopped: the number that says why."""
    options, ranks, job = run.options, run.ranks, run.job
    measured = run.step
    started = saved = time.monotonic()
    save_every_s = min(options.checkpoint_every_s, job.checkpoint_every_s or math.inf)
    board_wanted = options.tensorboard and ranks.first

    def agreed() -> int:
        """What is to be done now. A signal may have come to some ranks only, or after others' last step."""
        now = time.monotonic()
        if time_limit is not None and now - started >= time_limit:
            mine = _TIME_IS_UP
        elif job.must_stop():
            mine = _JOB_ASKS
        else:
            mine = stop.received or (_SAVE if now - saved >= save_every_s else _GO_ON)
        return ranks.highest(mine)

    if job.attempt is not None and run.step < options.steps and (reason := agreed()) > _SAVE:
        return reason
    with (
        show_progress(options.steps, run.step) as progress,
        TokenEnergy(run.device, ranks) as energy,
        closing(TensorBoard(run.folder / "tensorboard")) if board_wanted else nullcontext() as board,
    ):
        for row in training_steps(
            run.model, run.optimizer, run.corpus, options, run.step, run.parallel, run.scaler, job.beat
        ):
            run.step = row["step"]
            job.beat(run.step)
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
            reason = agreed()
            last = run.step == options.steps or reason > _SAVE
            due = last or reason == _SAVE or options.saves_after(run.step)
            if due or is_best:
                ranks.together(sync)
                run.save(is_best)
                saved = time.monotonic()
            if due:
                job.beat(run.step, "saving")
                ranks.on_first(lambda: _plot(run, rows))
                job.beat(run.step)
            if run.step == options.steps and reason in (_JOB_ASKS, _TIME_IS_UP):
                break  # nothing is left to stop
            if last:
                return reason if reason > _SAVE else _GO_ON
    return _GO_ON


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
