"""The tensors of a checkpoint in shards: each rank writes its own, any number of ranks reads them.

They are files of torch.distributed.checkpoint, in a folder next to ``checkpoint.pt``, which names the folder
and has a digest of each file. A new folder becomes part of the checkpoint when ``checkpoint.pt`` is replaced.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from .checkpoint import sync_folder
from .checkpoint_files import is_shards_folder, new_shards_folder
from .errors import CommandError
from .ranks import Ranks

_METADATA = ".metadata"
_DCP = "torch.distributed.checkpoint.metadata"
# Not BytesStorageMetadata: torch would load what it describes with everything that pickle can do.
_KNOWN = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch", "float32"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    (_DCP, "_MEM_FORMAT_ENCODING"),
    (_DCP, "ChunkStorageMetadata"),
    (_DCP, "Metadata"),
    (_DCP, "MetadataIndex"),
    (_DCP, "StorageMeta"),
    (_DCP, "TensorProperties"),
    (_DCP, "TensorStorageMetadata"),
}


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """The weights, and the state of the optimizer, by name: the tensors themselves."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for kind, tensor in optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{kind}"] = tensor
    return tensors


def make_adam_state(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the state that it makes in its first step, to be loaded into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def sharded_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of a whole ``tensor``, if ``parameter`` is sharded; scalars stay whole."""
    if not isinstance(parameter, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def write_shards(run: Path, step: int, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Any]:
    """Write the tensors of all ranks below ``run``, and return what ``checkpoint.pt`` says of them.

    Args:
        run: the folder of the run, on a file system that all ranks share.
        step: of the checkpoint.
        tensors: this rank's.
        ranks: all of them call this.

    Raises:
        CommandError, OSError: on all ranks.
    """
    folder = ranks.gather(ranks.on_first(lambda: new_shards_folder(run, step)))[0]
    assert folder is not None
    try:
        digests = _write(folder, tensors, ranks)
    except (CommandError, OSError):
        ranks.on_first(lambda: shutil.rmtree(folder, ignore_errors=True))
        raise
    return {"folder": folder.name, "digests": digests}


def read_shards(run: Path, shards: Mapping[str, Any], tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill ``tensors`` from the shards that ``checkpoint.pt`` describes, executing nothing in them.

    Args:
        run: the folder of the run.
        shards: as :func:`write_shards` returned it.
        tensors: this rank's, by the names and of the shapes that were written.
        ranks: all of them call this.

    Raises:
        CommandError: on all ranks: missing, damaged, or other tensors than these.
    """
    folder = _folder_of(run, shards)

    def check() -> None:
        files = sorted(shards["digests"])[ranks.rank :: ranks.size]
        try:
            found = _digests(folder, files)
        except OSError as error:
            raise CommandError(f"cannot read {error.filename}: {error.strerror}") from error
        for file in files:
            if found[file] != shards["digests"][file]:
                raise CommandError(f"{folder / file} is damaged: it is not what was written")

    ranks.together(check)
    with warnings.catch_warnings():
        # That a process alone loads alone.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(
                dict(tensors),
                storage_reader=_Reader(folder),
                process_group=ranks.group,
                no_dist=ranks.group is None,
            )
        except CheckpointException as error:
            raise _first_failure(error, f"cannot read {folder}") from None


def read_metadata(run: Path, shards: Mapping[str, Any]) -> Metadata:
    """What the shards that a checkpoint describes hold, executing nothing in them.

    Raises:
        CommandError: missing or damaged.
    """
    folder = _folder_of(run, shards)
    try:
        return _Reader(folder).read_metadata()
    except OSError as error:
        raise CommandError(f"cannot read {error.filename}: {error.strerror}") from error
    except Exception as error:  # of a pickle, damage is any exception
        raise CommandError(f"{folder / _METADATA} is damaged: {error}") from error


def _folder_of(run: Path, shards: Mapping[str, Any]) -> Path:
    if not is_shards_folder(shards["folder"]):
        raise CommandError(f"{run} has no shards in a folder {shards['folder']!r}")
    return run / str(shards["folder"])


def _write(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, str]:
    """Write and sync the files, and return the digest of each."""

    def find() -> None:
        if not folder.is_dir():
            raise CommandError(
                f"rank {ranks.rank} does not see {folder}, which rank 0 made: "
                "the run must be on a file system that all ranks share"
            )

    ranks.together(find)
    try:
        save(
            dict(tensors),
            storage_writer=FileSystemWriter(folder),
            process_group=ranks.group,
            no_dist=ranks.group is None,
        )
    except CheckpointException as error:
        raise _first_failure(error, f"cannot write {folder}") from None
    files = ranks.gather(ranks.on_first(lambda: sorted(path.name for path in folder.iterdir())))[0] or []
    digests: dict[str, str] = {}
    # Each rank reads some of the files in the folder, not only those it wrote itself.
    for part in ranks.gather(ranks.together(lambda: _digests(folder, files[ranks.rank :: ranks.size]))):
        digests.update(part)
    ranks.on_first(lambda: sync_folder(folder))
    return digests


class _Reader(FileSystemReader):
    """FileSystemReader, but its metadata, a pickle, can make nothing but metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        content = (Path(self.path) / _METADATA).read_bytes()
        metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"a {type(metadata).__name__} is no metadata")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of metadata")
        return super().find_class(module, name)


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        digest = hashlib.blake2b(digest_size=16)
        with (folder / name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        digests[name] = digest.hexdigest()
    return digests


def _first_failure(error: CheckpointException, what: str) -> Exception:
    """What a rank raised, as the exception that all of them raise."""
    failures = [failure for _, (failure, _) in sorted(error.failures.items())]
    for failure in failures:
        if isinstance(failure, OSError):
            return failure
    return CommandError(f"{what}: {str(failures[0]).splitlines()[0]}")
