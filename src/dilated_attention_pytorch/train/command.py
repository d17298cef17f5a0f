"""``longnet train``: from options to a run folder, new or resumed."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
import torch.distributed as dist

from ..models import LongNetConfig, LongNetLM
from ..ring_attention.utils.communication import RingError
from .batch_parts import BatchPart, part_of_batch
from .checkpoint import load_checkpoint, write_atomically
from .data import Corpus, read_corpus
from .device import keep_freed_memory, resolve_device
from .energy import TokenEnergy
from .errors import CommandError, RankError
from .generate import continue_bytes, load_model
from .loop import NonFiniteLossError, make_optimizer, training_steps
from .options import SHAPE, TrainOptions, add_arguments, flag, given_options, in_flags
from .parallel import Parallel, parallelize
from .plot import plot_loss
from .progress import minutes, say, show_progress
from .ranks import Ranks
from .run import Run
from .run_folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    PLOT,
    SAMPLE,
    append_row,
    check_new_run,
    create_run_folder,
    cut_metrics,
    existing_run_folder,
    lock_metrics,
)
from .stop import StopRequest

T = TypeVar("T")

__all__ = ["add_arguments", "check_same_on_all_ranks", "run"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a command line amounts to, before anything is trained or written."""

    options: TrainOptions
    config: LongNetConfig
    corpus: Corpus
    data: dict[str, Any]
    device: torch.device
    part: BatchPart
    folder: Path | None
    checkpoint: dict[str, Any] | None


def run(args: argparse.Namespace) -> int:
    """``longnet train``: train, or go on training, and return the exit status. Each rank calls it.

    Raises:
        CommandError: what its user can do something about.
    """
    ranks: Ranks = args.peers or Ranks()
    job = ranks.together(lambda: _prepare(args, ranks))
    check_same_on_all_ranks(job, ranks)
    model = ranks.together(lambda: _build(job))
    parallel = parallelize(model, ranks, job.part, job.device)
    optimizer = make_optimizer(model, job.options)
    folder = job.folder or ranks.gather(ranks.on_first(lambda: create_run_folder(args.run)))[0]
    assert folder is not None
    training = Run(folder, job.options, job.config, job.data, model, optimizer, ranks)
    if job.checkpoint is not None:
        training.load(job.checkpoint)
    _describe(training, job)
    return _train(training, job, parallel)


def _prepare(args: argparse.Namespace, ranks: Ranks) -> _Job:
    given = given_options(args)
    if args.resume is None:
        checkpoint = folder = None
        check_new_run(args.run)
        options = _checked(lambda: TrainOptions(**given))
    else:
        folder = existing_run_folder(args.resume)
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        options = _resumed_options(checkpoint["options"], given, folder)
    part = part_of_batch(ranks, options, args.context_parallel, args.sharding)
    device = resolve_device(options.device)
    if ranks.size > 1 and device.type == "cuda":
        device = resolve_device(f"cuda:{ranks.local_rank}")
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    config = _model_config(options)
    corpus = read_corpus(options.data, options.seq_len)
    # Resuming elsewhere, or later, means the same text, device and number of threads.
    options = dataclasses.replace(
        options,
        data=None if options.data is None else corpus.source,
        device=device.type if ranks.size > 1 else str(device),
        threads=torch.get_num_threads(),
    )
    data = {
        "train_bytes": len(corpus.train),
        "held_out_bytes": len(corpus.held_out),
        "digest": corpus.digest,
    }
    if checkpoint is not None and checkpoint["data"] != data:
        raise CommandError(
            f"the text in {corpus.source} is not the one that {folder} was trained on: "
            f"{data} now, {checkpoint['data']} then; give that one with --data, or start a new run"
        )
    return _Job(options, config, corpus, data, device, part, folder, checkpoint)


def check_same_on_all_ranks(job: _Job, ranks: Ranks) -> None:
    """Raise CommandError where ranks were started differently, or find another text on their machine."""
    shape = dataclasses.replace(job.part, data_rank=0, context_rank=0)
    mine = {**dataclasses.asdict(job.options), **dataclasses.asdict(shape), "text": job.data["digest"]}
    first, *others = ranks.gather(mine)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other[name] != first[name]:
                raise CommandError(
                    f"the ranks differ in {name}: {first[name]} on rank 0, {other[name]} on rank {rank}"
                )


def _build(job: _Job) -> LongNetLM:
    torch.manual_seed(job.options.seed)
    try:
        return LongNetLM(job.config).to(job.device)
    except RuntimeError as error:
        _raise_if_out_of_memory(error, job.options)
        raise


def _resumed_options(stored: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> TrainOptions:
    try:
        options = TrainOptions(**stored)
    except TypeError as error:
        raise CommandError(f"{folder} has options of another version of longnet: {error}") from error
    for name, value in given.items():
        trained_with = getattr(options, name)
        if name in SHAPE and value != trained_with:
            raise CommandError(
                f"{flag(name)} {_shown(value)} contradicts {folder}, which is trained with {flag(name)} "
                f"{_shown(trained_with)}: leave it out, or start a new run"
            )
    return _checked(lambda: dataclasses.replace(options, **given))


def _checked(make: Callable[[], T]) -> T:
    """What ``make`` makes of options, whose mistakes are the user's."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise CommandError(in_flags(str(error))) from error


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _model_config(options: TrainOptions) -> LongNetConfig:
    names = [field.name for field in dataclasses.fields(LongNetConfig)]
    chosen = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return _checked(lambda: LongNetConfig(vocab_size=256, **chosen))


def _describe(run: Run, job: _Job) -> None:
    options, corpus, ranks = run.options, job.corpus, run.ranks
    files = f"{corpus.num_files} file{'s' * (corpus.num_files != 1)}"
    skipped = f", {corpus.num_skipped} with NUL bytes skipped" if corpus.num_skipped else ""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    threads = f", {options.threads} threads" if options.device == "cpu" else ""
    say(
        f"data   {corpus.source}: {files}{skipped}, {len(corpus.train):,} bytes to train on, "
        f"{len(corpus.held_out):,} held out"
    )
    say(
        f"model  {parameters:,} parameters, context {options.seq_len:,}, segments "
        f"{_shown(options.segment_lengths)}, dilation {_shown(options.dilation_rates)}; "
        f"{options.device}{threads}, {options.dtype}"
    )
    if ranks.size > 1:
        part = job.part
        say(
            f"ranks  {ranks.size}: {part.num_data} data parallel x {part.num_context} context parallel"
            + (f" ({part.sharding})" if part.num_context > 1 else "")
        )
    say(f"run    {run.folder}" + (f", resumed after step {run.step}" if run.step else ""))


def _train(run: Run, job: _Job, parallel: Parallel) -> int:
    folder, options, ranks = run.folder, run.options, run.ranks
    again = _resume_command(run, job.part)
    try:
        with ExitStack() as opened:
            metrics, rows = ranks.on_first(lambda: _open_metrics(run, again, opened)) or (None, [])
            stop = opened.enter_context(StopRequest(quiet=not ranks.first))
            run.write_config()
            run.save()
            started = time.perf_counter()
            _take_steps(run, job, parallel, metrics, rows, stop)
        trained = minutes(time.perf_counter() - started)
        if stop.received is not None:
            say(f"stopped after step {run.step} of {options.steps}; continue with: {again}")
            ranks.on_first(lambda: _plot(run, rows))
            return 128 + stop.received
        ranks.on_first(lambda: _finish(run, job, rows, trained))
    except OSError as error:
        kept = (
            "" if run.saved_step is None else f"; the checkpoint of step {run.saved_step} is whole: {again}"
        )
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}{kept}") from error
    except NonFiniteLossError as error:
        raise CommandError(
            f"{error}; the last good checkpoint is of step {run.saved_step}, {folder / CHECKPOINT}; "
            "start a new run with a lower --lr",
            status=1,
        ) from error
    except (RuntimeError, MemoryError) as error:
        _raise_if_out_of_memory(error, options)
        if ranks.size > 1 and _is_of_communication(error):
            reason = str(error).split("\n")[0].split(". ")[0]
            raise RankError(f"another rank has failed ({reason}); go on with: {again}", status=1) from error
        raise
    return 0


def _open_metrics(run: Run, again: str, opened: ExitStack) -> tuple[BinaryIO, list[dict[str, Any]]]:
    """The metrics, locked until ``opened`` is closed, and their rows up to the run's step."""
    metrics = opened.enter_context(lock_metrics(run.folder / METRICS))
    # Until they were locked, another process could have gone on from here.
    if run.saved_step is not None and load_checkpoint(run.folder / CHECKPOINT)["step"] != run.saved_step:
        raise CommandError(f"another process went on training in {run.folder} meanwhile: {again}")
    return metrics, cut_metrics(metrics, run.step)


def _take_steps(
    run: Run,
    job: _Job,
    parallel: Parallel,
    metrics: BinaryIO | None,
    rows: list[dict[str, Any]],
    stop: StopRequest,
) -> None:
    options, ranks = run.options, run.ranks
    measured = run.step
    with (
        show_progress(options.steps, run.step) as progress,
        TokenEnergy(job.device, ranks) as energy,
    ):
        for row in training_steps(run.model, run.optimizer, job.corpus, options, run.step, parallel):
            if "val_bits_per_byte" in row:
                tokens = (row["step"] - measured) * options.batch_size * options.seq_len
                joules_per_token = energy.per_token(tokens)
                measured = row["step"]
                if joules_per_token is not None:
                    row["joules_per_token"] = joules_per_token
            rows.append(row)
            run.step = row["step"]

            def record(row: dict[str, Any] = row) -> None:
                if metrics is not None:
                    append_row(metrics, row)

            def sync() -> None:
                if metrics is not None:
                    os.fsync(metrics.fileno())

            ranks.together(record)
            progress.update(row)
            # A signal may have come to some ranks only, or to some of them after this step.
            received = ranks.highest(stop.received or 0)
            stop.received = signal.Signals(received) if received else None
            last = run.step == options.steps or stop.received is not None
            if last or run.step % options.checkpoint_every == 0:
                ranks.together(sync)
                run.save()
            if last:
                return


def _finish(run: Run, job: _Job, rows: list[dict[str, Any]], trained: str) -> None:
    folder = run.folder
    plotted = _plot(run, rows)
    sample = _sample(run, job)
    last = next((row for row in reversed(rows) if "val_bits_per_byte" in row), None)
    if last is not None:
        bits = f"{last['val_bits_per_byte']:.3f} bits per byte"
        say(f"held out: {bits} after step {last['step']}, trained {trained}")
    written = [CHECKPOINT, *([] if run.shards is None else [run.shards]), CONFIG, METRICS, *plotted, *sample]
    say(f"{folder}: {', '.join(written)}")
    say(f"generate: {_program()} generate {shlex.quote(str(folder))} --prompt 'def ' --bytes 500")


def _plot(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    o = run.options
    title = f"{run.folder.name}: {o.num_layers} layers, width {o.embed_dim}, context {o.seq_len}"
    try:
        plot_loss(run.folder / PLOT, rows, title)
    except ImportError:
        say("no loss.png: it needs matplotlib (pip install matplotlib)")
        return []
    return [PLOT]


def _sample(run: Run, job: _Job) -> list[str]:
    options, corpus = run.options, job.corpus
    if options.sample_bytes == 0:
        return []
    prompt = bytes(corpus.held_out[:100].tolist()) if options.prompt is None else os.fsencode(options.prompt)
    # The other ranks have nothing to do with it: the model must be whole here.
    model = run.model if run.ranks.size == 1 else load_model(run.folder / CHECKPOINT, job.device)[0]
    continuation = continue_bytes(
        model, prompt, options.sample_bytes, temperature=0.8, top_k=None, seed=options.seed
    )
    text = (prompt + continuation).decode(errors="replace")
    write_atomically(run.folder / SAMPLE, lambda file: file.write(text.encode()))
    return [f"{SAMPLE} ({len(prompt)} bytes of prompt, then {len(continuation)} generated)"]


def _raise_if_out_of_memory(error: Exception, options: TrainOptions) -> None:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        raise RankError(
            f"out of memory with --seq-len {options.seq_len} --batch-size {options.batch_size} "
            f"--embed-dim {options.embed_dim} --num-layers {options.num_layers}: lower one of them",
            status=1,
        ) from error


def _program() -> str:
    """How the user can call ``longnet``: as now, where that is by a path outside PATH."""
    called = sys.argv[0]
    return called if Path(called).name == "longnet" and shutil.which("longnet") is None else "longnet"


def _is_of_communication(error: Exception) -> bool:
    return isinstance(error, (RingError, dist.DistError)) or "gloo" in str(error)


def _resume_command(run: Run, part: BatchPart) -> str:
    resume = f"--resume {shlex.quote(str(run.folder))}"
    if run.ranks.size == 1:
        return f"{_program()} train {resume}"
    command = [run.ranks.launcher()]
    if part.num_context > 1:
        command.append(f"--context-parallel {part.num_context}")
    if part.sharding != BatchPart.sharding:
        command.append(f"--sharding {part.sharding}")
    return " ".join([*command, resume])
