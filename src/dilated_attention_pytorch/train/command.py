"""``longnet train``: from options to a run folder, new or resumed."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..models import LongNetConfig, LongNetLM
from .checkpoint import load_checkpoint, write_atomically
from .data import Corpus, read_corpus
from .device import keep_freed_memory, resolve_device
from .errors import CommandError
from .generate import continue_bytes
from .loop import NonFiniteLossError, make_optimizer, training_steps
from .options import RESUMABLE_WITH, TrainOptions, flag, given_options
from .plot import plot_loss
from .progress import minutes, say, show_progress
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


def run_train(args: argparse.Namespace) -> int:
    """``longnet train``: train, or go on training, and return the exit status.

    Raises:
        CommandError: what its user can do something about.
    """
    given = given_options(args)
    if args.resume is None:
        checkpoint = folder = None
        check_new_run(args.run)
        options = TrainOptions(**given)
    else:
        folder = existing_run_folder(args.resume)
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        options = _resumed_options(checkpoint["options"], given, folder)
    device = resolve_device(options.device)
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
        device=str(device),
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

    torch.manual_seed(options.seed)
    try:
        model = LongNetLM(config).to(device)
    except RuntimeError as error:
        _raise_if_out_of_memory(error, options)
        raise
    optimizer = make_optimizer(model, options)
    run = Run(folder or create_run_folder(args.run), options, config, data, model, optimizer)
    if checkpoint is not None:
        run.load(checkpoint)
    _describe(run, corpus)
    return _train(run, corpus)


def _resumed_options(stored: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> TrainOptions:
    try:
        options = TrainOptions(**stored)
    except TypeError as error:
        raise CommandError(f"{folder} has options of another version of longnet: {error}") from error
    for name, value in given.items():
        trained_with = getattr(options, name)
        if name not in RESUMABLE_WITH and value != trained_with:
            raise CommandError(
                f"{flag(name)} {_shown(value)} contradicts {folder}, which is trained with {flag(name)} "
                f"{_shown(trained_with)}: leave it out, or start a new run"
            )
    return dataclasses.replace(options, **given)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _model_config(options: TrainOptions) -> LongNetConfig:
    names = [field.name for field in dataclasses.fields(LongNetConfig)]
    chosen = {name: getattr(options, name) for name in names if hasattr(options, name)}
    try:
        return LongNetConfig(vocab_size=256, **chosen)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def _describe(run: Run, corpus: Corpus) -> None:
    options = run.options
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
    say(f"run    {run.folder}" + (f", resumed after step {run.step}" if run.step else ""))


def _train(run: Run, corpus: Corpus) -> int:
    folder, options = run.folder, run.options
    command = _program()
    again = f"{command} train --resume {shlex.quote(str(folder))}"
    try:
        with lock_metrics(folder / METRICS) as metrics, StopRequest() as stop:
            # Until they were locked, another process could have gone on from here.
            if run.saved_step is not None and load_checkpoint(folder / CHECKPOINT)["step"] != run.saved_step:
                raise CommandError(f"another process went on training in {folder} meanwhile: {again}")
            rows = cut_metrics(metrics, run.step)
            run.write_config()
            run.save()
            started = time.perf_counter()
            _take_steps(run, corpus, metrics, rows, stop)
        trained = minutes(time.perf_counter() - started)
        if stop.received is not None:
            say(f"stopped after step {run.step} of {options.steps}; continue with: {again}")
            _plot(run, rows)
            return 128 + stop.received
        plotted = _plot(run, rows)
        sample = _sample(run, corpus)
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
        raise
    last = next((row for row in reversed(rows) if "val_bits_per_byte" in row), None)
    if last is not None:
        bits = f"{last['val_bits_per_byte']:.3f} bits per byte"
        say(f"held out: {bits} after step {last['step']}, trained {trained}")
    written = [CHECKPOINT, CONFIG, METRICS, *plotted, *sample]
    say(f"{folder}: {', '.join(written)}")
    say(f"generate: {command} generate {shlex.quote(str(folder))} --prompt 'def ' --bytes 500")
    return 0


def _take_steps(
    run: Run, corpus: Corpus, metrics: BinaryIO, rows: list[dict[str, Any]], stop: StopRequest
) -> None:
    options = run.options
    with show_progress(options.steps, run.step) as progress:
        for row in training_steps(run.model, run.optimizer, corpus, options, run.step):
            append_row(metrics, row)
            rows.append(row)
            run.step = row["step"]
            progress.update(row)
            last = run.step == options.steps or stop.received is not None
            if last or run.step % options.checkpoint_every == 0:
                os.fsync(metrics.fileno())
                run.save()
            if last:
                return


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


def _sample(run: Run, corpus: Corpus) -> list[str]:
    options = run.options
    if options.sample_bytes == 0:
        return []
    prompt = bytes(corpus.held_out[:100].tolist()) if options.prompt is None else os.fsencode(options.prompt)
    continuation = continue_bytes(
        run.model, prompt, options.sample_bytes, temperature=0.8, top_k=None, seed=options.seed
    )
    text = (prompt + continuation).decode(errors="replace")
    write_atomically(run.folder / SAMPLE, lambda file: file.write(text.encode()))
    return [f"{SAMPLE} ({len(prompt)} bytes of prompt, then {len(continuation)} generated)"]


def _raise_if_out_of_memory(error: Exception, options: TrainOptions) -> None:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        raise CommandError(
            f"out of memory with --seq-len {options.seq_len} --batch-size {options.batch_size} "
            f"--embed-dim {options.embed_dim} --num-layers {options.num_layers}: lower one of them",
            status=1,
        ) from error


def _program() -> str:
    """How the user can call ``longnet``: as now, where that is by a path outside PATH."""
    called = sys.argv[0]
    return called if Path(called).name == "longnet" and shutil.which("longnet") is None else "longnet"
