"""A rank without torch: counts steps, each in a row of its file, and goes on where it last saved.

python loop.py FOLDER STEPS [SECONDS OF A SAVE]

No save is complete as long as FOLDER has a file "slow".
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from kernel_pytorch.jobs import rank

EVERY = 5
STEP_S = 0.05


def save(path: Path, step: int, seconds: float) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"step": step, "fill": "x" * 1000}))
    time.sleep(seconds)
    while path.with_name("slow").exists():
        time.sleep(STEP_S)
    temporary.replace(path)


def last_step(folder: Path, number: int) -> int:
    checkpoint = folder / f"rank-{number}.json"
    return json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0


def main(folder: Path, steps: int, save_s: float = 0.0) -> None:
    number = int(os.environ["RANK"])
    checkpoint, done = folder / f"rank-{number}.json", last_step(folder, number)
    job = rank.current()
    job.handle_signals()
    for step in range(done + 1, steps + 1):
        time.sleep(STEP_S)
        with (folder / f"rank-{number}.rows").open("a") as rows:
            print(step, job.attempt, file=rows)
        job.beat(step)
        stop = job.must_stop()
        if stop or step % EVERY == 0 or step == steps:
            job.beat(step, "saving")
            if not job.newest():
                sys.exit("another attempt has begun")
            begin = time.monotonic()
            save(checkpoint, step, save_s)
            job.saved(step, time.monotonic() - begin)
        if stop and step < steps:
            job.left(step)
            return
    while min(last_step(folder, other) for other in range(int(os.environ["WORLD_SIZE"]))) < steps:
        job.beat(steps)  # as ranks that share a collective, none is done before the others are
        time.sleep(STEP_S)
        if job.must_stop():
            job.left(steps)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
