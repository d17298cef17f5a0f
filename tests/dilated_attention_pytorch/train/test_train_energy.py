"""Joules per token: a host whose energy counter the test turns."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import FakeNvml, h100
from sysfs_trees import write, write_host
from tiny import TINY
from worlds import World

from dilated_attention_pytorch.train import command, loop
from dilated_attention_pytorch.train.energy import TokenEnergy
from dilated_attention_pytorch.train.ranks import Ranks

COUNTER = "sys/class/powercap/intel-rapl:0/energy_uj"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    root = tmp_path / "host"
    write_host(root, packages=[[[0], [1]]], numa=[[0, 1]])
    write(root, "sys/class/powercap/intel-rapl:0/name", "package-0")
    write(root, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", 1 << 40)
    write(root, COUNTER, 1_000_000)
    return root


def use(root: Path, joules: float) -> None:
    write(root, COUNTER, int((root / COUNTER).read_text()) + int(joules * 1e6))


def test_joules_since_the_last_call(host):
    with TokenEnergy(torch.device("cpu"), Ranks(), str(host)) as energy:
        use(host, 30)
        assert energy.per_token(10) == pytest.approx(3)
        use(host, 5)
        assert energy.per_token(10) == pytest.approx(0.5)
        assert energy.per_token(10) is None  # it did not move


def test_of_the_gpu_that_computes(host, monkeypatch):
    """The second of two; the first one's counter runs too. Every rank counts its own GPU."""
    gpus = [h100(0, GetTotalEnergyConsumption=1000), h100(1, GetTotalEnergyConsumption=5000)]
    nvml = FakeNvml(monkeypatch, gpus)
    uuid = gpus[1].answers["GetUUID"].removeprefix("GPU-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    with TokenEnergy(torch.device("cuda", 0), Ranks(local_rank=1), str(host)) as energy:
        for gpu, millijoules in zip(gpus, (7000, 30000), strict=True):
            gpu.answers["GetTotalEnergyConsumption"] += millijoules
        assert energy.per_token(10) == pytest.approx(3)
    assert nvml.shut_down == 1


def test_in_the_rows_that_are_evaluated(host, text, longnet, monkeypatch):
    monkeypatch.setattr(command, "TokenEnergy", functools.partial(TokenEnergy, root=str(host)))
    evaluate = loop.evaluate

    def evaluate_with_a_draw(*arguments):
        use(host, 128)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", evaluate_with_a_draw)
    every = ("--steps", 5, "--eval-every", 2, "--batch-size", 2)
    status, _, err = longnet("train", "--data", text, "--run", "counted", *every, *TINY)
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in Path("runs/counted/metrics.jsonl").read_text().splitlines()]
    tokens = 2 * 64
    assert {row["step"]: row["joules_per_token"] for row in rows if "joules_per_token" in row} == {
        2: pytest.approx(128 / (2 * tokens)),
        4: pytest.approx(128 / (2 * tokens)),
        5: pytest.approx(128 / tokens),
    }


def test_without_a_counter_the_rows_have_none(tiny_run):
    if list(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")):
        pytest.skip("needs a host without an energy counter")
    assert "joules_per_token" not in (tiny_run / "metrics.jsonl").read_text()


def measured(group, root: str, local_ranks: tuple[int, ...]) -> float | None:
    ranks = Ranks(group.rank(), group.size(), local_ranks[group.rank()], 1, group)
    own = Path(root, "a" if group.rank() == 0 or local_ranks[1] else "b")
    with TokenEnergy(torch.device("cpu"), ranks, str(own)) as energy:
        ranks.highest(0)
        if local_ranks[group.rank()] == 0:
            use(own, 30)
        ranks.highest(0)
        return energy.per_token(10)


@pytest.mark.xdist_group("worlds")
@pytest.mark.parametrize(
    ("local_ranks", "joules"), [((0, 1), 3.0), ((0, 0), 6.0)], ids=["one host", "two hosts"]
)
def test_each_host_counts_once(tmp_path, local_ranks, joules):
    for name in "ab":
        write_host(tmp_path / name, packages=[[[0]]], numa=[[0]])
        write(tmp_path / name, "sys/class/powercap/intel-rapl:0/name", "package-0")
        write(tmp_path / name, COUNTER, 1_000_000)
    with World(2) as world:
        assert world.results(measured, str(tmp_path), local_ranks) == [pytest.approx(joules)] * 2
