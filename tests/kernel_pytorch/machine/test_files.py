"""Files as the kernel has them: unreadable, without text, in any order."""

from __future__ import annotations

import os

import pytest
from sysfs_trees import write, write_link

from kernel_pytorch.machine.files import Files, format_cpu_list, whole


def test_what_cannot_be_read_is_absent(tmp_path):
    files = Files(tmp_path)
    write(tmp_path, "folder/file", 1)
    too_long = "x" * 300  # the kernel refuses the name, as it refuses a folder without the right to enter it
    (tmp_path / "loop").symlink_to("loop")
    nul = "fol\0der"  # a name that another file held
    for name in ("nothing", "folder", "folder/file/below", too_long, nul):
        assert (files.text(name), files.number(name), files.link_name(name)) == (None, None, None)
    assert (files.text("loop"), files.names("loop"), files.exists("loop")) == (None, [], False)
    for name in ("nothing", "folder/file", too_long, nul):
        assert (files.names(name), files.numbered(name, "x")) == ([], [])
    assert [files.exists(name) for name in ("folder", "folder/file", "nothing", too_long, nul)] == [
        True,
        True,
        False,
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


@pytest.mark.parametrize(
    "text", ["1_000", "+5", "0x10", "1.5", "1e3", "\u0663", "1 2", "- 1", "9" * 21, "9" * 5000, "1\n2", "nan"]
)
def test_what_is_no_number_of_the_kernel(text):
    assert whole(text) is None


def test_counts_and_flags(tmp_path):
    for name, text in (("one", 1), ("zero", 0), ("minus", -1), ("many", 2**64 - 1), ("word", "yes")):
        write(tmp_path, name, text)
    files = Files(tmp_path)
    names = ("one", "zero", "minus", "many", "word", "nothing")
    assert [files.count(name) for name in names] == [1, 0, None, 2**64 - 1, None, None]
    assert [files.flag(name) for name in names] == [True, False, None, None, None, None]


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
