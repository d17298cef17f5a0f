import os
import random
import resource
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilated_attention_pytorch.train.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from dilated_attention_pytorch.train.errors import CommandError

# A server that forks, on each line it reads, a child that writes checkpoints until it is killed. The forks
# spare each child the import of torch. A checkpoint of step k is filled with k.
KILLED = """
import os, sys, torch
from pathlib import Path
from dilated_attention_pytorch.train.checkpoint import save_checkpoint
for line in sys.stdin:
    step = int(line)
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            empty = dict.fromkeys(["options", "model_config", "data", "optimizer", "rng"])
            save_checkpoint(Path("c.pt"), {"step": step, "model": torch.full((1 << 20,), step), **empty})
            print("saved", step, flush=True)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def content(step, **changes):
    rng = {"cpu": torch.get_rng_state()}
    model = {"weight": torch.arange(300.0)}
    optimizer = {
        "state": {0: {"step": torch.tensor(2.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}],
    }
    other = {"options": {"lengths": (1, 2), "data": None}, "model_config": {}, "data": {"digest": "d"}}
    return {"step": step, "model": model, "optimizer": optimizer, "rng": rng, **other, **changes}


def test_checkpoint_comes_back(tmp_path):
    save_checkpoint(tmp_path / "c.pt", content(1))
    save_checkpoint(tmp_path / "c.pt", content(7))
    loaded = load_checkpoint(tmp_path / "c.pt")
    expected = content(7)
    assert torch.equal(loaded["model"].pop("weight"), expected["model"].pop("weight"))
    assert torch.equal(loaded["rng"].pop("cpu"), expected["rng"].pop("cpu"))
    assert loaded == {"format": "longnet-checkpoint", "version": 1, **expected}
    assert os.listdir(tmp_path) == ["c.pt"]


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    chance = random.Random(0)
    path = tmp_path / "c.pt"

    def temporaries():
        return list(tmp_path.glob("c.pt.*.tmp"))

    server = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    written, torn = 0, 0
    with server:
        # Some kills come too late and meet a finished file; this test is about the others.
        while torn < 20:
            server.stdin.write(f"{written}\n")
            server.stdin.flush()
            child = None
            # The fork's two sides print in any order.
            while child is None or written == 0:
                word, number = server.stdout.readline().split()
                if word == "child":
                    child = int(number)
                else:
                    written = int(number)
            threshold = chance.randrange(1, 8 << 20)
            for _ in range(1_000_000):
                try:
                    if any(temporary.stat().st_size >= threshold for temporary in temporaries()):
                        break
                except FileNotFoundError:
                    pass
            os.kill(child, signal.SIGKILL)
            while (line := server.stdout.readline()) != "dead\n":
                written = int(line.split()[1])
            torn += len(temporaries())
            loaded = load_checkpoint(path)
            # It may have been renamed and not yet reported.
            assert written <= loaded["step"] <= written + 1
            assert torch.equal(loaded["model"], torch.full((1 << 20,), loaded["step"]))
            written = loaded["step"]
        server.stdin.close()
    assert server.returncode == 0
    save_checkpoint(path, content(1))
    assert os.listdir(tmp_path) == ["c.pt"]


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, content(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, content(2, model=torch.zeros(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["c.pt"]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert calls == ["fsync", "replace", "fsync"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    save_checkpoint(folder / "c.pt", content(3))
    whole = (folder / "c.pt").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = bytearray(whole)
        damaged[place] ^= data.draw(st.integers(1, 255))
    (folder / "c.pt").write_bytes(damaged)
    try:
        loaded = load_checkpoint(folder / "c.pt")
    except CommandError:
        return
    # The archive has bytes that mean nothing (padding, times); then nothing that is read may differ.
    assert torch.equal(loaded["model"]["weight"], torch.arange(300.0))
    assert (loaded["step"], loaded["options"]) == (3, content(3)["options"])


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_what_is_not_a_checkpoint_is_refused_and_not_executed(tmp_path):
    def refused(message):
        with pytest.raises(CommandError, match=message):
            load_checkpoint(tmp_path / "c.pt")

    path = tmp_path / "c.pt"
    refused("no checkpoint ")
    path.mkdir()
    refused("cannot read .*Is a directory")
    path.rmdir()
    path.write_bytes(b"")
    refused("damaged or not a checkpoint")
    path.write_text("text")
    refused("damaged or not a checkpoint")
    with warnings.catch_warnings():
        torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    refused("damaged or not a checkpoint")
    torch.save({"weight": torch.zeros(2)}, path)
    refused("is not a checkpoint of longnet train")
    torch.save([1, 2], path)
    refused("is not a checkpoint of longnet train")
    torch.save({"format": "longnet-checkpoint", "version": 2}, path)
    refused("is of checkpoint version 2, this longnet reads version 1")
    torch.save({"format": "longnet-checkpoint", "version": 1, "step": 1}, path)
    refused("it lacks: data, model, model_config, optimizer, options, rng")
    torch.save({"format": "longnet-checkpoint", "version": 1, **content(Payload())}, path)
    refused("more than tensors and plain values")
    assert not os.path.exists("executed")
