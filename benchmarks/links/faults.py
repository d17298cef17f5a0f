"""Part ``faults``: whether the profiler names who did something wrong, and where.

The ranks are recorded as ``kernel-pytorch profile job`` does it, and the report is the one that it writes.
They are forks of a process that has torch already.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import random
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import TCPStore

from kernel_pytorch.links.profile import rank_main
from kernel_pytorch.links.profile.job import report_of

from .rows import Case, Rows

RANKS = 4
TRIALS = 20
AT_ONCE = 3
"""Trials, where nothing is timed: ranks wait for their timeout most of the time."""
LIMIT_S = 60.0
SCRIPT = Path(__file__).with_name("faulty_script.py")
KINDS = {
    "healthy": None,
    "late rank": "late_rank",
    "other shape": "disagreement",
    "other reduce operation": "disagreement",
    "skipped call": "skipped_call",
    "dead rank": "missing_rank",
}
"""What the profiler is to find."""
_STEPS = {"healthy": 30, "late rank": 30}
"""Others: 8."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What goes wrong."""

    fault: str
    culprit: int
    step: int
    call: int
    steps: int

    @property
    def site(self) -> str:
        """file:line of the call. A late rank is late to the first one."""
        call = 0 if self.fault == "late rank" else self.call
        lines = SCRIPT.read_text().splitlines()
        (line,) = [number for number, text in enumerate(lines, 1) if text.endswith(f"# call {call}")]
        return f"{SCRIPT.name}:{line}"


def cases(quick: bool) -> Iterator[Case]:
    """Faults, with and without ``check``, several times each."""
    for trial in range(1 if quick else TRIALS):
        for fault in KINDS:
            for check in (False, True):
                yield {"fault": fault, "check": check, "trial": trial}


def measure(rows: Rows) -> None:
    """Add a row for each case; first what is timed, one by one."""
    missing = list(rows.missing("faults", cases(rows.quick)))
    timed = [case for case in missing if case["fault"] in _STEPS]
    for case in timed:
        rows.add("faults", case, **run(trial_of(case), check=case["check"]))
    rest = [case for case in missing if case not in timed]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = pool.map(lambda case: run(trial_of(case), check=case["check"]), rest)
        for case, figures in zip(rest, done, strict=True):
            rows.add("faults", case, **figures)


def trial_of(case: Case) -> Trial:
    """Who does wrong when, by chance; the same for the same case."""
    draw = random.Random(json.dumps(case, sort_keys=True))
    steps = _STEPS.get(case["fault"], 8)
    return Trial(
        fault=case["fault"],
        culprit=draw.randrange(RANKS),
        step=draw.randrange(2, steps - 2),
        call=draw.randrange(3),
        steps=steps,
    )


def run(trial: Trial, *, check: bool) -> dict[str, Any]:
    """Run the script on four ranks; what is found, and whether that is right."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        words = [trial.fault, *map(str, (trial.culprit, trial.step, trial.call, trial.steps))]
        arguments = [folder, "check" if check else "plain", "script", str(SCRIPT), *words]
        ranks = [
            context.Process(target=_rank, args=(rank, store.port, arguments), daemon=True)
            for rank in range(RANKS)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(LIMIT_S)
        hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
            process.join()
        told = report_of(Path(folder))
        path = Path(folder, "profile.json")
        found = json.loads(path.read_text())["findings"] if path.exists() else []
        errors = {path.stem: path.read_text() for path in Path(folder).glob("*.stderr")}
    return {
        "right": not hung and right(trial, found),
        "found": [[each["evidence"]["kind"], each["ranks"], each["site"]] for each in found],
        "wanted": [KINDS[trial.fault], [trial.culprit], trial.site],
        "hung": hung,
        "told": told,
        "errors": {name: text[-400:] for name, text in errors.items()},
    }


def right(trial: Trial, found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first finding is of the right kind, rank and line, and none blames another rank."""
    kind = KINDS[trial.fault]
    if kind is None or not found:
        return kind is None and not found
    first = found[0]
    named = (first["evidence"]["kind"], first["ranks"], Path(first["site"]).name)
    return named == (kind, [trial.culprit], trial.site) and all(
        each["ranks"] == first["ranks"] for each in found
    )


def _rank(rank: int, port: int, arguments: Sequence[str]) -> None:
    """One rank, as torchrun would start it."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        GLOO_SOCKET_IFNAME="lo",
    )
    with Path(arguments[0], f"{rank}.stderr").open("w", buffering=1) as errors:
        os.dup2(errors.fileno(), 2)
        with contextlib.suppress(SystemExit):
            try:
                rank_main.main(arguments)
            except BaseException:
                traceback.print_exc()
                raise SystemExit(1) from None
            finally:
                atexit._run_exitfuncs()  # which processes of multiprocessing do not do


if __name__ == "__main__":
    print(run(trial_of({"fault": "late rank", "check": False, "trial": 0}), check=False))
