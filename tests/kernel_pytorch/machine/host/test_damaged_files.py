"""Whatever the files of the kernel hold, reading them raises nothing and invents nothing."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sysfs_trees import write_whole_host

from kernel_pytorch.machine.discover import Drivers, read_node
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host import cpu_readings, host_readings
from kernel_pytorch.machine.host.cpu import read_packages
from kernel_pytorch.machine.host.cpu_readings import CpuReader
from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.host.pci import accelerators


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("host")
    write_whole_host(root)
    return root


@pytest.fixture(scope="module")
def names(root: Path) -> list[str]:
    """The files that are read."""
    opened: set[str] = set()

    class Noting(Files):
        def text(self, name: str) -> str | None:
            opened.add(name.lstrip("/"))  # mount points have one
            return super().text(name)

    with pytest.MonkeyPatch.context() as patch:
        for module in (cpu_readings, host_readings, sys.modules[__name__]):
            patch.setattr(module, "Files", Noting)
        read_all(root)
    return sorted(name for name in opened if (root / name).is_file())


def read_all(root: Path) -> dict[str, Any]:
    """Everything that is read of the host, by name: plain values."""
    files, seconds = Files(root), count()
    cpus = CpuReader(read_packages(files), str(root), clock=lambda: next(seconds))
    found = {
        "node": read_node(files, Drivers((), ())),
        "pci": accelerators(files),
        "host": HostReader(str(root)).read(),
        "cpus": [cpus.read() for _ in range(2)],
    }
    builtins: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    del builtins["node"]["missing"]
    builtins["host"].pop("disks", None)  # of the file system that the test runs on
    return builtins


@contextlib.contextmanager
def damaged(path: Path, damage: Callable[[Path], object]) -> Iterator[None]:
    content = path.read_bytes()
    path.unlink()
    damage(path)
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)


def is_of(found: Any, whole: Any, key: str = "") -> bool:
    """Whether ``found`` tells nothing that ``whole`` does not: parts may be absent or unknown."""
    if isinstance(found, dict):
        return all(key in whole and is_of(value, whole[key], key) for key, value in found.items())
    if isinstance(found, list):
        return all(any(is_of(item, other, key) for other in whole) for item in found)
    # Texts are shown as they are, and the architecture for a CPU's name; ids and cores are counted.
    as_found = isinstance(found, str) and key not in ("kind", "type", "name")
    as_found = as_found or found == platform.machine()
    return found is None or found == whole or as_found or key in ("device_id", "a", "b", "compute_units")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "words": lambda path: path.write_text("no such thing\n"),
    "huge": lambda path: path.write_text("9" * 5000),
    "folder": lambda path: path.mkdir(),
}


TELLING = ("/hidden", "/memory.events", "/memory.pressure")
"""Their absence is an answer: an older kernel, a control group without a memory controller."""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_nothing_is_invented_for_a_file_that_cannot_be_read(root, names, damage):
    whole = read_all(root)
    assert is_of(whole, whole)
    for name in names:
        if damage is DAMAGES["absent"] and name.endswith(TELLING):
            continue
        with damaged(root / name, damage):
            found = read_all(root)
        if name == "proc/self/status":  # an affinity that cannot be read: any CPU
            assert found["node"]["limits"]["cpus"] == list(range(4))
        elif name in ("proc/self/cgroup", "proc/self/mountinfo"):  # no group is known: the host counts
            assert (found["host"]["oom_kills"], found["host"]["memory_stall_s"]) == (30, 0.9)
            del found["host"]["oom_kills"], found["host"]["memory_stall_s"]
        assert is_of(found, whole), name


LINES = st.sampled_from(
    [b"", b"cpu0", b"0::", b":", b" - ", b"-1", b"0", b"1-", b"4:", b"some avg10= total=", b"\xff"]
)


@given(st.data())
def test_nothing_raises_whatever_the_files_hold(root, names, data):
    with contextlib.ExitStack() as damages:
        for name in data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=8), "files"):
            content = (root / name).read_bytes()
            lines = content.split(b"\n")
            place = data.draw(st.integers(0, len(content)))
            new = data.draw(
                st.sampled_from([content[:place], content[place:], content + content])
                | st.permutations(lines).map(b"\n".join)
                | st.lists(LINES | st.sampled_from(lines) | st.binary(max_size=9)).map(b"\n".join)
                | st.integers(-(2**65), 2**65).map(lambda number: str(number).encode()),
                name,
            )
            damages.enter_context(damaged(root / name, lambda path, new=new: path.write_bytes(new)))
        for reading in read_all(root)["cpus"]:
            for cpu in reading.values():
                assert 0 <= cpu.get("utilization", 0) <= 1
                assert 0 <= cpu.get("power_w", 0) <= 4000
