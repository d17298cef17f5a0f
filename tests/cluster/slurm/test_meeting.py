"""Node programs on a real Slurm find out where they are, and meet."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster.slurm.cluster import SlurmCluster

NODE = """
import dataclasses, json
from kernel_pytorch.jobs.node.place import here
from kernel_pytorch.jobs.node.rendezvous import meet
place = here()
circle = meet("the token", place, least=2, wait_s=30)
met = {"present": circle.present, "address": circle.address, "own_address": circle.own_address}
circle.close()
print(json.dumps(dataclasses.asdict(place) | met))
"""


def run_nodes(cluster: SlurmCluster, folder: Path, *options: str) -> list[dict[str, Any]]:
    """What each of two nodes says, the first one first."""
    (folder / "node.py").write_text(NODE)
    # These travel with the job, and change what Slurm's commands print.
    odd = "SQUEUE_FORMAT=%u SQUEUE_STATES=PD SLURM_TIME_FORMAT=relative TZ=Asia/Kathmandu"
    srun = f"srun --output={folder}/node-%t {sys.executable} {folder}/node.py"
    arguments = ["--chdir=/", f"--output={folder}/out", *options, f"--wrap=export {odd}; {srun}"]
    cluster.wait(cluster.run("sbatch", "--parsable", *arguments).strip(), "COMPLETED", 60)
    return [json.loads((folder / f"node-{number}").read_text()) for number in range(2)]


def test_nodes_with_networks_of_their_own_meet(slurm_hosts, tmp_path):
    before = time.time()
    first, second = run_nodes(slurm_hosts, tmp_path, "--nodelist=n[2-3]", "--time=10")
    assert (first["index"], second["index"]) == (0, 1)
    assert first["names"] == second["names"] == ["n2", "n3"]
    assert second["addresses"] == [slurm_hosts.address("n2"), "n2"]
    assert first["present"] == second["present"] == [0, 1]
    assert first["address"] == second["address"] == first["own_address"] == slurm_hosts.address("n2")
    assert second["own_address"] == slurm_hosts.address("n3")
    assert first["run_key"] == second["run_key"] == f"slurm:{first['native_id']}:0"
    for node in (first, second):
        assert before + 599 <= node["ends_at"] <= time.time() + 601


def test_nodes_that_share_a_machine_meet(slurm_cluster, tmp_path):
    """At its localhost; here as a task of an array."""
    first, second = run_nodes(slurm_cluster, tmp_path, "--nodelist=n[1-2]", "--time=10", "--array=3")
    assert (first["one_machine"], second["one_machine"]) == (False, True)
    assert first["present"] == second["present"] == [0, 1]
    assert first["address"] == second["address"] == "127.0.0.1"
    assert first["native_id"].endswith("_3")
    assert None not in (first["ends_at"], second["ends_at"])
