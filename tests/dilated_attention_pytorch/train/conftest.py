"""A folder to run in, a little real text, and a model that trains in a second."""

import argparse
import json
import random
import shutil
import statistics
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import TINY

from dilated_attention_pytorch.cli import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


@pytest.fixture
def text(tmp_path):
    """A folder with five modules of the standard library."""
    folder = tmp_path / "text"
    folder.mkdir()
    for module in (argparse, json, random, statistics, textwrap):
        shutil.copyfile(module.__file__, folder / f"{module.__name__}.py")
    return folder


@pytest.fixture
def longnet(capsys):
    """Run ``longnet`` here: status, stdout, stderr."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def tiny_run(text, longnet):
    """A finished run."""
    status, _, err = longnet("train", "--data", text, "--run", "tiny", "--steps", 6, *TINY)
    assert (status, err) == (0, "")
    return Path("runs/tiny")
