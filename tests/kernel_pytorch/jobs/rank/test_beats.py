"""Heartbeats: what a reader sees of a rank that writes, is killed, or has not begun."""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import on_a_small_disk

from kernel_pytorch.jobs.rank.beats import PHASES, Beats, BeatWriter

WRITE = """
import sys
from kernel_pytorch.jobs.rank.beats import PHASES, BeatWriter
writer = BeatWriter(sys.argv[1])
print(flush=True)
step = 0
while True:
    step += 1
    writer.saved(step, float(step))
    writer.write(step, PHASES[step % 4])
"""


def test_the_layout(tmp_path: Path):
    writer = BeatWriter(tmp_path / "rank-0")
    sequence, step, time_s, phase, save_s, save_step = read_raw(tmp_path)
    assert (sequence, step, phase, save_step) == (2, -1, 0, -1)
    assert math.isnan(save_s)
    writer.saved(5, 1.5)
    before = time.monotonic()
    writer.write(7, "saving")
    sequence, step, time_s, phase, save_s, save_step = read_raw(tmp_path)
    assert (sequence, step, phase, save_s, save_step) == (4, 7, 3, 1.5, 5)
    assert before <= time_s <= time.monotonic()
    assert (tmp_path / "rank-0").stat().st_size == 64


def read_raw(folder: Path) -> tuple:
    return struct.unpack("<qqdqdq", (folder / "rank-0").read_bytes()[:48])


def test_all_ranks_of_a_node(tmp_path: Path):
    beats = Beats(tmp_path)
    assert beats.read() == {}
    writers = {rank: BeatWriter(tmp_path / f"rank-{rank}") for rank in (10, 9)}
    first = beats.read()
    assert list(first) == [9, 10]
    assert first[9].phase == "starting"
    assert first[9].pid == os.getpid()
    assert first[9].step is first[9].save_s is first[9].save_step is first[9].rank is None
    assert BeatWriter(tmp_path / "rank-9", rank=25).step is None
    assert beats.read()[9].rank == 25
    writers[9].write(0, "training")
    then = beats.read()
    assert (then[9].step, then[9].phase) == (0, "training")
    assert then[9].time_s >= first[9].time_s
    assert then[10] == first[10]


def test_a_killed_writer_is_never_seen_halfway(tmp_path: Path):
    beats, kill_after = Beats(tmp_path), random.Random(0)
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, tmp_path / "rank-0"], stdout=subprocess.PIPE
        ) as writer:
            try:
                writer.stdout.readline()
                seen, enough = set(), kill_after.randrange(500, 2_500)
                while len(seen) < enough:
                    seen.add(checked_step(beats))
            finally:
                writer.kill()
        checked_step(beats)
        assert beats.read()[0].pid == writer.pid


def checked_step(beats: Beats) -> int | None:
    if not (read := beats.read()):  # not one whole beat yet: the writer may sleep in the middle of one
        return None
    beat = read[0]
    assert beat.step == beat.save_step == beat.save_s
    assert beat.phase == PHASES[(beat.step or 0) % 4]
    return beat.step


def test_the_last_whole_beat_stays_when_the_next_is_cut_off(tmp_path: Path):
    writer = BeatWriter(tmp_path / "rank-0")
    writer.write(7, "training")
    beats = Beats(tmp_path)
    whole = beats.read()
    with (tmp_path / "rank-0").open("r+b") as file:
        file.write(struct.pack("<qq", 5, 8))  # the sequence and the step of the next
    assert beats.read() == whole
    assert Beats(tmp_path).read() == {}
    BeatWriter(tmp_path / "rank-0").write(8, "training")  # the rank, started again
    assert beats.read()[0].step == 8


def test_a_file_that_is_cut_short(tmp_path: Path):
    (tmp_path / "rank-0").touch()
    (tmp_path / "rank-1.old").write_bytes(bytes(64))
    (tmp_path / "stop").touch()
    assert Beats(tmp_path).read() == {}


@pytest.mark.parametrize(
    ("step", "phase", "line"),
    [
        (1, "sleeping", "phase must be one of starting, training, evaluating, saving, left, got 'sleeping'"),
        (1.5, "training", "step must be an integer of 64 bits, got 1.5"),
        (1 << 63, "training", f"step must be an integer of 64 bits, got {1 << 63}"),
    ],
)
def test_a_beat_of_nothing(tmp_path: Path, step, phase: str, line: str):
    writer = BeatWriter(tmp_path / "rank-0")
    before = Beats(tmp_path).read()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        writer.write(step, phase)
    assert str(caught.value) == line
    assert Beats(tmp_path).read() == before


def test_a_full_disk_is_an_error_and_no_bus_error(tmp_path: Path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom kernel_pytorch.jobs.rank.beats import BeatWriter\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n    (folder / 'filler').write_bytes(bytes(1 << 20))\nexcept OSError: pass\n"
        "try:\n    BeatWriter(folder / 'rank-0')\nexcept OSError as error:\n    print(error.strerror)"
    )
    done = on_a_small_disk(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n"), done.stderr


def test_a_beat_makes_no_system_call(tmp_path: Path):
    log = tmp_path / "calls"
    strace = [shutil.which("strace") or "strace", "-f", "-o", str(log)]
    try:
        subprocess.run([*strace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs strace and the right to trace")
    script = (
        "import os, sys\nfrom kernel_pytorch.jobs.rank.beats import BeatWriter\n"
        "writer = BeatWriter(sys.argv[1])\nos.getppid()\n"
        "for step in range(1000): writer.write(step, 'training')\nos.getppid()\n"
        "os.stat(sys.argv[1])\nos.getppid()"
    )
    subprocess.run([*strace, sys.executable, "-c", script, str(tmp_path / "rank-0")], check=True)
    _, beats, control, _ = log.read_text().split("getppid()")
    assert len(beats.splitlines()) == 2, beats  # the rest of one line, the beginning of the next
    assert len(control.splitlines()) == 3
