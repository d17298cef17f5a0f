"""A run: what is trained, how far it is, and its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..models import LongNetConfig, LongNetLM
from .checkpoint import VERSION, save_checkpoint, write_atomically
from .errors import CommandError
from .options import TrainOptions
from .ranks import Ranks
from .run_folder import CHECKPOINT, CONFIG, remove_other_shards


@dataclass
class Run:
    """The state of a training run and its way to disk and back."""

    folder: Path
    """Where it is written."""
    options: TrainOptions
    """What it was started with."""
    config: LongNetConfig
    """The shape of ``model``."""
    data: dict[str, Any]
    """Sizes and digest of the text."""
    model: LongNetLM
    """What is trained."""
    optimizer: torch.optim.Optimizer
    """The optimizer of its parameters."""
    ranks: Ranks = field(default_factory=Ranks)
    """Who trains it; each has a run of its own, and calls its methods when the others do."""
    step: int = 0
    """Steps taken."""
    saved_step: int | None = None
    """The step of the checkpoint on disk; None if there is none."""
    shards: str | None = None
    """The folder with the tensors of the checkpoint on disk; None if they are in its file."""

    def save(self) -> None:
        """Replace the checkpoint by one of now, in shards if there are several ranks.

        Raises:
            CommandError, OSError: the one before is untouched.
        """
        rng = {"cpu": torch.get_rng_state()}
        device = torch.device(self.options.device)
        if device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(device)
        tensors: dict[str, Any]
        if self.ranks.size > 1:
            from .shards import tensors_of, write_shards

            shards = write_shards(
                self.folder, self.shards, tensors_of(self.model, self.optimizer), self.ranks
            )
            tensors, named = {"shards": shards}, shards["folder"]
        else:
            tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            named = None
        checkpoint = {
            "step": self.step,
            "options": dataclasses.asdict(self.options),
            "model_config": dataclasses.asdict(self.config),
            "data": self.data,
            "rng": rng,
            **tensors,
        }
        self.ranks.on_first(lambda: save_checkpoint(self.folder / CHECKPOINT, checkpoint))
        self.shards, self.saved_step = named, self.step
        self.ranks.on_first(lambda: remove_other_shards(self.folder, named))

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of this run, whatever number of ranks wrote it.

        Raises:
            CommandError: its tensors are not those of its options, or not whole.
        """
        device = torch.device(self.options.device)
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
            torch.set_rng_state(checkpoint["rng"]["cpu"])
            if device.type == "cuda" and "cuda" in checkpoint["rng"]:
                torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CommandError(f"{self.folder / CHECKPOINT} does not fit its own options: {error}") from error
        self.step = self.saved_step = checkpoint["step"]

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
        self.optimizer.load_state_dict(optimizer)

    def write_config(self) -> None:
        """Write ``config.json``: for people and scripts, what the checkpoint says about the run."""
        content = {
            "version": VERSION,
            "options": dataclasses.asdict(self.options),
            "model_config": dataclasses.asdict(self.config),
            "data": self.data,
        }
        text = json.dumps(content, indent=2) + "\n"
        self.ranks.on_first(
            lambda: write_atomically(self.folder / CONFIG, lambda file: file.write(text.encode()))
        )
