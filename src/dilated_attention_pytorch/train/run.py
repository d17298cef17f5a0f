"""A run: what is trained, how far it is, and its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kernel_pytorch.jobs.rank import RankJob

from ..models import LongNetConfig, LongNetLM
from .batch_parts import BatchPart
from .checkpoint import VERSION, save_checkpoint, write_atomically
from .checkpoint_files import keep_as, numbered_checkpoints, remove_unnamed_shards
from .data import Corpus
from .errors import CommandError
from .fence import Fence
from .loop import make_optimizer, make_scaler
from .metrics import abandon_rows
from .options import TrainOptions
from .parallel import Parallel, parallelize, wrap_blocks
from .ranks import Ranks
from .ring_order import choose_ring_order
from .run_folder import BEST, CHECKPOINT, CONFIG


@dataclass(frozen=True, kw_only=True)
class LeftLine:
    """The line of steps that a run leaves, to go on from another checkpoint."""

    history: list[dict[str, Any]]
    """As that of a run."""
    last_step: int
    """The step of its last checkpoint."""
    common: int
    """How many of its steps led to the other checkpoint too."""


@dataclass(kw_only=True)
class Run:
    """A training run on one rank, and its way to disk and back. All ranks call the methods together."""

    options: TrainOptions
    """What it is trained with now."""
    config: LongNetConfig
    """The shape of ``model``."""
    corpus: Corpus
    """The text."""
    model: LongNetLM
    """What is trained."""
    parallel: Parallel = field(default_factory=Parallel)
    """How a step is spread over ranks."""
    optimizer: torch.optim.Optimizer = field(init=False)
    """The optimizer of the parameters; made by :meth:`distribute`."""
    scaler: torch.amp.GradScaler | None = field(init=False, default=None)
    """Loss scaling, for float16; made by :meth:`distribute`."""
    job: RankJob = field(default_factory=RankJob)
    """The job that trains it, if one does."""
    fence: Fence | None = None
    """Asked before anything is replaced; of the first rank in a job, else None."""
    folder: Path = field(init=False)
    """Where it is written; set before anything is."""
    step: int = 0
    """Steps taken."""
    saved_step: int | None = None
    """The step of the checkpoint on disk; None if there is none."""
    shards: str | None = None
    """The folder with the tensors of the checkpoint on disk; None if they are in its file."""
    best: dict[str, Any] | None = None
    """``step`` and ``val_bits_per_byte`` of the lowest loss on held-out text; None before there is one."""
    attempt: int = 0
    """How many times it was resumed, other lines of steps included."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """For each time that it was resumed on the line of steps that led here, ``step``, the number of the
    ``attempt``, and ``changed``: options as [before, after]."""
    init_from: dict[str, Any] | None = None
    """``run`` and ``step`` that the first weights are of; None if they were drawn."""
    left: LeftLine | None = None
    """What it goes back from; None if it goes on from there."""

    @property
    def ranks(self) -> Ranks:
        """Who trains it."""
        return self.parallel.ranks

    @property
    def part(self) -> BatchPart:
        """The part of each batch that this rank computes."""
        return self.parallel.part

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return next(self.model.parameters()).device

    def distribute(self) -> None:
        """Spread the model over the ranks, and make the optimizer of what this rank has of it."""
        backend = "inductor" if self.options.compile else None
        wrap_blocks(self.model, recompute=self.options.recompute, backend=backend)
        order = choose_ring_order(self.ranks, self.part, self.config, self.options)
        self.parallel = parallelize(self.model, self.ranks, self.part, self.device, order)
        self.optimizer = make_optimizer(self.model, self.options)
        self.scaler = make_scaler(self.options, self.device)

    def evaluated(self, val_bits_per_byte: float) -> bool:
        """Take note of the loss on held-out text after this step; whether it is the lowest so far."""
        if self.best is not None and not val_bits_per_byte < self.best["val_bits_per_byte"]:
            return False
        self.best = {"step": self.step, "val_bits_per_byte": val_bits_per_byte}
        return True

    def save(self, is_best: bool = False) -> None:
        """Replace the checkpoint by one of now, in shards if there are several ranks, and keep older ones.

        Args:
            is_best: whether it is to be kept as the best as well.

        Raises:
            CommandError, OSError: the one before is untouched. In a job also where a newer attempt has begun.
        """
        started = time.perf_counter()
        in_job = self.job.attempt is not None
        self.job.beat(self.step, "saving")
        if in_job:
            self.ranks.on_first(self._check_newest)
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors: dict[str, Any]
        if self.ranks.size > 1:
            from .shards import tensors_of, write_shards

            shards = write_shards(self.folder, self.step, tensors_of(self.model, self.optimizer), self.ranks)
            tensors, named = {"shards": shards}, shards["folder"]
        else:
            tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            named = None
        checkpoint = {**self._facts(), "step": self.step, "rng": rng, "best": self.best, **tensors}
        if self.scaler is not None:
            checkpoint["scaler"] = self.scaler.state_dict()
        self.ranks.on_first(lambda: save_checkpoint(self.folder / CHECKPOINT, checkpoint, self._check_newest))
        self.shards, self.saved_step = named, self.step
        self.ranks.on_first(lambda: self._keep(is_best))
        if in_job:
            self.ranks.together(lambda: self.job.saved(self.step, time.perf_counter() - started))

    def _check_newest(self) -> None:
        if self.fence is not None:
            self.fence.check()

    def _keep(self, is_best: bool) -> None:
        self._check_newest()
        if is_best:
            keep_as(self.folder, BEST)
        if self.options.keep > 1:
            keep_as(self.folder, f"checkpoint-{self.step}.pt")
        numbered = numbered_checkpoints(self.folder)
        # Those of later steps were left when the run went back: it may go there again.
        earlier = [step for step in numbered if step <= self.step]
        for step in earlier[: -self.options.keep] if self.options.keep > 1 else earlier:
            numbered[step].unlink()
        remove_unnamed_shards(self.folder)

    def leave(self, metrics: BinaryIO) -> None:
        """Keep the last checkpoint and the metrics of the line of steps that is left, if one is.

        Args:
            metrics: the file, of the first rank.

        Raises:
            OSError: nothing is lost.
        """
        if self.left is not None:
            keep_as(self.folder, f"checkpoint-{self.left.last_step}.pt")
            abandon_rows(metrics, self.folder, self.left.history, self.left.last_step, self.left.common)

    def load(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Go on from a checkpoint of this run, read from ``path``, whatever number of ranks wrote it.

        Raises:
            CommandError: its tensors are not those of its options, or not whole.
        """
        try:
            if "shards" in checkpoint:
                from .shards import make_adam_state, read_shards, tensors_of

                if checkpoint["step"] > 0:
                    make_adam_state(self.optimizer)
                tensors = tensors_of(self.model, self.optimizer)
                read_shards(self.folder, checkpoint["shards"], tensors, self.ranks)
                self.shards = checkpoint["shards"]["folder"]
            else:
                self._load_whole(checkpoint["model"], checkpoint["optimizer"])
            if self.scaler is not None and "scaler" in checkpoint:
                self.scaler.load_state_dict(checkpoint["scaler"])
            torch.set_rng_state(checkpoint["rng"]["cpu"])
            if self.device.type == "cuda" and "cuda" in checkpoint["rng"]:
                torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], self.device)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CommandError(f"{path} does not fit its own options: {error}") from error
        self.step = checkpoint["step"]

    def _load_whole(self, weights: Mapping[str, Any], optimizer: dict[str, Any]) -> None:
        if self.ranks.size > 1:
            from .shards import sharded_as

            own = self.model.state_dict()
            weights = {name: sharded_as(own[name], weights[name]) for name in own}
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            optimizer["state"] = {
                index: {kind: sharded_as(parameters[index], x) for kind, x in state.items()}
                for index, state in optimizer["state"].items()
            }
        self.model.load_state_dict(weights)
        state = {"state": optimizer["state"], "param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(state)

    def _facts(self) -> dict[str, Any]:
        job = {} if self.job.id is None else {"job": {"id": self.job.id, "attempt": self.job.attempt}}
        return {
            **job,
            "options": dataclasses.asdict(self.options),
            "model_config": dataclasses.asdict(self.config),
            "data": self.corpus.facts(),
            "attempt": self.attempt,
            "history": self.history,
            "init_from": self.init_from,
        }

    def write_config(self) -> None:
        """Write ``config.json``, for people and scripts what the checkpoint says, and the tokenizer."""
        text = json.dumps({"version": VERSION, **self._facts()}, indent=2) + "\n"

        def write() -> None:
            write_atomically(self.folder / CONFIG, lambda file: file.write(text.encode()))
            if self.corpus.tokenizer is not None:
                self.corpus.tokenizer.save(self.folder)

        self.ranks.on_first(write)
