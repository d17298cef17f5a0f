"""Files are whole or not there, whoever else writes them and whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from processes import on_a_small_disk

from kernel_pytorch.jobs.atomic import (
    JobFolderError,
    append_line,
    create_atomically,
    read_json,
    write_atomically,
)

PRELUDE = "import sys\nfrom pathlib import Path\nfrom kernel_pytorch.jobs.atomic import *\n"


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_at_once(script: str, arguments: list[tuple[object, ...]]) -> list[str]:
    """What processes print that begin together."""
    processes = [start("print(flush=True)\ninput()\n" + script, *each) for each in arguments]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate() for process in processes]
    assert [errors for _, errors in answers] == [""] * len(processes)
    return [out for out, _ in answers]


def test_a_file_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    modes, write = [], os.write
    monkeypatch.setattr(
        os, "write", lambda file, data: modes.append(os.fstat(file).st_mode & 0o777) or write(file, data)
    )
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "job.json", b"{}", 0o600)
        write_atomically(tmp_path / "open.json", b"{}", 0o644)
    finally:
        os.umask(before)
    assert modes == [0o600, 0o644]
    assert stat.S_IMODE((tmp_path / "job.json").stat().st_mode) == 0o600


def test_a_name_is_given_when_the_content_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        calls.append((os.path.isdir(f"/proc/self/fd/{descriptor}"), sorted(os.listdir(tmp_path))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    for write in (write_atomically, create_atomically):
        path = tmp_path / write.__name__
        write(path, b"x" * 100_000)
        (is_folder, before), (then_folder, after) = calls
        assert (is_folder, then_folder) == (False, True)
        assert path.name not in before
        assert path.name in after
        assert path.read_bytes() == b"x" * 100_000
        calls.clear()


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path):
    path = tmp_path / "end.json"
    whole = {letter * 300_000 for letter in (b"a", b"b")}
    path.write_bytes(b"a" * 300_000)
    script = (
        "print(flush=True)\nwhile True:\n    for letter in (b'a', b'b'):\n"
        "        write_atomically(Path(sys.argv[1]), letter * 300_000)"
    )
    for _ in range(8):
        with start(script, path) as writer:
            try:
                writer.stdout.readline()
                for _ in range(20):
                    assert path.read_bytes() in whole
            finally:
                writer.kill()
        assert path.read_bytes() in whole


FULL = """
import os
folder = Path(sys.argv[1])
path = folder / "file"
path.write_bytes(b'{"old": 1}\\n')
try:
    WRITE
except JobFolderError as error:
    print(error)
print(path.read_bytes() == b'{"old": 1}\\n', os.listdir(folder))
"""


@pytest.mark.parametrize(
    "write", ["write_atomically(path, bytes(1 << 20))", "append_line(path, bytes(1 << 20))"]
)
def test_a_full_disk(tmp_path: Path, write: str):
    done = on_a_small_disk(tmp_path, PRELUDE + FULL.replace("WRITE", write))
    line = f"{tmp_path}/file cannot be written: {os.strerror(errno.ENOSPC)}"
    assert done.stdout.splitlines() == [line, "True ['file']"], done.stderr


def test_a_full_disk_claims_nothing(tmp_path: Path):
    script = (
        "import os\nfolder = Path(sys.argv[1])\n"
        "try:\n    create_atomically(folder / '1.json', bytes(1 << 20))\n"
        "except JobFolderError as error:\n    print(error)\nprint(os.listdir(folder))"
    )
    done = on_a_small_disk(tmp_path, PRELUDE + script)
    line = f"{tmp_path}/1.json cannot be written: {os.strerror(errno.ENOSPC)}"
    assert done.stdout.splitlines() == [line, "[]"], done.stderr


@pytest.mark.parametrize("write", [write_atomically, create_atomically, append_line])
def test_a_folder_that_vanished(tmp_path: Path, write):
    with pytest.raises(JobFolderError) as caught:
        write(tmp_path / "gone" / "file", b"{}")
    reason = f"the folder {tmp_path}/gone has vanished"
    assert str(caught.value) == f"{tmp_path}/gone/file cannot be written: {reason}"


def test_a_limit_on_the_size_of_files_tears_no_line(tmp_path: Path):
    """The kernel takes a part of the line, as a disk does that fills up."""
    path = tmp_path / "events.jsonl"
    append_line(path, b"first")
    script = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try:\n    append_line(Path(sys.argv[1]), b'0123456789')\n"
        "except JobFolderError as error:\n    print(error)"
    )
    out, _ = start(script, path).communicate()
    assert out == f"{path} cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert path.read_bytes() == b"first\n"


def test_only_one_process_creates_a_file(tmp_path: Path):
    script = "print(create_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 9))"
    answers = run_at_once(script, [(tmp_path / "end.json", number) for number in range(6)])
    assert sorted(answers) == ["False\n"] * 5 + ["True\n"]
    assert (tmp_path / "end.json").read_text() == str(answers.index("True\n")) * 9
    assert os.listdir(tmp_path) == ["end.json"]


def test_lines_of_many_processes_are_not_torn(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    script = (
        "import json\nfor number in range(1000):\n"
        "    event = {'from': sys.argv[2], 'number': number, 'text': 'x' * (17 * number)}\n"
        "    append_line(Path(sys.argv[1]), json.dumps(event).encode())"
    )
    run_at_once(script, [(path, name) for name in "abcd"])
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(event["text"]) == 17 * event["number"] for event in events)
    for name in "abcd":
        assert [event["number"] for event in events if event["from"] == name] == list(range(1000))


def test_a_line_that_a_power_failure_tore_does_not_take_the_next_with_it(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "sta')
    append_line(path, b'{"kind": "end"}')
    assert path.read_bytes() == b'{"kind": "sta\n{"kind": "end"}\n'


def test_a_lock_that_nobody_releases_holds_no_writer_up_for_ever(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    append_line(path, b"first")
    script = (
        "import fcntl\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_EX)\nprint(flush=True)\ninput()"
    )
    with start(script, path) as holder:
        try:
            holder.stdout.readline()
            append_line(path, b"second")
            assert holder.poll() is None
        finally:
            holder.kill()
    assert path.read_bytes() == b"first\nsecond\n"


def test_what_is_not_json(tmp_path: Path):
    path = tmp_path / "native.json"
    path.write_bytes(b"{")
    with pytest.raises(JobFolderError, match=r"native\.json cannot be read: Expecting property name"):
        read_json(path)
    with pytest.raises(JobFolderError, match=r"other\.json cannot be read: No such file or directory"):
        read_json(tmp_path / "other.json")
