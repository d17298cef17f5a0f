"""``kernel-pytorch migrate`` on a project with old imports, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from old_project import BOM, BROKEN, CRLF, LATIN, lay_out

from kernel_pytorch.cli import main

OLD = "from dilated_attention_pytorch import MemoryPool\n"
NEW = "from dilated_attention_pytorch import UnifiedMemoryPool as MemoryPool\n"
# What is left to the user in the project, by file and line.
LEFT = [
    "ringlab/models.py:3: dilated_attention_pytorch.LongNet means something else now",
    "ringlab/models.py:4: dilated_attention_pytorch.core.get_global_memory_pool means something else now",
    "ringlab/plugins.py:6: a string names kernel_pytorch.distributed_scale.orchestration",
    "ringlab/pools.py:9: in a string: dilated_attention_pytorch.core.MemoryPool is now",
    "ringlab/stars.py:3: import * from kernel_pytorch.distributed_scale.orchestration is not rewritten",
    f"{BROKEN}: left alone: line 2: Missing parentheses",
    *(f"tests/test_jobs.py:{line}: patches kernel_pytorch.distributed_scale.c" for line in (9, 14, 20)),
    "tests/test_jobs.py:25: patches dilated_attention_pytorch.RingDilatedAttention now",
]
UNCHANGED = {
    BROKEN,
    "ringlab/extras/__init__.py",
    "ringlab/models.py",
    "ringlab/settings.py",
    "ringlab/shadows.py",
    "ringlab/stars.py",
    "tests/test_imports.py",
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py*")}


def migrate(capsys, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and lines of standard error."""
    status = main(["migrate", *arguments])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def test_a_dry_run_prints_what_would_change(project, capsys):
    before = contents(project)
    assert len(before) >= 25
    status, diff, left = migrate(capsys, ".")
    assert status == 1
    assert contents(project) == before
    assert [line[: len(part)] for line, part in zip(left, LEFT, strict=True)] == LEFT
    (project / LATIN).unlink()  # whose diff is text of another encoding on the terminal
    status, diff, _ = migrate(capsys, ".")
    subprocess.run(["git", "apply", "-p0", "--whitespace=nowarn"], input=diff.encode(), check=True)
    applied = contents(project)
    for name, content in before.items():
        (project / name).write_bytes(content)
    migrate(capsys, ".", "--write")
    assert {name: text for name, text in contents(project).items() if name != LATIN} == applied


def test_a_written_project_runs_without_a_warning(project, capsys):
    before = contents(project)
    assert migrate(capsys, ".", "--write")[0] == 1  # for the file that does not parse
    after = contents(project)
    assert {name for name in before if before[name] == after[name]} == UNCHANGED
    assert after[BOM].startswith(b"\xef\xbb\xbffrom kernel_pytorch.distributed_scale import JobState\n")
    assert after[LATIN].startswith('# -*- coding: latin-1 -*-\n"""Écrit'.encode("latin-1"))
    assert after[CRLF].count(b"\r\n") == after[CRLF].count(b"\n") == before[CRLF].count(b"\n")
    assert (project / "train.py").stat().st_mode & 0o777 == 0o755
    assert (project / "ringlab/orchestrate.py").readlink() == Path("jobs.py")

    assert migrate(capsys, ".")[:2] == (1, "")
    assert migrate(capsys, ".", "--write")[0] == 1
    assert contents(project) == after
    (project / BROKEN).unlink()
    assert migrate(capsys, ".")[:2] == (0, "")

    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    paths = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "a.py").write_text(OLD)
    (tmp_path / "b.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_statuses(folder, capsys):
    assert migrate(capsys, "b.py") == (0, "", [])
    status, diff, left = migrate(capsys, "a.py", "b.py")
    assert (status, left) == (1, [])
    assert diff == f"--- a.py\n+++ a.py\n@@ -1 +1 @@\n-{OLD}+{NEW}"
    assert migrate(capsys, ".", "--write", "--diff") == (0, diff, ["files changed: 1"])
    assert (folder / "a.py").read_text() == NEW
    assert migrate(capsys, ".", "--write") == (0, "", ["files changed: 0"])


def test_notes_alone_are_no_change(folder, capsys):
    (folder / "a.py").write_text("from dilated_attention_pytorch import LongNet\n")
    status, diff, left = migrate(capsys, ".")
    assert (status, diff) == (0, "")
    assert len(left) == 1


def test_json(folder, capsys):
    (folder / "c.py").write_text("MemoryPool = 1 +\n")
    (folder / "d.py").write_text("x = 'dilated_attention_pytorch.MemoryPool'\n")
    status, out, _ = migrate(capsys, ".", "--json")
    one, two, three = json.loads(out)
    assert status == 1
    assert (one["path"], one["notes"], one["problem"]) == ("a.py", [], None)
    assert one["diff"].startswith("--- a.py\n")
    assert two == {"path": "c.py", "diff": "", "notes": [], "problem": "line 1: invalid syntax"}
    assert [note["line"] for note in three["notes"]] == [1]


def test_a_path_that_is_missing_is_refused_before_anything_is_done(folder, capsys):
    os.mkfifo(folder / "pipe")
    for path, why in (("missing", "no such file or folder"), ("pipe", "neither a file nor a folder")):
        assert migrate(capsys, "--write", "a.py", path) == (
            2,
            "",
            [f"kernel-pytorch migrate: error: {path}: {why}"],
        )
    assert (folder / "a.py").read_text() == OLD


def test_without_libcst_the_error_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libcst", None)
    line = "kernel-pytorch migrate: error: migrate needs libcst: pip install libcst"
    assert migrate(capsys, ".") == (2, "", [line])


def test_a_file_that_cannot_be_read_does_not_stop_the_others(folder, capsys, monkeypatch):
    def deny(path: Path):
        raise PermissionError(13, "Permission denied", str(path))

    from kernel_pytorch.migrate import migrate as module

    read = module.Content.read
    (folder / "0.py").write_text(OLD)
    monkeypatch.setattr(
        module.Content, "read", lambda path: deny(path) if path.name == "0.py" else read(path)
    )
    status, _, left = migrate(capsys, ".", "--write")
    assert (status, left) == (1, ["0.py: left alone: Permission denied", "files changed: 1"])
    assert (folder / "a.py").read_text() == NEW


def test_a_link_that_leads_out_is_named(folder, capsys, tmp_path_factory):
    away = tmp_path_factory.mktemp("away") / "far.py"
    away.write_text(OLD)
    (folder / "link.py").symlink_to(away)
    status, _, left = migrate(capsys, ".", "--write")
    assert left == [f"link.py: left alone: is a link to {away}, which was not given", "files changed: 1"]
    assert (status, away.read_text()) == (0, OLD)


def test_nothing_of_the_users_is_run(folder, capsys):
    (folder / "a.py").write_text(f"{OLD}open('ran', 'w')\nraise SystemExit(3)\n")
    assert migrate(capsys, ".", "--write")[0] == 0
    assert not (folder / "ran").exists()
