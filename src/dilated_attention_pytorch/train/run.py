"""A run: what is trained, how far it is, and its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models import LongNetConfig, LongNetLM
from .checkpoint import VERSION, save_checkpoint, write_atomically
from .errors import CommandError
from .options import TrainOptions
from .run_folder import CHECKPOINT, CONFIG


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
    step: int = 0
    """Steps taken."""
    saved_step: int | None = None
    """The step of the checkpoint on disk; None if there is none."""

    def save(self) -> None:
        """Replace the checkpoint by one of now.

        Raises:
            OSError: the one before is untouched.
        """
        rng = {"cpu": torch.get_rng_state()}
        device = torch.device(self.options.device)
        if device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(device)
        checkpoint = {
            "step": self.step,
            "options": dataclasses.asdict(self.options),
            "model_config": dataclasses.asdict(self.config),
            "data": self.data,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
        }
        save_checkpoint(self.folder / CHECKPOINT, checkpoint)
        self.saved_step = self.step

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of this run.

        Raises:
            CommandError: its tensors are not those of its options.
        """
        device = torch.device(self.options.device)
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            torch.set_rng_state(checkpoint["rng"]["cpu"])
            if device.type == "cuda" and "cuda" in checkpoint["rng"]:
                torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CommandError(f"{self.folder / CHECKPOINT} does not fit its own options: {error}") from error
        self.step = self.saved_step = checkpoint["step"]

    def write_config(self) -> None:
        """Write ``config.json``: for people and scripts, what the checkpoint says about the run."""
        content = {
            "version": VERSION,
            "options": dataclasses.asdict(self.options),
            "model_config": dataclasses.asdict(self.config),
            "data": self.data,
        }
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(self.folder / CONFIG, lambda file: file.write(text.encode()))
