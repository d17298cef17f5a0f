"""From the arguments of ``longnet train`` to a run that can take its first step, new or resumed."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from kernel_pytorch.jobs.rank import RankJob

from ..models import LongNetConfig, LongNetLM
from .batch_parts import part_of_batch
from .checkpoint import load_checkpoint
from .checkpoint_files import find_checkpoint
from .data import read_corpus, size_in_words
from .device import (
    check_compile,
    check_dtype,
    dtype_notice,
    keep_freed_memory,
    resolve_device,
    return_freed_memory,
    set_threads,
)
from .errors import CommandError, raise_if_out_of_memory
from .metrics import common_steps
from .options import BYTES, SHAPE, TrainOptions, flag, given_options, in_flags
from .parallel import Parallel
from .progress import say
from .ranks import Ranks
from .run import LeftLine, Run
from .run_folder import (
    CHECKPOINT,
    check_new_run,
    create_run_folder,
    existing_run_folder,
    run_exists,
    run_path,
)
from .tensorboard import TensorBoard
from .tokenizer import TOKENIZER, Tokenizer, load_tokenizer, tokenizer_of_run
from .weights import weights_at

T = TypeVar("T")


def start_run(args: argparse.Namespace, ranks: Ranks, job: RankJob) -> Run:
    """The run that ``args`` ask for, its folder made; each rank calls it.

    In a job, a run that the job has begun before goes on, whatever ``args`` ask for.

    Raises:
        CommandError: a mistake in what was given, on all ranks.
    """
    given = given_options(args)
    if args.checkpoint is not None and args.resume is None and args.init_from is None:
        raise CommandError("--checkpoint needs --resume or --init-from, whose checkpoint it names")
    if args.resume is not None:
        if args.init_from is not None:
            raise CommandError("--init-from starts a new run, --resume goes on with one: give one of them")
        return _resumed_run(args, args.resume, given, ranks, job)
    name: str | None = job.id if args.run is None else args.run  # the same in each attempt of a job
    if job.id is not None and name is not None:
        folder = run_path(name)
        if ranks.gather(ranks.on_first((folder / CHECKPOINT).exists))[0]:
            return _resumed_run(args, str(folder), given, ranks, job)
    run = ranks.together(lambda: _new_run(args, name, given, ranks, job))
    check_same_on_all_ranks(run)
    run.distribute()
    made = ranks.gather(ranks.on_first(lambda: create_run_folder(name)))[0]
    assert made is not None
    run.folder = made
    return run


def _new_run(
    args: argparse.Namespace, name: str | None, given: Mapping[str, Any], ranks: Ranks, job: RankJob
) -> Run:
    check_new_run(name)
    if args.init_from is None:
        options = checked(lambda: TrainOptions(**given))
        return _make_run(args, options, load_tokenizer(options.tokenizer), ranks, job)
    folder = existing_run_folder(args.init_from)
    checkpoint, weights = weights_at(find_checkpoint(folder, args.checkpoint or "last"))
    given = dict(given)
    tokenizer = _same_tokenizer(checkpoint, given.pop("tokenizer", None), folder)
    options = _with_shape_of(checkpoint, given, args.init_from)
    run = _make_run(args, options, tokenizer, ranks, job)
    run.model.load_state_dict(weights)
    run.init_from = {"run": str(folder.absolute()), "step": checkpoint["step"]}
    return run


def _with_shape_of(checkpoint: Mapping[str, Any], given: Mapping[str, Any], source: str) -> TrainOptions:
    """``given`` for the context and model of a checkpoint; the context and the branches may be others."""
    branches = ("segment_lengths", "dilation_rates")
    shape = {name: checkpoint["model_config"][name] for name in SHAPE}
    _refuse_other_shape({name: given[name] for name in given if name not in branches}, shape, source)
    if any(name in given for name in branches):
        shape = {name: shape[name] for name in shape if name not in branches}
    options = checkpoint["options"]
    tokenizer = {"tokenizer": options["tokenizer"]} if "tokenizer" in options else {}
    return checked(lambda: TrainOptions(**{"seq_len": options["seq_len"], **shape, **tokenizer, **given}))


def _same_tokenizer(checkpoint: Mapping[str, Any], given: str | None, folder: Path) -> Tokenizer | None:
    """The tokenizer of a run, which ``given``, the value of ``--tokenizer``, must not contradict."""
    own = tokenizer_of_run(folder, checkpoint)
    if given is not None:
        other = load_tokenizer(given)
        if (own and own.digest) != (other and other.digest):
            raise CommandError(
                f"--tokenizer {given} contradicts {folder}, whose model has --tokenizer "
                f"{BYTES if own is None else folder / TOKENIZER}: leave it out, or start a new run"
            )
    return own


def _resumed_run(
    args: argparse.Namespace, name: str, all_given: Mapping[str, Any], ranks: Ranks, job: RankJob
) -> Run:
    def prepare() -> tuple[Run, dict[str, Any], Path]:
        folder = existing_run_folder(name)
        given, path = dict(all_given), folder / CHECKPOINT
        # What the run was last trained with, also where it goes back to an earlier step.
        last = checkpoint = load_checkpoint(path)
        if job.id is not None and last.get("job", {}).get("id") == job.id:
            given = {}  # the job has saved here, and so has all that its command line says
        elif args.resume is None:
            raise run_exists(folder)
        elif args.checkpoint is not None:
            path = find_checkpoint(folder, args.checkpoint)
            checkpoint = last if path == folder / CHECKPOINT else load_checkpoint(path)
        given_tokenizer = given.pop("tokenizer", None)
        try:
            options = TrainOptions(**last["options"])
        except (TypeError, ValueError) as error:
            raise CommandError(f"{folder} has options of another version of longnet: {error}") from error
        _refuse_other_shape(given, dataclasses.asdict(options), str(folder))
        tokenizer = _same_tokenizer(last, given_tokenizer, folder)
        run = _make_run(args, checked(lambda: dataclasses.replace(options, **given)), tokenizer, ranks, job)
        if not {"data", "held_out", "seq_len"} & given.keys():
            run.corpus.check_same(last["data"], folder, "to go on with it as it is now, give --data {0}")
        changed = _changes(checkpoint, last, run, given)
        _check_steps_left(checkpoint["step"], changed, run.options, folder)
        before = _history(checkpoint)
        run.attempt = last.get("attempt", len(_history(last))) + 1
        run.history = [*before, {"step": checkpoint["step"], "attempt": run.attempt, "changed": changed}]
        run.folder, run.saved_step = folder, last["step"]
        run.init_from = checkpoint.get("init_from")
        common = common_steps(_history(last), last["step"], before, checkpoint["step"])
        if common < last["step"]:
            run.left = LeftLine(history=_history(last), last_step=last["step"], common=common)
        # The best stays the best when the run goes back to before it, but not when the text is another.
        was, options = TrainOptions(**last["options"]), run.options
        comparable = (was.seq_len, was.eval_windows) == (options.seq_len, options.eval_windows)
        run.best = last.get("best") if comparable and last["data"] == run.corpus.facts() else None
        return run, checkpoint, path

    run, checkpoint, path = ranks.together(prepare)
    check_same_on_all_ranks(run)
    run.distribute()
    run.load(checkpoint, path)
    return run


def _history(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The times that the run was resumed before ``checkpoint``; earlier versions did not number them."""
    return [{"attempt": number, **entry} for number, entry in enumerate(checkpoint.get("history", []), 1)]


def _check_steps_left(step: int, changed: Mapping[str, Any], options: TrainOptions, folder: Path) -> None:
    if options.steps < step:
        raise CommandError(
            f"--steps {options.steps} is less than the {step} that {folder} has taken: give more, or go back "
            "to an earlier checkpoint with --checkpoint"
        )
    # What counts at the end of a run too, and where the same text is now.
    other = {"prompt", "sample_bytes", "keep", "device", "threads", "tensorboard", "data", "held_out"}
    without_effect = changed.keys() - other
    if options.steps == step and without_effect:
        raise CommandError(
            f"{folder} has taken all of its {step} steps, so that {in_words(changed)} has no effect: give "
            "--steps a higher number"
        )


def _make_run(
    args: argparse.Namespace, options: TrainOptions, tokenizer: Tokenizer | None, ranks: Ranks, job: RankJob
) -> Run:
    in_job = job.attempt is not None  # where nobody can choose how many ranks are left
    part = part_of_batch(ranks, options, args.context_parallel, args.sharding, any_size=in_job)
    device = resolve_device(options.device)
    if ranks.size > 1 and device.type == "cuda":
        device = resolve_device(f"cuda:{ranks.local_rank}")
        torch.cuda.set_device(device)
    check_dtype(device, options.dtype)
    if options.compile:
        check_compile(device)
    if options.tensorboard:
        TensorBoard(Path())  # here it says that it is not installed
    if device.type == "cpu":
        (return_freed_memory if options.recompute else keep_freed_memory)()
    if (threads := options.threads) is not None:
        checked(lambda: set_threads(threads))
    names = [field.name for field in dataclasses.fields(LongNetConfig)]
    chosen = {name: getattr(options, name) for name in names if hasattr(options, name)}
    vocab_size = 256 if tokenizer is None else tokenizer.vocab_size
    config = checked(lambda: LongNetConfig(vocab_size=vocab_size, **chosen))
    corpus = read_corpus(options.data, options.seq_len, options.held_out, tokenizer=tokenizer, report=say)
    # Resuming elsewhere, or later, means the same text, device and number of threads.
    options = dataclasses.replace(
        options,
        tokenizer=BYTES if tokenizer is None else str(Path(options.tokenizer).absolute()),
        data=None if options.data is None else corpus.source,
        held_out=corpus.held_out_source or options.held_out,
        device=device.type if ranks.size > 1 else str(device),
        threads=torch.get_num_threads(),
    )
    torch.manual_seed(options.seed)
    try:
        model = LongNetLM(config).to(device)
    except RuntimeError as error:
        raise_if_out_of_memory(error, options)
        raise
    parallel = Parallel(ranks=ranks, part=part)
    return Run(options=options, config=config, corpus=corpus, model=model, parallel=parallel, job=job)


def check_same_on_all_ranks(run: Run) -> None:
    """Raise CommandError where ranks were started differently, or find another text on their machine."""
    shape = dataclasses.replace(run.part, data_rank=0, context_rank=0)
    mine = {**dataclasses.asdict(run.options), **dataclasses.asdict(shape), "text": run.corpus.digest}
    first, *others = run.ranks.gather(mine)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other[name] != first[name]:
                raise CommandError(
                    f"the ranks differ in {name}: {first[name]} on rank 0, {other[name]} on rank {rank}"
                )


def _refuse_other_shape(given: Mapping[str, Any], trained_with: Mapping[str, Any], source: str) -> None:
    for name in SHAPE:
        if name in given and given[name] != trained_with[name]:
            raise CommandError(
                f"{flag(name)} {shown(given[name])} contradicts {source}, whose model has {flag(name)} "
                f"{shown(trained_with[name])}: leave it out, or start a new run"
            )


def _changes(
    checkpoint: Mapping[str, Any], last: Mapping[str, Any], run: Run, given: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """What goes on from ``checkpoint`` in another way, because it was given now or before ``last``."""
    before, after = checkpoint["options"], dataclasses.asdict(run.options)
    names = [name for name in after if name in given or before.get(name) != last["options"].get(name)]
    changed = {name: [before.get(name), after[name]] for name in names if before.get(name) != after[name]}
    if checkpoint["data"] != run.corpus.facts():
        changed["text"] = [checkpoint["data"]["digest"], run.corpus.digest]
    return changed


def in_words(changed: Mapping[str, list[Any]]) -> str:
    """Changes on one line, such as ``lr 0.004 -> 0.001, steps 500 -> 800``."""
    words = [
        f"{flag(name)[2:]} {shown(before)} -> {shown(after)}"
        for name, (before, after) in changed.items()
        if name != "text"
    ]
    explained = changed.keys() & {"data", "held_out", "seq_len"}
    return ", ".join([*words, *(["other text"] if "text" in changed and not explained else [])])


def checked(make: Callable[[], T]) -> T:
    """What ``make`` makes of options, whose mistakes are the user's."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise CommandError(in_flags(str(error))) from error


def shown(value: Any) -> str:
    """A value as it would be given on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "default"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def describe(run: Run, context_parallel: int = 1) -> None:
    """Print the data, the model, the ranks and the folder.

    Args:
        run: the run.
        context_parallel: what was asked for; the ring may be smaller.
    """
    options, corpus, part = run.options, run.corpus, run.part
    files = f"{corpus.num_files} file{'s' * (corpus.num_files != 1)}"
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    threads = f", {options.threads} threads" if options.device == "cpu" else ""
    tokens = "" if corpus.tokenizer is None else f" of {run.config.vocab_size:,} tokens"
    say(f"data   {corpus.source}: {files}, {size_in_words(corpus.train)} to train on")
    say(f"       held out: {corpus.held_out_in_words()}")
    if (skipped := corpus.skipped_in_words()) is not None:
        say(f"       {skipped}")
    say(
        f"model  {parameters:,} parameters, context {options.seq_len:,}{tokens}, segments "
        f"{shown(options.segment_lengths)}, dilation {shown(options.dilation_rates)}; "
        f"{options.device}{threads}, {options.dtype}"
    )
    notice = dtype_notice(run.device, options.dtype)
    if notice is not None:
        say(f"note   {notice}")
    if run.ranks.size > 1:
        say(
            f"ranks  {run.ranks.size}: {part.num_data} data parallel x {part.num_context} context parallel"
            + (f" ({part.sharding})" if part.num_context > 1 else "")
        )
    if run.parallel.order is not None:
        say(f"       {run.parallel.order.words}")
    if part.num_context < context_parallel:
        say(f"note   --context-parallel {context_parallel} does not fit, {part.num_context} does")
    rows = options.batch_size // options.grad_accumulation
    if beyond := -rows % part.num_data:
        say(f"note   {beyond} of {rows + beyond} rows are padding: {part.num_data} does not divide {rows}")
    say(f"run    {run.folder}" + (f", resumed after step {run.step}" if run.history else ""))
    if run.init_from is not None and not run.history:
        say(f"       with the weights of {run.init_from['run']} after step {run.init_from['step']}")
    if run.left is not None:
        last = run.left.last_step
        say(f"       leaving step {last}, which is kept: --checkpoint {last} goes back to it")
    if run.history and run.history[-1]["changed"]:
        say(f"from step {run.step + 1}: {in_words(run.history[-1]['changed'])}")
    if run.step == options.steps:
        say(f"all {run.step} steps are taken")
