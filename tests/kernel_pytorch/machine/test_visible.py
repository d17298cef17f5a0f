"""Which devices a process may use, by its environment and by the device files of a made-up machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import topologies
import torch
from fake_nvml import FakeNvml, h100
from hypothesis import example, given
from hypothesis import strategies as st
from sysfs_trees import write

from kernel_pytorch.machine.drivers.nvidia import UNNAMED, NvidiaDriver
from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor, MigInstance, Missing, PciLink
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.machine.visible import (
    cuda_visible,
    hip_visible,
    level_zero_entries,
    mark_hidden,
    rocr_visible,
)
from kernel_pytorch.placement import PlacementRequest, place
from kernel_pytorch.placement.launch_hints import launch_hints

NOWHERE = Files("/nowhere")
UUIDS = ("GPU-aa11", "GPU-aa12", "GPU-ab00", "GPU-b000")
NUMBERS = st.sampled_from(["0", "1", "2", "3", "4", "-1", "+2", " 1", "1gpu2", "", "x", "NoDevFiles"])
IDS = st.sampled_from(
    ["GPU-aa1", "GPU-aa11", "GPU-ab", "GPU-b", "GPU-b0", "GPU-", "gpu-b000", " GPU-b", "MIG-1"]
)
VALUES = st.one_of(st.lists(kind, max_size=5) for kind in (NUMBERS, IDS, NUMBERS | IDS)).map(",".join)


def gpus(count: int, vendor: HardwareVendor = HardwareVendor.NVIDIA, **facts: object) -> list[DeviceInfo]:
    return [
        topologies.gpu(i, vendor=vendor, pci=PciLink(address=f"0000:{i + 1:02x}:00.0"), **facts)
        for i in range(count)
    ]


def shown(devices: Sequence[DeviceInfo]) -> dict[int, str | None]:
    """The entries of the devices that may be used, by id."""
    return {device.device_id: device.visible_as for device in devices if device.hidden is None}


def reasons(devices: Sequence[DeviceInfo]) -> set[str | None]:
    return {device.hidden for device in devices if device.hidden}


@given(value=VALUES)
@example(value="0,4,0")  # twice, though the list ends between
@example(value="GPU-b,GPU-b0")  # twice, under two names
def test_cudas_list_as_torch_reads_it(value: str):
    """torch's own reader, which imitates CUDA's, is the oracle."""
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=value):
        entries = torch.cuda._parse_visible_devices()
    if entries and isinstance(entries[0], str):
        expected = (
            [] if value.startswith("MIG-") else torch.cuda._transform_uuid_to_ordinals(entries, list(UUIDS))
        )
    else:
        beyond = [place for place, number in enumerate(entries) if number >= len(UUIDS)]
        expected = entries[: beyond[0] if beyond else None]
    assert list(cuda_visible(value, [(uuid,) for uuid in UUIDS])) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("4,5", {4: "4", 5: "5"}),
        ("0,2,-1,1", {0: "0", 2: "2"}),  # NVIDIA's own example
        ("2,1", {2: "2", 1: "1"}),
        ("", {}),
        ("-1", {}),
        ("NoDevFiles", {}),
        ("1,1", {}),
        ("7,8,6", {7: "7"}),
        ("GPU-00000006,GPU-00000003", {6: "GPU-00000006", 3: "GPU-00000003"}),
        ("GPU-0000000,GPU-00000003", {}),
        ("3,GPU-00000004", {3: "3"}),
    ],
)
def test_cuda_visible_devices_on_eight_gpus(value: str, expected: dict[int, str]):
    devices, notes = mark_hidden(gpus(8), {"CUDA_VISIBLE_DEVICES": value}, NOWHERE)
    assert (shown(devices), notes) == (dict(sorted(expected.items())), [])
    assert reasons(devices) == {f"is hidden by CUDA_VISIBLE_DEVICES={value}"}


def test_nothing_set_hides_nothing():
    for vendor in (HardwareVendor.NVIDIA, HardwareVendor.AMD, HardwareVendor.INTEL):
        devices, notes = mark_hidden(gpus(3, vendor), {"PATH": "/bin", "GPU_DEVICE_ORDINAL": "0"}, NOWHERE)
        assert ({device.hidden for device in devices}, notes) == ({None}, [])
    (cpu, *_) = topologies.cpu_only().devices
    assert mark_hidden([cpu], {"CUDA_VISIBLE_DEVICES": ""}, NOWHERE) == ([cpu], [])


def test_a_whole_id_is_never_ambiguous():
    instances = [{"MIG-a", "MIG-GPU-b/1/1"}, {"MIG-ab", "MIG-GPU-b/1/10"}]
    assert cuda_visible("MIG-GPU-b/1/1,MIG-ab", instances) == {0: "MIG-GPU-b/1/1", 1: "MIG-ab"}
    assert cuda_visible("MIG-a", instances) == {0: "MIG-a"}
    assert cuda_visible("MIG-GPU-b/1", instances) == {}
    assert rocr_visible("GPU-", ["GPU-1"]) == {}  # no digit, no UUID, even of the only GPU
    assert rocr_visible("GPU-1", ["GPU-1"]) == {0: "GPU-1"}


@pytest.mark.parametrize("value", ["void", "none"])
def test_a_privileged_container_that_was_given_no_gpu(value: str):
    devices, _ = mark_hidden(gpus(2), {"NVIDIA_VISIBLE_DEVICES": value}, NOWHERE)
    assert reasons(devices) == {f"is hidden by NVIDIA_VISIBLE_DEVICES={value}"}
    assert shown(devices) == {}
    assert shown(mark_hidden(gpus(2), {"NVIDIA_VISIBLE_DEVICES": "all"}, NOWHERE)[0]) == {0: None, 1: None}


def test_numbers_of_different_models_are_cudas_secret():
    """By UUID, in PCI order and where all or none are shown there is nothing to guess."""
    mixed = [*gpus(2), replace(gpus(3)[2], name="NVIDIA L40S")]
    by_number = {"CUDA_VISIBLE_DEVICES": "0,1"}
    devices, notes = mark_hidden(mixed, by_number, NOWHERE)
    assert notes == [
        Missing(
            what="which NVIDIA GPUs CUDA_VISIBLE_DEVICES=0,1 shows",
            why="CUDA counts the fastest first, and the models differ",
            fix="export CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )
    ]
    assert shown(devices) == {0: "GPU-00000000", 1: "GPU-00000001", 2: "GPU-00000002"}
    for known, expected in (
        ({**by_number, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {0: "0", 1: "1"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-00000002"}, {2: "GPU-00000002"}),
        ({"CUDA_VISIBLE_DEVICES": "2,0,1"}, {0: "GPU-00000000", 1: "GPU-00000001", 2: "GPU-00000002"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, {0: "GPU-00000000", 1: "GPU-00000001", 2: "GPU-00000002"}),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {0: None, 1: None, 2: None}),
    ):
        devices, notes = mark_hidden(mixed, known, NOWHERE)
        assert (shown(devices), notes) == (expected, []), known


def test_uuids_that_nvml_does_not_tell_are_noted():
    devices, notes = mark_hidden(gpus(2, uuid=None), {"CUDA_VISIBLE_DEVICES": "GPU-1"}, NOWHERE)
    assert reasons(devices) == set()
    assert [note.why for note in notes] == ["UUIDs are unknown"]


def with_a_lost_gpu() -> list[DeviceInfo]:
    """Number 1 of four was lost: neither its model nor its UUID is known."""
    return [replace(gpu, name=UNNAMED, uuid=None) if gpu.index == 1 else gpu for gpu in gpus(4)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2,3", {2: "2", 3: "3"}),
        ("GPU-00000003,GPU-00000002", {2: "GPU-00000002", 3: "GPU-00000003"}),
    ],
)
def test_a_lost_gpu_opens_none_of_the_hidden_ones(value, expected):
    devices, notes = mark_hidden(with_a_lost_gpu(), {"CUDA_VISIBLE_DEVICES": value}, NOWHERE)
    assert (shown(devices), notes) == (expected, [])


def test_beside_a_lost_gpu_the_others_are_named_by_uuid():
    """CUDA may count it or not."""
    devices, notes = mark_hidden(with_a_lost_gpu(), {}, NOWHERE)
    assert shown(devices) == {0: "GPU-00000000", 1: None, 2: "GPU-00000002", 3: "GPU-00000003"}
    assert notes == []


def test_a_uuid_that_no_gpu_tells_may_be_that_of_a_lost_one():
    """Those that tell their UUID are hidden, unless they are named, wherever in the list."""
    given = {"CUDA_VISIBLE_DEVICES": "GPU-00000001,GPU-00000003"}
    devices, notes = mark_hidden(with_a_lost_gpu(), given, NOWHERE)
    assert shown(devices) == {1: None, 3: "GPU-00000003"}
    assert [note.why for note in notes] == ["UUIDs are unknown"]


def mig_gpu(device_id: int) -> DeviceInfo:
    """An H100 of three instances: 1g.10gb, 3g.40gb, 1g.10gb."""
    instances = tuple(
        MigInstance(
            uuid=f"MIG-{device_id}{number}00",
            name=None,
            memory_bytes=size << 30,
            compute_units=16,
            gpu_instance_id=number + 1,
            compute_instance_id=0,
        )
        for number, size in enumerate((10, 40, 10))
    )
    return replace(gpus(4)[device_id], mig_enabled=True, mig_instances=instances)


@pytest.mark.parametrize(
    ("value", "instances", "visible_as"),
    [
        ("MIG-1000", ["MIG-1000"], "MIG-1000"),
        ("MIG-10", ["MIG-1000"], "MIG-10"),
        ("MIG-1000,MIG-1100", ["MIG-1000", "MIG-1100"], "MIG-1100"),
        ("MIG-GPU-00000001/2/0", ["MIG-1100"], "MIG-GPU-00000001/2/0"),
        ("MIG-nowhere,MIG-1000", [], None),
        ("MIG-1", [], None),
        ("1", ["MIG-1000", "MIG-1100", "MIG-1200"], "1"),
        ("GPU-00000001", ["MIG-1000", "MIG-1100", "MIG-1200"], "GPU-00000001"),
    ],
)
def test_mig_instances_by_either_id(value: str, instances: list[str], visible_as: str | None):
    devices = [topologies.gpu(0), mig_gpu(1), mig_gpu(2)]
    devices, notes = mark_hidden(devices, {"CUDA_VISIBLE_DEVICES": value}, NOWHERE)
    assert (shown(devices), notes) == ({1: visible_as} if instances else {}, [])
    cut = devices[1]
    assert [m.uuid for m in cut.mig_instances if m.hidden is None] == instances or cut.hidden
    topology = topologies.cluster(topologies.node(devices))
    if not instances:
        with pytest.raises(ValueError, match=f"gpu:0-2 is hidden by CUDA_VISIBLE_DEVICES={value}"):
            place(topology, PlacementRequest())
        return
    found = launch_hints(topology, place(topology, PlacementRequest()))
    best = visible_as if value.startswith("MIG-") else "MIG-1100"
    assert found.nodes[0].environment == {"CUDA_VISIBLE_DEVICES": best}
    memory = 40 if len(instances) > 1 or "/2/" in value else 10
    with pytest.raises(ValueError, match=rf"gpu:1 has {memory * 1.073741824:.1f} GB, less than 70 GB"):
        place(topology, PlacementRequest(memory_gb=70))


def test_a_mig_instance_that_a_cgroup_closes(tmp_path: Path):
    """By the capability files of its GPU instance and its compute instance."""
    write(
        tmp_path, "proc/driver/nvidia/gpus/0000:02:00.0/information", "Model: \t\t H100\nDevice Minor: \t 5"
    )
    write(tmp_path, "dev/nvidia5", "")
    caps = "proc/driver/nvidia/capabilities/gpu5/mig"
    for instance in (1, 2, 3):
        write(
            tmp_path, f"{caps}/gi{instance}/access", f"DeviceFileMinor: {10 * instance}\nDeviceFileMode: 292"
        )
        write(tmp_path, f"{caps}/gi{instance}/ci0/access", f"DeviceFileMinor: {10 * instance + 1}")
    for minor in (10, 11, 20):
        write(tmp_path, f"dev/nvidia-caps/nvidia-cap{minor}", "")
    (device,), _ = mark_hidden([mig_gpu(1)], {}, Files(tmp_path))
    assert [m.hidden for m in device.mig_instances] == [
        None,
        "is hidden: /dev/nvidia-caps/nvidia-cap21 is not there",
        "is hidden: /dev/nvidia-caps/nvidia-cap30 is not there",
    ]
    assert device.hidden is None
    (tmp_path / "dev/nvidia-caps/nvidia-cap11").unlink()
    (device,), _ = mark_hidden([mig_gpu(1)], {"CUDA_VISIBLE_DEVICES": "MIG-1000"}, Files(tmp_path))
    assert device.hidden == "is hidden: /dev/nvidia-caps/nvidia-cap11 is not there"


def test_the_ids_of_mig_instances_are_read(monkeypatch: pytest.MonkeyPatch):
    instance = h100(GetUUID="MIG-1", GetGpuInstanceId=7, GetComputeInstanceId=2)
    gpu = h100(GetMigMode=[1, 1], GetMaxMigDeviceCount=1, GetMigDeviceHandleByIndex=lambda slot: instance)
    FakeNvml(monkeypatch, [gpu])
    (device,) = NvidiaDriver(NOWHERE).devices()
    assert device.best_instance is not None
    assert (device.best_instance.gpu_instance_id, device.best_instance.compute_instance_id) == (7, 2)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of device files that access(2) refuses, as a device cgroup makes it do to root too."""
    names: set[str] = set()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in names and access(path, mode))
    return names


def test_a_gpu_whose_device_file_is_closed_or_absent(tmp_path: Path, closed: set[str]):
    """Numbers count those that are left, as CUDA does."""
    for number, minor in enumerate((3, 2, 1, 0)):  # minors need not be in PCI order
        folder = f"proc/driver/nvidia/gpus/0000:{number + 1:02x}:00.0"
        write(tmp_path, f"{folder}/information", f"Model: \t\t H100\nDevice Minor: \t {minor}")
        if minor != 2:
            write(tmp_path, f"dev/nvidia{minor}", "")
    closed.add("nvidia3")
    devices, _ = mark_hidden(gpus(4), {}, Files(tmp_path))
    assert [device.hidden for device in devices] == [
        "is hidden: /dev/nvidia3 may not be opened (its permissions or a device cgroup)",
        "is hidden: /dev/nvidia2 is not there",
        None,
        None,
    ]
    assert shown(devices) == {2: "0", 3: "1"}
    devices, _ = mark_hidden(gpus(4), {"CUDA_VISIBLE_DEVICES": "1"}, Files(tmp_path))
    assert shown(devices) == {3: "1"}
    assert devices[2].hidden == "is hidden by CUDA_VISIBLE_DEVICES=1"
    mixed = [replace(gpu, name=f"model {gpu.index}") for gpu in gpus(4)]
    assert shown(mark_hidden(mixed, {}, Files(tmp_path))[0]) == {2: "GPU-00000002", 3: "GPU-00000003"}


def kfd(root: Path, buses: Sequence[int]) -> None:
    """AMD GPUs in KFD's order, behind a CPU's node; each with its render node, as minor 128 + bus."""
    folder = "sys/class/kfd/kfd/topology/nodes"
    write(root, f"{folder}/0/properties", "cpu_cores_count 64\nsimd_count 0\nunique_id 0")
    write(root, "dev/kfd", "")
    for node, bus in enumerate(buses, 1):
        properties = {
            "simd_count": 1216,
            "location_id": bus << 8,
            "domain": 0,
            "drm_render_minor": 128 + bus,
            "unique_id": 0xDEADBEEF00000000 + bus,
        }
        write(root, f"{folder}/{node}/properties", "\n".join(f"{k} {v}" for k, v in properties.items()))
        (root / f"sys/bus/pci/devices/0000:{bus:02x}:00.0/drm/renderD{128 + bus}").mkdir(parents=True)
        write(root, f"dev/dri/renderD{128 + bus}", "")


AMD = HardwareVendor.AMD


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {3: "0", 2: "1", 1: "2", 0: "3"}),
        ({"ROCR_VISIBLE_DEVICES": "3,0"}, {0: "0", 3: "1"}),
        ({"ROCR_VISIBLE_DEVICES": "0,0,1"}, {3: "0"}),
        ({"ROCR_VISIBLE_DEVICES": "gpu-DEADBEEF00000001,0"}, {0: "0", 3: "1"}),
        ({"ROCR_VISIBLE_DEVICES": "GPU-DEADBEEF"}, {}),
        ({"ROCR_VISIBLE_DEVICES": ""}, {}),
        ({"HIP_VISIBLE_DEVICES": "1"}, {2: "1"}),
        ({"HIP_VISIBLE_DEVICES": "GPU-deadbeef00000002"}, {1: "GPU-deadbeef00000002"}),
        ({"HIP_VISIBLE_DEVICES": "0, 1"}, {3: "0"}),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "0"}, {}),
        ({"CUDA_VISIBLE_DEVICES": "2"}, {1: "2"}),
        ({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "2"}, {1: "2"}),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, {0: "1"}),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "2"}, {}),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "2,3"}, {}),  # set by a batch system, twice
        ({"GPU_DEVICE_ORDINAL": "1"}, {3: "0", 2: "1", 1: "2", 0: "3"}),
    ],
)
def test_amd_gpus_in_kfds_order(tmp_path: Path, environment: dict[str, str], expected: dict[int, str]):
    """KFD has them the other way round than AMD SMI."""
    kfd(tmp_path, (4, 3, 2, 1))
    devices, notes = mark_hidden(gpus(4, AMD), environment, Files(tmp_path))
    assert notes == []
    assert shown(sorted(devices, key=lambda device: device.device_id)) == dict(sorted(expected.items()))


def test_which_of_amds_variables_hides(tmp_path: Path):
    kfd(tmp_path, (1, 2, 3))
    environment = {"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}
    devices, _ = mark_hidden(gpus(3, AMD), environment, Files(tmp_path))
    assert [device.hidden for device in devices] == [
        "is hidden by HIP_VISIBLE_DEVICES=1",
        None,
        "is hidden by ROCR_VISIBLE_DEVICES=0,1",
    ]


def test_an_amd_gpu_whose_device_file_is_absent(tmp_path: Path, closed: set[str]):
    kfd(tmp_path, (1, 2, 3))
    (tmp_path / "dev/dri/renderD129").unlink()
    devices, _ = mark_hidden(gpus(3, AMD), {"HIP_VISIBLE_DEVICES": "1"}, Files(tmp_path))
    assert [device.hidden for device in devices] == [
        "is hidden: /dev/dri/renderD129 is not there",
        "is hidden by HIP_VISIBLE_DEVICES=1",
        None,
    ]
    closed.add("kfd")
    devices, _ = mark_hidden(gpus(3, AMD), {}, Files(tmp_path))
    assert reasons(devices) == {"is hidden: /dev/kfd may not be opened (its permissions or a device cgroup)"}


def test_amds_uuids_without_kfds_topology_are_noted():
    devices, notes = mark_hidden(gpus(2, AMD), {"ROCR_VISIBLE_DEVICES": "GPU-1"}, NOWHERE)
    assert reasons(devices) == set()
    assert [note.what for note in notes] == ["which AMD GPUs ROCR_VISIBLE_DEVICES=GPU-1 shows"]
    assert shown(mark_hidden(gpus(2, AMD), {"ROCR_VISIBLE_DEVICES": "1"}, NOWHERE)[0]) == {1: "0"}


@given(rocr=VALUES, hip=VALUES)
def test_amds_lists_entry_by_entry(rocr: str, hip: str):
    """Read a second time as the sources have it: a loop that leaves at the first entry it does not take."""
    uuids = ["GPU-aa11", "GPU-aa12", "GPU-ab00", None]
    kept: list[int] = []
    for entry in (part.strip().upper() for part in rocr.split(",")):
        if entry[:1] == "G":
            fits = [i for i, uuid in enumerate(uuids) if uuid and uuid.upper().startswith(entry)]
            number = fits[0] if len(fits) == 1 and len(entry) >= 5 else -1
        else:
            number = int(entry) if entry.isdecimal() else -1
        if not 0 <= number < len(uuids) or number in kept:
            break
        kept.append(number)
    assert list(rocr_visible(rocr, uuids)) == kept

    seen = [uuids[number] for number in kept]
    entries = hip.split(",")
    for length, entry in enumerate(entries):  # HIP stops here; what torch thinks of the rest does not count
        if not entry.startswith("GPU-") and entry != (str(int(entry)) if entry.isdecimal() else None):
            entries = entries[:length]
            break
    found = hip_visible(hip, seen)
    assert found == cuda_visible(",".join(entries), [(uuid,) if uuid else () for uuid in seen])
    assert set(found) <= set(range(len(seen)))


@pytest.mark.parametrize(
    ("mask", "flat", "expected"),
    [
        ("3,1", True, ["1", "3"]),
        ("3,1", False, ["1", "3"]),
        ("0,0", True, ["0"]),
        ("0.0,1", True, ["1"]),
        ("0.0,1", False, ["0.0", "1"]),
        ("1.1,0, 1.0", False, ["0", "1.1,1.0"]),
        ("x,-1", True, []),
    ],
)
def test_level_zeros_mask(mask: str, flat: bool, expected: list[str]):
    assert level_zero_entries(mask, flat=flat) == expected


def test_intels_gpus_keep_the_entries_of_the_mask():
    """torch shows GPUs 1 and 3 as 0 and 1; a mask that a hint sets counts all of them again."""
    intel = gpus(2, HardwareVendor.INTEL)
    for mask, hierarchy, expected in (
        ("3,1", "FLAT", {0: "1", 1: "3"}),
        ("1,3,99", "COMBINED", {0: "1", 1: "3"}),
        ("0.1,2.0,2.1", "COMPOSITE", {0: "0.1", 1: "2.0,2.1"}),
        ("default", "FLAT", {0: None, 1: None}),
    ):
        environment = {"ZE_AFFINITY_MASK": mask, "ZE_FLAT_DEVICE_HIERARCHY": hierarchy}
        devices, notes = mark_hidden(intel, environment, NOWHERE)
        assert (shown(devices), notes) == (expected, [])
    _, notes = mark_hidden(intel, {"ZE_AFFINITY_MASK": "1"}, NOWHERE)
    assert [(note.what, note.why) for note in notes] == [
        ("which Intel GPUs ZE_AFFINITY_MASK=1 shows", "torch sees 2")
    ]
    _, notes = mark_hidden(intel, {"ONEAPI_DEVICE_SELECTOR": "level_zero:1"}, NOWHERE)
    assert [note.fix for note in notes] == ["choose them with ZE_AFFINITY_MASK"]
    assert mark_hidden(intel, {"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"}, NOWHERE)[1] == []


@given(
    environment=st.dictionaries(
        st.sampled_from(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")), VALUES
    ),
    order=st.sampled_from((None, "PCI_BUS_ID", "FASTEST_FIRST")),
    vendor=st.sampled_from((HardwareVendor.NVIDIA, HardwareVendor.AMD)),
    picks=st.permutations(range(4)),
    count=st.integers(1, 4),
)
def test_a_hint_shows_the_placed_devices_and_no_others(
    environment: dict[str, str], order: str | None, vendor: HardwareVendor, picks: list[int], count: int
):
    """Whatever the batch system set: with the hint's variables on top the placed devices are left, in their
    order."""
    bare = [replace(gpu, uuid=uuid) for gpu, uuid in zip(gpus(4, vendor), UUIDS, strict=True)]
    environment = environment | ({"CUDA_DEVICE_ORDER": order} if order else {})
    devices, notes = mark_hidden(bare, environment, NOWHERE)
    usable = [device.device_id for device in devices if device.hidden is None]
    if notes or not usable:
        return
    chosen = tuple(number for number in picks if number in usable)[:count]
    topology = topologies.cluster(topologies.node(devices))
    placement = replace(place(topology, PlacementRequest(devices=usable)), device_ids=chosen)
    hints = launch_hints(topology, placement).nodes[0].environment
    after: Mapping[str, str] = environment | hints
    left, notes = mark_hidden(bare, after, NOWHERE)
    assert (set(shown(left)), notes) == (set(chosen), [])
    if vendor is HardwareVendor.NVIDIA:
        assert tuple(cuda_visible(after["CUDA_VISIBLE_DEVICES"], [(uuid,) for uuid in UUIDS])) == chosen
        if "CUDA_VISIBLE_DEVICES" in environment:
            assert set(hints) == {"CUDA_VISIBLE_DEVICES"}  # the batch system's order of devices stays


def test_a_machine_under_a_batch_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """CUDA_VISIBLE_DEVICES=4,5 on eight GPUs: the two are placed and hinted, the others are left out, with
    the reason."""
    FakeNvml(monkeypatch, [h100(index) for index in range(8)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    machine = Machine(str(tmp_path), mounts=())
    topology = topologies.cluster(machine.node)
    machine.close()
    assert list(shown(machine.node.devices)) == [4, 5]
    placement = place(topology, PlacementRequest(num_devices=2))
    assert placement.device_ids == (4, 5)
    assert "left out: gpu:0-3, gpu:6-7 is hidden by CUDA_VISIBLE_DEVICES=4,5" in placement.reason
    assert launch_hints(topology, placement).nodes[0].environment == {"CUDA_VISIBLE_DEVICES": "4,5"}
    with pytest.raises(ValueError, match="num_devices must be at most 2 here, got 3"):
        place(topology, PlacementRequest(num_devices=3))
