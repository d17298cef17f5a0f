"""The drawing, read back from its SVG."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import topologies

from kernel_pytorch.cli.probe.plot import draw
from kernel_pytorch.machine.facts import DeviceLink, LinkKind, NetworkInterface, NodeTopology

matplotlib = pytest.importorskip("matplotlib")


def drawn(node: NodeTopology, path: Path) -> list[str]:
    """The texts of the drawing, in its order; matplotlib writes each as a comment beside its shapes."""
    draw(node, path)
    return re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL)


def test_a_node_without_numa_nodes(tmp_path):
    node = replace(topologies.dgx_h100_node(), numa_nodes=())
    texts = drawn(node, tmp_path / "x.svg")
    assert [text for text in texts if "NUMA" in text] == []
    assert [text for text in texts if text.startswith("gpu:")] == [
        f"gpu:{index}  H100 80GB HBM3, 86 GB" for index in range(8)
    ]
    assert "host-0: 224 CPUs to use" in texts


def test_a_node_without_accelerators(tmp_path):
    (node,) = topologies.cpu_only(2).nodes.values()
    nics = [NetworkInterface(name=kind, kind=kind) for kind in ("loopback", "virtual", "ethernet")]
    links = (DeviceLink(a=0, b=1, kind=LinkKind.SOCKET),)
    texts = drawn(replace(node, network_interfaces=tuple(nics), links=links), tmp_path / "x.svg")
    assert texts[texts.index("NUMA node 1") :][:3] == ["NUMA node 1", "4 cores, CPUs 4-7", "275 GB"]
    assert [text for text in texts if "  " in text] == ["ethernet  ethernet"]
    assert "between sockets" not in texts
    assert not any(text.startswith("cpu:") for text in texts)


def test_many_cpus_are_cut_short(tmp_path):
    cpus = ((*range(0, 64, 2),), (*range(1, 64, 2),))
    texts = drawn(topologies.node([topologies.gpu(0)], cpus=cpus), tmp_path / "x.svg")
    assert "32 cores, CPUs 1,3,5,7,9,11,13,15,17..." in texts


def test_what_no_numa_node_claims_stands_beside_them(tmp_path):
    """A column more, as wide as the others."""

    def width(name: str, **facts: object) -> float:
        path = tmp_path / f"{name}.svg"
        draw(topologies.node([topologies.gpu(0, **facts)]), path)
        return float(re.search(r'width="([\d.]+)pt"', path.read_text())[1])

    assert width("unclaimed", numa_node=None) - width("claimed") == pytest.approx(3.2 * 72)


def test_a_single_numa_node_has_what_none_claims(tmp_path):
    shapes = []
    for numa in (0, None):
        nics = [NetworkInterface(name="ib0", kind="infiniband", numa_node=numa)]
        gpu = topologies.gpu(0, numa_node=numa)
        draw(topologies.node([gpu], cpus=((0, 1),), interfaces=nics), tmp_path / "x.svg")
        shapes.append(re.findall(r' d="(.*?)"', (tmp_path / "x.svg").read_text(), re.DOTALL))
    assert shapes[0] == shapes[1]


def test_an_svg_has_no_date_in_it(tmp_path):
    draw(topologies.dgx_h100_node(), tmp_path / "a.svg")
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_other_formats(tmp_path, suffix, magic):
    draw(topologies.dgx_h100_node(), tmp_path / f"x{suffix}")
    assert (tmp_path / f"x{suffix}").read_bytes().startswith(magic)
