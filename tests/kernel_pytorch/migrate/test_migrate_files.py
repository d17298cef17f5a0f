"""Which files are found, how they are read, and how they are replaced."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from kernel_pytorch.migrate import replace
from kernel_pytorch.migrate.find import python_files
from kernel_pytorch.migrate.migrate import migrate
from kernel_pytorch.migrate.replace import ChangedMeanwhileError, Content
from kernel_pytorch.migrate.source import NotReadableError, Source

OLD = b"from dilated_attention_pytorch import MemoryPool\n"
NEW = b"from dilated_attention_pytorch import UnifiedMemoryPool as MemoryPool\n"


def found(*paths: Path) -> tuple[list[str], list[str]]:
    """Names of the files that are found, and reasons for what is skipped."""
    why: list[str] = []

    def told(path: Path, reason: str) -> None:
        why.append(f"{path.name}: {reason}")

    files = python_files(paths, told, told)
    return [file.name for file in files], why


def test_folders_are_searched_for_python_files(tmp_path):
    for name in ("b.py", "a.pyi", "c.txt", "sub/d.py", ".git/x.py", "__pycache__/x.py", "env/pyvenv.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "env/x.py").touch()
    os.mkfifo(tmp_path / "pipe.py")
    assert found(tmp_path) == (["a.pyi", "b.py", "d.py"], [])
    assert found(tmp_path / "sub", tmp_path / "c.txt", tmp_path) == (["d.py", "c.txt", "a.pyi", "b.py"], [])
    assert found(tmp_path / ".git") == (["x.py"], [])


def test_links_are_not_followed_below_a_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "far.py").touch()
    (inside / "near.py").touch()
    (inside / "again.py").symlink_to("near.py")
    (inside / "loop").symlink_to(".")
    (inside / "itself.py").symlink_to("itself.py")
    (inside / "text").symlink_to("/nowhere")
    (inside / "away.py").symlink_to(outside / "far.py")
    (inside / "folder").symlink_to("../outside")
    assert found(inside) == (
        ["near.py"],
        [
            f"away.py: is a link to {outside / 'far.py'}, which was not given",
            "folder: is a link to ../outside, which was not given",
        ],
    )
    assert found(inside, outside) == (["near.py", "far.py"], [])
    assert found(inside / "away.py", inside / "folder") == (["away.py"], [])


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    "head",
    [
        b"",
        codecs.BOM_UTF8,
        b"# -*- coding: latin-1 -*-\n# \xe9\n",
        b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\nx = '\x80'\n",
        codecs.BOM_UTF8 + b"# coding: utf-8\n# \xc3\xa9 \xe2\x80\xa8\n",
        b"# coding: shift_jis\nx = '\x83\x5c'\n",
        b"x = 1\n\x0c\n",
    ],
    ids=["plain", "bom", "latin-1", "cp1252", "bom and cookie", "shift_jis", "form feed"],
)
def test_all_but_the_change_stays_byte_for_byte(tmp_path, head, newline):
    path = tmp_path / "x.py"
    path.write_bytes((head + OLD + b"y = MemoryPool").replace(b"\n", newline))
    path.chmod(0o751)
    assert migrate(path, write=True).problem is None
    assert path.read_bytes() == (head + NEW + b"y = MemoryPool").replace(b"\n", newline)
    assert path.stat().st_mode & 0o7777 == 0o751
    assert os.listdir(tmp_path) == ["x.py"]


def test_mixed_line_ends_stay(tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(b"a = 1\r\nb = 2\n" + OLD + b"c = 3\r\n")
    migrate(path, write=True)
    assert path.read_bytes() == b"a = 1\r\nb = 2\n" + NEW + b"c = 3\r\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"x = '\xe9'\n", "cannot be decoded: "),
        (b"# coding: nothing\n", "cannot be decoded: unknown encoding: nothing"),
        (codecs.BOM_UTF8 + b"# coding: latin-1\n", "cannot be decoded: encoding problem: utf-8"),
        (b"# coding: utf-7\nx = '+AGE-'\n", "decoding from utf-7 and encoding again changes it"),
    ],
    ids=["not utf-8", "unknown", "contradiction", "not unique"],
)
def test_content_that_cannot_be_kept_is_refused(content, why):
    with pytest.raises(NotReadableError, match=why):
        Source.decode(content)


def test_a_link_that_was_given_stays_a_link(tmp_path):
    (tmp_path / "real.py").write_bytes(OLD)
    link = tmp_path / "link.py"
    link.symlink_to("real.py")
    assert migrate(link, write=True).path == str(link)
    assert link.is_symlink()
    assert (tmp_path / "real.py").read_bytes() == NEW


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(OLD)
    content = Content.read(path)
    path.write_bytes(b"newer = 1\n")
    with pytest.raises(ChangedMeanwhileError, match="was changed meanwhile"):
        content.replace(NEW)
    assert path.read_bytes() == b"newer = 1\n"
    assert os.listdir(tmp_path) == ["x.py"]


def test_what_ends_the_writing_leaves_the_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupted(number: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "x.py"
    path.write_bytes(OLD)
    monkeypatch.setattr(replace.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        migrate(path, write=True)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x.py"]


def test_a_file_that_may_not_be_written_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "x.py"
    path.write_bytes(OLD)
    monkeypatch.setattr(replace.os, "access", lambda path, mode: mode != os.W_OK)
    outcome = migrate(path, write=True)
    assert (outcome.problem, outcome.diff) == ("Permission denied", "")
    assert path.read_bytes() == OLD


def test_a_file_without_old_names_is_not_parsed(tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(b"print 'python 2, \xff'\n")
    outcome = migrate(path, write=True)
    assert (outcome.problem, outcome.diff, outcome.notes) == (None, "", ())


def test_the_diff_says_where_no_newline_ends_the_file(tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(b"x = 1\x0c\n" + OLD.rstrip())
    assert migrate(path, write=False).diff == (
        f"--- {path}\n+++ {path}\n@@ -1,2 +1,2 @@\n x = 1\x0c\n"
        f"-{OLD.decode().rstrip()}\n\\ No newline at end of file\n"
        f"+{NEW.decode().rstrip()}\n\\ No newline at end of file\n"
    )
