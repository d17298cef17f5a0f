"""The same faults without a job: plain torchrun, and a batch script as one writes it by hand.

Ranks resume where there is a checkpoint, torchrun may restart three times, all else is its default. Recovered
is what has taken all steps a while after the fault without anybody's doing.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tests.cluster.slurm.cluster import SlurmCluster
from tests.support.running_jobs import arguments_of, descendants, environment_of, kill

from .training import EVERY, LONG_STEPS, STEPS, Reference, command, differences, losses

_COMMON = ("kill-worker", "lose-node", "lose-node-smaller", "lose-first-node", "hang", "signals-twice")
BY_HAND = {"local": _COMMON, "slurm": (*_COMMON, "requeue", "time-limit")}
"""The faults that make sense, by target."""
WAITS_S = 90.0
"""For the next steps after a fault; longer than any job took."""


def run_by_hand(
    name: str,
    target: str,
    scratch: Path,
    data: Path,
    expected: Reference,
    cluster: SlurmCluster | None,
) -> dict[str, Any]:
    """One trial; arguments as of :func:`.trial.run_trial`."""
    run = scratch / "run"
    steps = LONG_STEPS if name == "time-limit" else STEPS
    script = scratch / "rank.sh"
    script.write_text(_rank_script(run, command(run, data, steps)))
    nodes = "1:2" if name == "lose-node-smaller" else "2"
    agents: list[subprocess.Popen[bytes]] = []
    batch = ""
    if cluster is None:
        agents = _start_agents(script, nodes)
    else:
        batch = _submit(cluster, script, nodes)
    found: dict[str, Any] = {"by": "hand", "target": target, "fault": name, "at": time.time()}
    try:
        _until_step(run, EVERY + 5)
        began = time.time()
        _inject(name, run, agents, cluster, batch)
        reached = len(losses(run))
        while time.time() < began + WAITS_S and len(losses(run)) < steps:
            time.sleep(0.2)
            if agents and all(agent.poll() is not None for agent in agents):
                break
        rows = losses(run)
        seconds = time.time() - began
        found |= {"rows_at_fault": reached, "rows": len(rows), "steps": steps, "seconds_to_end": seconds}
        if name == "time-limit":
            found["recovered"] = len(rows) > reached
        else:
            found["difference"] = differences(rows, expected(steps), steps)
            found["recovered"] = found["difference"] is not None
    except AssertionError as error:
        found |= {"recovered": False, "error": str(error)}
    finally:
        if cluster is not None:
            with suppress(RuntimeError):  # it may be over
                cluster.run("scancel", "--signal=KILL", "--full", batch)
        for agent in agents:
            kill(*descendants(agent.pid))
            agent.wait()
        kill(*_ranks(run).values())
    return found


def _rank_script(run: Path, words: list[str]) -> str:
    resume = shlex.join([*words[:3], "--resume", str(run)])
    return f"if [ -e {run}/checkpoint.pt ]; then exec {resume}; else exec {shlex.join(words)}; fi\n"


def _torchrun(script: Path, nodes: str, endpoint: str) -> list[str]:
    options = ["--nnodes", nodes, "--nproc-per-node", "2", "--max-restarts", "3", "--rdzv-id", "recovery"]
    endpoint_options = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    return [*launcher, *options, *endpoint_options, "--no-python", "sh", str(script)]


def _start_agents(script: Path, nodes: str) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agents = []
    with (script.parent / "log").open("ab") as log:
        for _ in range(2):
            agents.append(
                subprocess.Popen(
                    _torchrun(script, nodes, f"127.0.0.1:{port}"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
            time.sleep(1)  # so that the first hosts the store
    return agents


def _submit(cluster: SlurmCluster, script: Path, nodes: str) -> str:
    least = nodes.partition(":")[0]
    torchrun = " ".join(_torchrun(script, nodes, '"$first:29500"')).replace(
        "--rdzv-id recovery", "--rdzv-id $SLURM_JOB_ID"
    )
    batch = script.with_name("batch.sh")
    batch.write_text(
        f"""#!/bin/sh
#SBATCH --nodes={2 if least == "1" else nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=1
#SBATCH --requeue
#SBATCH --chdir=/
#SBATCH --output={script.parent}/log
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {torchrun}
"""
    )
    return cluster.run("sbatch", "--parsable", str(batch)).strip()


def _until_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while len(losses(run)) < step:
        if time.monotonic() > deadline:
            raise AssertionError(f"no step {step} within 120 s")
        time.sleep(0.05)


def _inject(
    name: str,
    run: Path,
    agents: list[subprocess.Popen[bytes]],
    cluster: SlurmCluster | None,
    batch: str,
) -> None:
    ranks = _ranks(run)
    if name == "kill-worker":
        kill(random.choice(list(ranks.values())))
    elif name == "hang":
        kill(random.choice(list(ranks.values())), number=signal.SIGSTOP)
    elif name.startswith("lose-"):
        index = int(name != "lose-first-node")
        if cluster is None:
            victims = descendants(agents[index].pid)
            kill(*victims, number=signal.SIGSTOP)
            kill(*victims)
        else:
            hosts = cluster.run("squeue", "--noheader", "--format=%N", f"--jobs={batch}").strip()
            cluster.kill_node(cluster.run("scontrol", "show", "hostnames", hosts).split()[index])
    elif name == "signals-twice":
        for count, number in enumerate((signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1)):
            if cluster is None:
                kill(*set().union(*(descendants(agent.pid) for agent in agents)), number=number)
            else:
                with suppress(RuntimeError) if count else nullcontext():  # it may be over after the first
                    cluster.run("scancel", f"--signal={number.name[3:]}", "--full", batch)
    elif name == "time-limit" and cluster is not None:
        cluster.wait(batch, ("TIMEOUT", "COMPLETING", "FAILED", "COMPLETED", "PENDING"), 180)
    elif name == "requeue" and cluster is not None:
        cluster.run("scontrol", "requeue", batch)


def _ranks(run: Path) -> Mapping[int, int]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        words = arguments_of(pid)
        if str(run) in words and "dilated_attention_pytorch.train" in words and pid != os.getpid():
            found[int(environment_of(pid).get("RANK", -1))] = pid
    return found
