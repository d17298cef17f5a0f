"""The run folder of a command, as the trainer itself finds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dilated_attention_pytorch.train.run_folder import existing_run_folder, run_path
from kernel_pytorch.jobs.run_folder import refuse_in_array, run_folder

TRAIN = ["longnet", "train"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([*TRAIN, "--run", "books"], b"/data/runs/books"),
        ([*TRAIN, "--data", "x", "--run=runs/books/"], b"/data/runs/books"),
        ([*TRAIN, "--resume", "books"], b"/data/runs/books"),
        ([*TRAIN, "--resume=runs/books"], b"/data/runs/books"),
        ([*TRAIN, "--run", "/tmp/../out"], b"/out"),
        ([*TRAIN, "--run", "./books"], b"/data/books"),
        ([*TRAIN, "--run", "\udcff"], b"/data/runs/\xff"),
        ([*TRAIN, "--run", "a", "--run", "b"], b"/data/runs/b"),
        (["nice", "/opt/bin/longnet", "train", "--run", "books"], b"/data/runs/books"),
        (["python3", "-X", "dev", "-m", "dilated_attention_pytorch.train", "--run", "b"], b"/data/runs/b"),
        ([*TRAIN, "--run"], None),
        ([*TRAIN, "--runs", "books"], None),
        ([*TRAIN, "--init-from", "books"], None),
        (TRAIN, None),
        (["longnet", "evaluate", "--run", "books"], None),
        (["pytest", "--run", "fast"], None),
        (["python3", "train.py", "--out", "books"], None),
        (["true"], None),
    ],
)
def test_the_run_folder_of_a_command(words: list[str], found: bytes | None):
    assert run_folder(words, "/data") == found


@pytest.mark.parametrize("name", ["books", "runs/books", "./books", "other/books"])
def test_it_is_where_the_trainer_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    run = [*TRAIN, "--run", name]
    assert run_folder(run, str(tmp_path)) == os.fsencode(tmp_path / run_path(name))
    resume = [*TRAIN, "--resume", name]
    for folder in ("runs/books", "books", "other/books"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "checkpoint.pt").touch()
        if (tmp_path / run_path(name)).exists() or (tmp_path / name).exists():
            assert run_folder(resume, str(tmp_path)) == os.fsencode(tmp_path / existing_run_folder(name))


def test_the_same_run_folder_by_another_path(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert run_folder([*TRAIN, "--run", "link/a"], str(tmp_path)) == os.fsencode(tmp_path / "a")


def test_the_jobs_of_an_array_do_not_share_one():
    refuse_in_array([*TRAIN, "--run", "books"], "/data", 1)
    refuse_in_array(TRAIN, "/data", 4)
    with pytest.raises(ValueError, match=r"the 4 jobs of the array .* /data/runs/books: leave --run out"):
        refuse_in_array([*TRAIN, "--run", "books"], "/data", 4)
