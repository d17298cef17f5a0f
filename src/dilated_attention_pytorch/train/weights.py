"""The weights of a run, read by a process alone, whether one or several ranks wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..models import LongNetConfig, LongNetLM
from .checkpoint import load_checkpoint
from .checkpoint_files import find_checkpoint
from .errors import CommandError
from .ranks import Ranks
from .run_folder import existing_run_folder
from .shards import read_metadata, read_shards


def read_weights(run: str | Path, which: str = "last") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint, without its optimizer, and the weights of the model by name, on the CPU.

    Args:
        run: folder of the run, or its name below ``runs``.
        which: ``"last"``, ``"best"``, or a step.

    Raises:
        CommandError: not there, not readable, damaged.
    """
    return weights_at(find_checkpoint(existing_run_folder(str(run)), which))


def weights_at(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As :func:`read_weights`, of the checkpoint in the file ``path``."""
    checkpoint = load_checkpoint(path)
    checkpoint.pop("optimizer", None)
    if "shards" not in checkpoint:
        return checkpoint, checkpoint.pop("model")
    prefix = "model."
    described = read_metadata(path.parent, checkpoint["shards"]).state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    read_shards(path.parent, checkpoint["shards"], tensors, Ranks())
    return checkpoint, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def load_model(path: Path, device: torch.device) -> tuple[LongNetLM, dict[str, Any]]:
    """The model of a checkpoint, and what else the checkpoint says.

    Raises:
        CommandError: as :func:`weights_at`, or the weights do not fit the model.
    """
    checkpoint, weights = weights_at(path)
    try:
        model = LongNetLM(LongNetConfig(**checkpoint["model_config"]))
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(f"{path} does not fit this version's LongNetLM: {error}") from error
    return model.to(device), checkpoint
