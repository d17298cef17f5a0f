"""Shards on disk, written and read by a process alone; several are in test_train_distributed.py."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train import run as run_module
from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.loop import make_optimizer
from dilated_attention_pytorch.train.options import TrainOptions
from dilated_attention_pytorch.train.parallel import Parallel
from dilated_attention_pytorch.train.ranks import Ranks
from dilated_attention_pytorch.train.run import Run
from dilated_attention_pytorch.train.shards import read_shards, write_shards
from dilated_attention_pytorch.train.weights import load_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def some_tensors(value):
    return {"model.a": torch.full((3, 5), value), "optimizer.a.step": torch.tensor(value)}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def read_into(run, shards, tensors):
    read_shards(run, shards, tensors, Ranks())
    return tensors


def assert_holds(run, shards, value):
    for tensor in read_into(run, shards, some_tensors(0.0)).values():
        assert torch.equal(tensor, torch.full_like(tensor, value))


def test_new_shards_leave_the_named_ones_until_they_are_named(run):
    first = write_shards(run, 0, some_tensors(1.0), Ranks())
    second = write_shards(run, 0, some_tensors(2.0), Ranks())
    assert_holds(run, first, 1.0)
    assert (first["folder"], second["folder"]) == ("shards-0", "shards-0-1")
    assert_holds(run, first, 1.0)
    assert_holds(run, second, 2.0)


def test_failed_write_leaves_nothing_but_the_named(run, monkeypatch):
    first = write_shards(run, 0, some_tensors(1.0), Ranks())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_shards(run, 0, some_tensors(2.0), Ranks())
    monkeypatch.undo()
    assert [path.name for path in run.iterdir()] == [first["folder"]]
    assert_holds(run, first, 1.0)


def test_run_whose_checkpoint_fails_keeps_the_one_before(run, monkeypatch):
    config = LongNetConfig(embed_dim=8, num_layers=1, num_heads=2)
    model, options = LongNetLM(config), TrainOptions(device="cpu")
    corpus = SimpleNamespace(facts=dict)
    # Two ranks write shards; one that knows of no other writes all.
    parallel = Parallel(ranks=Ranks(0, 2))
    trained = Run(options=options, config=config, corpus=corpus, model=model, parallel=parallel)
    trained.optimizer, trained.folder = make_optimizer(model, options), run
    trained.save()
    first = {name: weight.clone() for name, weight in model.state_dict().items()}

    def full(*_):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    trained.step = 1
    monkeypatch.setattr(run_module, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        trained.save()
    monkeypatch.undo()
    loaded, checkpoint = load_model(run / "checkpoint.pt", torch.device("cpu"))
    assert checkpoint["step"] == trained.saved_step == 0
    assert all(torch.equal(weight, first[name]) for name, weight in loaded.state_dict().items())

    trained.save()
    loaded, checkpoint = load_model(run / "checkpoint.pt", torch.device("cpu"))
    assert checkpoint["step"] == 1
    assert all(torch.equal(weight, first[name] + 1) for name, weight in loaded.state_dict().items())
    assert len(list(run.iterdir())) == 2


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip_a_bit, "is damaged"), (Path.unlink, "No such file")],
    ids=["flipped-bit", "missing"],
)
def test_damage_is_found(run, name, damage, message):
    shards = write_shards(run, 0, some_tensors(1.0), Ranks())
    damage(run / shards["folder"] / name)
    with pytest.raises(CommandError, match=message) as caught:
        read_into(run, shards, some_tensors(0.0))
    assert str(run / shards["folder"] / name) in str(caught.value)


@pytest.mark.parametrize("folder", ["..", "/etc", "shards-2/..", "shards-"])
def test_only_folders_of_shards_are_read(run, folder):
    with pytest.raises(CommandError, match="has no shards in a folder"):
        read_into(run, {"folder": folder, "digests": {}}, some_tensors(0.0))


@pytest.mark.parametrize(
    "tensors",
    [{"model.b": torch.zeros(3)}, {"model.a": torch.zeros(3, 6)}],
    ids=["other-name", "other-shape"],
)
def test_other_tensors_do_not_fit(run, tensors):
    shards = write_shards(run, 0, some_tensors(1.0), Ranks())
    with pytest.raises(CommandError, match="cannot read"):
        read_into(run, shards, tensors)


class Executed:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def metadata_that_executes(path):
    path.write_bytes(pickle.dumps(Executed()))


def metadata_of_bytes_that_execute(path):
    metadata = pickle.loads(path.read_bytes())
    content = path.with_name("__0_0.distcp")
    [index] = [index for index in metadata.storage_data if index.fqn == "model.a"]
    where = metadata.storage_data[index]
    content.write_bytes(pickle.dumps(Executed()))
    where.offset, where.length = 0, content.stat().st_size
    entries = {**metadata.state_dict_metadata, "model.a": BytesStorageMetadata()}
    path.write_bytes(pickle.dumps(Metadata(entries, {}, metadata.storage_data, metadata.storage_meta)))


@pytest.mark.parametrize("forge", [metadata_that_executes, metadata_of_bytes_that_execute])
def test_nothing_in_the_shards_is_executed(run, forge):
    shards = write_shards(run, 0, some_tensors(1.0), Ranks())
    forge(run / shards["folder"] / ".metadata")
    with pytest.raises(CommandError, match="is damaged"):
        read_into(run, shards, some_tensors(0.0))
    # Nor where the forger has thought of the digests.
    with pytest.raises(CommandError, match="no part of metadata"):
        read_into(run, {**shards, "digests": {}}, some_tensors(0.0))
    assert not Path("executed").exists()
