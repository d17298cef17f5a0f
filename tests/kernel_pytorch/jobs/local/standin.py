"""A node program for the tests of the supervisor: notes what it is, then does what the test wrote down.

``script.json`` in the job's folder has, for each start of the job, what each node does, in Python.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kernel_pytorch.jobs.folder import JobFolder


def leave_a_child() -> None:
    """Start a process in a session of its own, which this one does not wait for."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def die() -> None:
    """End as a program without a word does."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep() -> None:
    """Do not end by oneself."""
    time.sleep(600)


def main(path: str) -> None:
    """Do what the script has for this node in this attempt."""
    folder = JobFolder(path)
    number = int(os.environ["KERNEL_PYTORCH_NODE"])
    start = len(list(Path(path).glob(f"began-*-{number}.json")))
    noted = {name: value for name, value in os.environ.items() if name.startswith(("KERNEL", "CUDA", "MY_"))}
    temporary = Path(path, f".{number}")
    temporary.write_text(json.dumps({**noted, "pid": os.getpid(), "cwd": os.getcwd()}))
    script = json.loads(Path(path, "script.json").read_text())[start][number]
    if number == 0:
        folder.event("attempt", f"attempt {folder.claim_attempt({'nodes': []})}")
    temporary.rename(Path(path, f"began-{start}-{number}.json"))
    exec(script, {**globals(), "folder": folder})


if __name__ == "__main__":
    main(sys.argv[1])
