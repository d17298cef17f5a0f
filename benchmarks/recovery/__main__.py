"""``python -m benchmarks.recovery``: faults in real jobs, with the real node program and ``longnet train``.

Each trial is appended to a file as soon as it is done, so that this can be run in pieces; the result file is
written from all of them. Exit status: 0 all recovered, 1 one did not, or a test failed, 2 bad usage.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tests.cluster.slurm.cluster import SlurmCluster

from ..measure import progress
from ..report import document, hardware_name, slug
from ..verify import REPOSITORY, failure_of
from .by_hand import BY_HAND, run_by_hand
from .faults import FAULTS, small_disk
from .figures import measured
from .tables import tables
from .training import Reference, write_text
from .trial import run_trial

NUMERICS = (
    "tests/benchmarks/test_benchmark_recovery.py",
    "tests/kernel_pytorch/jobs/recovery",
    "tests/kernel_pytorch/jobs/node/test_head.py",
)
RESULTS = REPOSITORY / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run trials and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    chosen = parser.parse_args(arguments)
    device = torch.device("cpu")
    date = datetime.now(timezone.utc).date().isoformat()
    output = chosen.output or RESULTS / f"recovery_{slug(hardware_name(device))}_{date}.md"
    if not chosen.render and (failure := failure_of(NUMERICS)) is not None:
        print(failure)
        return 1
    status = 0
    if not chosen.render:
        os.environ["OMP_NUM_THREADS"] = "1"
        where = {"machine": hardware_name(device), "commit": _commit()}
        with (
            tempfile.TemporaryDirectory(prefix="recovery-") as folder,
            small_disk(Path(folder) / "disk") as disk,  # before the cluster: its nodes see no later mount
            _cluster(chosen.target) as cluster,
        ):
            for trial in _trials(chosen, Path(folder), cluster, disk):
                trial |= where
                with chosen.trials_file.open("a") as file:
                    print(json.dumps(trial), file=file)
                progress(json.dumps({name: value for name, value in trial.items() if name != "events"}))
                if trial["by"] == "job" and not trial["recovered"]:
                    status = 1
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "benchmarks.recovery", *arguments])
    known = [json.loads(line) for line in chosen.trials_file.read_text().splitlines()]
    text = document("recovery", tables(known), device=device, command=command, date=date)
    print(text)
    output.write_text(text)
    return status


def _trials(
    chosen: argparse.Namespace, scratch: Path, cluster: SlurmCluster | None, disk: Path | None
) -> Iterator[dict[str, Any]]:
    data = scratch / "text.txt"
    write_text(data)
    if "figures" in chosen.parts:
        yield from measured(chosen.target, scratch, chosen.trials)
    names = chosen.fault or list(FAULTS)
    jobs = "job" in chosen.parts
    wanted = [name for name in names if jobs and (name != "full-disk" or disk is not None)]
    expected = Reference(scratch, data)
    for number in range(chosen.trials):
        for name in wanted:
            place = scratch / f"{number}-{name}"
            place.mkdir()
            run = place / "run"
            if name == "full-disk" and disk is not None:
                run = disk / f"run-{number}"
            yield run_trial(name, chosen.target, place, run, data, expected, cluster, chosen.failures)
            if cluster is not None:
                cluster.reset()
        if "by-hand" in chosen.parts:
            for name in names:
                if name in BY_HAND[chosen.target]:
                    place = scratch / f"{number}-{name}-by-hand"
                    place.mkdir()
                    yield run_by_hand(name, chosen.target, place, data, expected, cluster)
                    if cluster is not None:
                        cluster.reset()


def _commit() -> str | None:
    """What is measured; None outside of a checkout, and where something is not committed."""
    asked = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return None if done.returncode or "dirty" in done.stdout else done.stdout.strip()


@contextmanager
def _cluster(target: str) -> Iterator[SlurmCluster | None]:
    with SlurmCluster(namespaces=True) if target == "slurm" else nullcontext() as cluster:
        if cluster is not None:
            os.environ.update(cluster.environment())
        yield cluster


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery",
        description="Inject faults into training jobs of 2 nodes x 2 ranks, and note what becomes of them.",
        epilog="example: python -m benchmarks.recovery --target local --trials 3 --fault hang",
    )
    parser.add_argument("--target", choices=("local", "slurm"), default="local", help="default: local")
    parser.add_argument("--trials", type=int, default=1, help="of each fault (default: 1)")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="repeatable; default: all")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("job", "by-hand", "figures"),
        default=["job", "by-hand", "figures"],
        help="jobs, plain torchrun or a hand-written script, times of commands (default: all)",
    )
    parser.add_argument("--render", action="store_true", help="only write the result file anew")
    parser.add_argument(
        "--trials-file",
        type=Path,
        default=RESULTS / "recovery_trials.jsonl",
        help="to append to (default: %(default)s)",
    )
    parser.add_argument(
        "--failures",
        type=Path,
        default=Path(tempfile.gettempdir()) / "recovery_failures",
        help="folder for the files of jobs that did not recover (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="result file (default: in benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
