"""torch's numbers of GPUs, with torch.cuda answering as on a machine that shows two of three."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import topologies
import torch

from kernel_pytorch.machine.facts import GpuIdentity, HardwareVendor, PciLink
from kernel_pytorch.machine.torch_devices import own_gpu, torch_device

VISIBLE = ("00000002", "00000000")  # torch's order; the driver's number 1 is hidden


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    state = SimpleNamespace(initialized=False, current=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: state.initialized)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(VISIBLE))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=VISIBLE[index])
    )
    return state


def test_a_gpu_under_the_number_that_torch_gives_it(cuda):
    assert torch_device(topologies.gpu(0)) == torch.device("cuda", 1)
    assert torch_device(topologies.gpu(2)) == torch.device("cuda", 0)
    with pytest.raises(
        ValueError, match=r"torch does not see gpu:1 \(NVIDIA H100 .*, None\): CUDA_VISIBLE_D"
    ):
        torch_device(topologies.gpu(1))


def test_cpus_and_intel_gpus(cuda, monkeypatch):
    (cpu, *_) = topologies.cpu_only().devices
    assert torch_device(cpu) == torch.device("cpu")
    intel = topologies.gpu(5, index=1, vendor=HardwareVendor.INTEL, uuid=None)
    with pytest.raises(ValueError, match="torch does not see gpu:5"):
        torch_device(intel)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: SimpleNamespace())
    assert torch_device(intel) == torch.device("xpu", 1)  # older versions of PyTorch tell no UUID


def test_an_intel_gpu_under_the_number_that_a_mask_leaves_it(monkeypatch):
    """ZE_AFFINITY_MASK=1,3 leaves torch two of four, as 0 and 1."""
    left = [SimpleNamespace(uuid="b"), SimpleNamespace(uuid="d")]
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: left[index])
    found = {
        uuid: topologies.gpu(number, vendor=HardwareVendor.INTEL, uuid=uuid)
        for number, uuid in enumerate("abcd")
    }
    assert torch_device(found["d"]) == torch.device("xpu", 1)
    assert torch_device(found["b"]) == torch.device("xpu", 0)
    with pytest.raises(ValueError, match="torch does not see gpu:0"):
        torch_device(found["a"])
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_gpu() == GpuIdentity(uuid="d", pci_address=None)
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.xpu, "current_device", lambda: 0)
    assert own_gpu() == GpuIdentity(uuid="b", pci_address=None)


def test_why_torch_does_not_see_it_where_that_is_known(cuda):
    hidden = topologies.gpu(1, hidden="is hidden by CUDA_VISIBLE_DEVICES=2,0")
    with pytest.raises(
        ValueError, match=r"torch does not see gpu:1 .*: it is hidden by CUDA_VISIBLE_DEVICES=2,0"
    ):
        torch_device(hidden)


def test_the_gpu_of_this_process(cuda, monkeypatch):
    """The current one once torch has begun, before that the one that torchrun means."""
    monkeypatch.setenv("RANK", "4")
    for local_rank, uuid in (("0", VISIBLE[0]), ("1", VISIBLE[1]), ("3", VISIBLE[1])):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert own_gpu() == GpuIdentity(uuid=uuid, pci_address=None)
    monkeypatch.delenv("LOCAL_RANK")
    assert own_gpu().uuid == VISIBLE[0]
    cuda.initialized, cuda.current = True, 1
    assert own_gpu().uuid == VISIBLE[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_gpu() is None


def test_an_amd_gpu_is_known_by_its_address(monkeypatch):
    """Its UUID is another one to AMD SMI than to torch. A MIG instance has the address of its GPU."""
    properties = SimpleNamespace(uuid="hip", pci_domain_id=0, pci_bus_id=0xC3, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    gpu = topologies.gpu(0, vendor=HardwareVendor.AMD, pci=PciLink(address="0000:c3:00.0"))
    assert torch_device(gpu) == torch.device("cuda", 0)
    other = topologies.gpu(0, uuid="hip", pci=PciLink(address="0000:c4:00.0"))
    with pytest.raises(ValueError, match="torch does not see"):
        torch_device(other)


def test_an_address_where_torch_tells_it(cuda, monkeypatch):
    properties = SimpleNamespace(uuid="another", pci_domain_id=1, pci_bus_id=0x1B, pci_device_id=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert own_gpu() == GpuIdentity(uuid="another", pci_address="0001:1b:02.0")
    gpu = topologies.gpu(0, pci=PciLink(address="0001:1b:02.0"))
    assert torch_device(gpu) == torch.device("cuda", 0)
