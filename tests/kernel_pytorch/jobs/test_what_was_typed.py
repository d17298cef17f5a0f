"""What is typed arrives byte for byte at the rank of a real job, on each target."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.cluster.slurm.cluster import SlurmCluster

from kernel_pytorch.jobs.manage import Jobs

ENDS_IN_S = 180
FEW = settings(max_examples=2, phases=[Phase.generate])  # each is a job
NO_NUL = st.binary(min_size=1, max_size=20).filter(lambda data: b"\0" not in data)
NASTY = [
    *(b"", b" ", b"a b", b"'", b'"', b"\n", b"a\n", b"\r\n", b"\t", b"$(id)", b"`id`", b"${HOME}", b"$$"),
    *(b";", b"; exit 3", b"&", b"|", b">x", b"*", b"~", b"#", b"!", b"\\", b"\\\\", b"%", b"%%", b"%j"),
    *(b"--", b"--run", b"--run=x", b"-c", b"@file", b"{0}", "\u672c".encode(), b"\xff", b"\xed\xb2\x80"),
    bytes(range(1, 256)),
]
# Writes a variable and its arguments.
SHOW = (
    "import os, sys; rows = [os.environb[b'TYPED'], *map(os.fsencode, sys.argv[2:])]; "
    "open(sys.argv[1], 'xb').write(b'\\0'.join(rows))"
)


def arrived(
    target: str, environment: Mapping[str, str], folder: Path, value: bytes, words: list[bytes]
) -> None:
    """Submit a job of these words, and compare them with what its rank has got."""
    out = folder / "out"
    line = ["submit", "--to", target, "--follow", "--job-dir", folder / "jobs", "--env", b"TYPED=" + value]
    command = [sys.executable, "-S", "-c", SHOW, out, *words]
    done = subprocess.run(
        [sys.executable, "-m", "kernel_pytorch.cli", *line, "--", *command],
        env=environment,
        capture_output=True,
        timeout=ENDS_IN_S,
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().split(b"\0") == [value, *words]


@given(value=NO_NUL, words=st.lists(NO_NUL, max_size=40))
@settings(FEW)
def test_on_this_machine(tmp_path_factory, value: bytes, words: list[bytes]):
    value = b"".join(NASTY) + value
    folder = tmp_path_factory.mktemp("typed")
    try:
        arrived("local", os.environ, folder, value, [*NASTY, *words])
    finally:
        jobs = Jobs(folder / "jobs")
        for status in jobs.list():
            jobs.cancel(status.job_id)


@given(value=NO_NUL, words=st.lists(NO_NUL, max_size=40))
@settings(FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_on_slurm(slurm_cluster: SlurmCluster, tmp_path_factory, value: bytes, words: list[bytes]):
    value = b"".join(NASTY) + value
    environment = slurm_cluster.environment()
    arrived("slurm", environment, tmp_path_factory.mktemp("typed"), value, [*NASTY, *words])
