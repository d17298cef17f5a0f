"""Files as the kernel has them: unreadable, without text, in any order."""

from __future__ import annotations

import os

import pytest
from sysfs_trees import write, write_link

from kernel_pytorch.machine.files import Files, format_cpu_list


def test_what_cannot_be_read_is_absent(tmp_path):
    files = Files(tmp_path)
    write(tmp_path, "folder/file", 1)
    too_long = "x" * 300  # the kernel refuses the name, as it refuses a folder without the right to enter it
    for name in ("nothing", "folder", "folder/file/below", too_long):
        assert (files.text(name), files.number(name), files.link_name(name)) == (None, None, None)
    for name in ("nothing", "folder/file", too_long):
        assert (files.names(name), files.numbered(name, "x")) == ([], [])
    assert [files.exists(name) for name in ("folder", "folder/file", "nothing", too_long)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    write(tmp_path, "closed/file", 1)
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    files = Files(".")
    os.seteuid(65534)
    try:
        assert (files.exists("closed/file"), files.exists("closed")) == (False, True)
        assert (files.text("closed/file"), files.names("closed")) == (None, [])
    finally:
        os.seteuid(0)


def test_texts_and_numbers(tmp_path):
    for name, content in (("bytes", b"A\xffB\n"), ("nul", b"gpu\0\n"), ("blank", b" \n"), ("max", b"max\n")):
        (tmp_path / name).write_bytes(content)
    files = Files(tmp_path)
    assert [files.text(name) for name in ("bytes", "nul", "blank", "max")] == ["A\ufffdB", "gpu", None, "max"]
    assert [files.number(name) for name in ("bytes", "blank", "max")] == [None, None, None]
    write(tmp_path, "number", -1)
    assert files.number("/number") == -1


def test_folders_are_ordered_by_name_and_by_number(tmp_path):
    for name in ("node10", "node2", "node0", "nodeX", "node", "online"):
        write(tmp_path, f"nodes/{name}", "")
    files = Files(tmp_path)
    assert files.names("nodes") == ["node", "node0", "node10", "node2", "nodeX", "online"]
    assert files.numbered("nodes", "node") == [0, 2, 10]


def test_links(tmp_path):
    write_link(tmp_path, "device/driver", "drivers/mlx5_core")
    (tmp_path / "ns").symlink_to("net:[4026531840]")  # as below /proc/self/ns, it points to no path
    files = Files(tmp_path)
    assert (files.link_name("device/driver"), files.link_name("ns")) == ("mlx5_core", "net:[4026531840]")


def test_a_list_of_cpus_is_written_in_order():
    assert format_cpu_list((8, 2, 3, 1, 3)) == "1-3,8"
    assert format_cpu_list(()) == ""
