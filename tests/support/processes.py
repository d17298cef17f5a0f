"""Real processes of the command lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def first_process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Run ``command`` as PID 1 of a PID namespace, as in a container.

    Yields:
        The process to read from, whose exit status is that of PID 1; the pid of PID 1 here; its first line.
    """
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and the right to make a PID namespace")
    with subprocess.Popen(
        [*unshare, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield process, int(child), line
        finally:
            process.kill()


def on_a_small_disk(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script to which ``folder``, its first argument, is a disk of 64 KB."""
    mount = f"mount -t tmpfs -o size=64k none '{folder}' && exec "
    command = ["unshare", "--mount", "sh", "-c", mount + '"$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and the right to mount")
    return subprocess.run([*command, sys.executable, "-c", script, folder], capture_output=True, text=True)


WITH_A_DRIVER = """
import sys
import pytest
from fake_nvml import FakeNvml, h100
from kernel_pytorch.cli import main
nvml = FakeNvml(pytest.MonkeyPatch(), [h100()])
status = main(sys.argv[1:])
print(f"opened {nvml.initialised}, closed {nvml.shut_down}")
sys.exit(status)
"""
"""``kernel-pytorch`` with an H100 that answers from a table; tells whether its driver was closed."""
