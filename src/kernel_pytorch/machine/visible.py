"""Which devices this process may use: drivers list all of a node, runtimes only those granted to the job.

Environment variables, parsed here as the vendors' runtimes parse them, restrict the devices, and so do device
files, which may be missing in a container or closed by a device cgroup. Indexes in a variable count only the
devices whose files can be opened: the runtimes see no others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from .drivers.nvidia import UNNAMED
from .facts import DeviceInfo, HardwareVendor, MigInstance, Missing
from .files import Files


def cuda_visible(value: str, names: Sequence[Collection[str]]) -> dict[int, str]:
    """The entries of CUDA_VISIBLE_DEVICES by index in ``names``: the GPUs that it shows, in its order.

    The first entry decides whether all are indexes, UUIDs of GPUs or ids of MIG instances. An index is parsed
    like C's ``strtoul`` ("1gpu" is 1). A UUID or id may be abbreviated to an unambiguous prefix and is case
    sensitive. The first entry that is negative, of another kind, unknown or ambiguous ends the list. A
    duplicate hides all GPUs, and so does an empty value.

    Source: NVIDIA, "CUDA Programming Guide", section "CUDA Environment Variables"; where it is silent,
    PyTorch's ``torch.cuda._parse_visible_devices``.

    Args:
        names: the ids of each GPU, or of each MIG instance, in CUDA's order.
    """
    entries = value.split(",")
    prefix = next((prefix for prefix in ("GPU-", "MIG-") if value.startswith(prefix)), None)
    if prefix is None:
        numbers = takewhile(lambda number: number >= 0, map(_leading_number, entries))
        entries = [str(number) for number in numbers]
    else:
        entries = list(takewhile(lambda entry: entry.startswith(prefix), entries))
    if len(set(entries)) < len(entries):
        return {}
    shown: dict[int, str] = {}
    for entry in entries:
        index = int(entry) if prefix is None else _match(entry, names)
        if index is None or index >= len(names):
            break
        if index in shown:
            return {}
        shown[index] = entry
    return shown


def _leading_number(entry: str) -> int:
    """The integer at the start of ``entry``; -1 if there is none."""
    found = re.match(r"\s*([+-]?[0-9]+)", entry)
    return int(found[1]) if found else -1


def _match(entry: str, names: Sequence[Collection[str]]) -> int | None:
    """The index of the only item with a name equal to ``entry``, else of the only one with that prefix."""
    for matches in (str.__eq__, str.startswith):
        found = [number for number, own in enumerate(names) if any(matches(name, entry) for name in own)]
        if len(found) == 1:
            return found[0]
    return None


def rocr_visible(value: str, uuids: Sequence[str | None]) -> dict[int, str]:
    """The entries of ROCR_VISIBLE_DEVICES by index in ``uuids``: the GPUs that it shows, in its order.

    Indexes and UUIDs ("GPU-" and 16 hexadecimal digits of either case, or fewer if unambiguous) may be mixed.
    The first entry that is invalid or a duplicate ends the list; an empty value hides all GPUs.

    Source: AMD, ROCR-Runtime, ``core/runtime/amd_filter_device.cpp``.

    Args:
        uuids: of each GPU in the order of KFD, the kernel's driver; None for a GPU without one.
    """
    names = [(uuid.upper(),) if uuid else () for uuid in uuids]
    shown: dict[int, str] = {}
    for entry in (part.strip().upper() for part in value.split(",")):
        if entry.startswith("G"):
            index = _match(entry, names) if len(entry) > len("GPU-") else None
        else:
            index = int(entry) if re.fullmatch("[0-9]+", entry) else None
        if index is None or index >= len(uuids) or index in shown:
            break
        shown[index] = entry
    return shown


def hip_visible(value: str, uuids: Sequence[str | None]) -> dict[int, str]:
    """The entries of HIP_VISIBLE_DEVICES by index among the GPUs that ROCR shows; see :func:`rocr_visible`.

    HIP and PyTorch parse the variable differently, and a GPU must be shown by both. PyTorch parses it like
    CUDA_VISIBLE_DEVICES; HIP accepts an index only in plain digits, without spaces.

    Source: AMD, clr, ``rocclr/device/rocm/rocdevice.cpp``; ``torch.cuda._parse_visible_devices``.
    """
    plain = takewhile(lambda entry: re.fullmatch("0|[1-9][0-9]*|GPU-.*", entry), value.split(","))
    return cuda_visible(",".join(plain), [(uuid,) if uuid else () for uuid in uuids])


def level_zero_entries(mask: str, *, flat: bool) -> list[str]:
    """The entries of ZE_AFFINITY_MASK by device, in the order in which the devices are shown.

    That is the driver's order, not the mask's; invalid entries are ignored. In a flat hierarchy a device is a
    tile ("2"), else a card, of which "1.0" shows tile 0 only ("1.0,1.1" is one device with two tiles).

    Source: oneAPI, "Level Zero Specification", section "Affinity Mask"; Intel, compute-runtime,
    ``shared/source/execution_environment/execution_environment.cpp``.
    """
    shown: dict[int, list[str]] = {}
    for entry in map(str.strip, mask.split(",")):
        if re.fullmatch("[0-9]+" if flat else r"[0-9]+(\.[0-9]+)*", entry):
            shown.setdefault(int(entry.partition(".")[0]), []).append(entry)
    return [",".join(dict.fromkeys(shown[number])) for number in sorted(shown)]


def mark_hidden(
    devices: Sequence[DeviceInfo], environment: Mapping[str, str], files: Files
) -> tuple[list[DeviceInfo], list[Missing]]:
    """The devices of a node with ``hidden`` and ``visible_as`` filled in, and notes on what is undecided.

    Args:
        devices: those of each vendor in the driver's order.
        environment: the environment variables of this process.
    """
    notes: list[Missing] = []
    marked = {device.device_id: device for device in devices}
    for vendor, mark in _MARKS.items():
        own = [device for device in devices if device.kind == "gpu" and device.vendor is vendor]
        own = [replace(device, hidden=_closed(files, _device_files(device, files))) for device in own]
        marked |= {device.device_id: device for device in own}
        usable = [device for device in own if device.hidden is None]
        if usable:
            marked |= {device.device_id: device for device in mark(usable, environment, files, notes)}
    return list(marked.values()), notes


def _nvidia(
    gpus: list[DeviceInfo], environment: Mapping[str, str], files: Files, notes: list[Missing]
) -> list[DeviceInfo]:
    """Apply NVIDIA_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES and the device files of MIG instances.

    With ``void`` and ``none`` NVIDIA's container runtime grants no GPU, though a privileged container sees
    all. Unless CUDA_DEVICE_ORDER is PCI_BUS_ID, CUDA gives index 0 to the GPU that it considers fastest:
    with GPUs of one model the order is NVML's, with several models only CUDA knows it.
    """
    granted = environment.get("NVIDIA_VISIBLE_DEVICES")
    if granted in ("void", "none"):
        return [replace(gpu, hidden=f"is hidden by NVIDIA_VISIBLE_DEVICES={granted}") for gpu in gpus]
    gpus = [_with_instances(gpu, files) for gpu in gpus]
    value, order = environment.get("CUDA_VISIBLE_DEVICES"), environment.get("CUDA_DEVICE_ORDER")
    # The model of a lost GPU is unknown: assume one of the others'.
    order_known = order == "PCI_BUS_ID" or len({gpu.name for gpu in gpus} - {UNNAMED}) <= 1
    if value is None:
        # Whether CUDA counts a lost GPU is not documented; UUIDs do not depend on it.
        lost = any(gpu.name == UNNAMED and gpu.uuid is None for gpu in gpus)
        as_nvml = order in (None, "PCI_BUS_ID") and not lost
        if as_nvml and all(gpu.index == number for number, gpu in enumerate(gpus)):
            return gpus
        entries = [str(number) if order_known and not lost else gpu.uuid for number, gpu in enumerate(gpus)]
        return [replace(gpu, visible_as=entry) for gpu, entry in zip(gpus, entries, strict=True)]
    variable = f"CUDA_VISIBLE_DEVICES={value}"
    if value.startswith("MIG-"):
        return _instances_shown(gpus, variable)
    names = [(gpu.uuid,) if gpu.uuid else () for gpu in gpus]
    if value.startswith("GPU-") and () in names:
        ids = value.split(",")
        known = [id for id in ids if _match(id, names) is not None]
        if len(known) < len(ids):  # the others may be GPUs of unknown UUID
            notes.append(_undecided(variable, "NVIDIA", "UUIDs are unknown"))
            shown = cuda_visible(",".join(known), names)
            return [
                _shown_or_hidden(gpu, shown.get(number), variable) if gpu.uuid else gpu
                for number, gpu in enumerate(gpus)
            ]
    shown = cuda_visible(value, names)
    if shown and not order_known and not value.startswith("GPU-"):
        if len(shown) < len(gpus):
            why = "CUDA counts the fastest first, and the models differ"
            notes.append(_undecided(variable, "NVIDIA", why, "export CUDA_DEVICE_ORDER=PCI_BUS_ID"))
        return [replace(gpu, visible_as=gpu.uuid) for gpu in gpus]
    return [_shown_or_hidden(gpu, shown.get(number), variable) for number, gpu in enumerate(gpus)]


def _shown_or_hidden(gpu: DeviceInfo, entry: str | None, variable: str) -> DeviceInfo:
    if entry is None:
        return replace(gpu, hidden=gpu.hidden or f"is hidden by {variable}")
    return replace(gpu, visible_as=entry)


def _undecided(variable: str, vendor: str, why: str, fix: str | None = None) -> Missing:
    return Missing(what=f"which {vendor} GPUs {variable} shows", why=why, fix=fix)


def _with_instances(gpu: DeviceInfo, files: Files) -> DeviceInfo:
    """The GPU with its MIG instances marked by their device files; hidden if all of them are."""
    if not gpu.mig_instances:
        return gpu
    instances = tuple(
        replace(instance, hidden=_closed(files, _capabilities(gpu, instance, files), os.R_OK))
        for instance in gpu.mig_instances
    )
    all_hidden = all(instance.hidden for instance in instances)
    return replace(gpu, mig_instances=instances, hidden=instances[0].hidden if all_hidden else None)


def _instances_shown(gpus: list[DeviceInfo], variable: str) -> list[DeviceInfo]:
    """Apply a variable with ids of MIG instances to the GPUs.

    An id is MIG-<UUID> or MIG-<UUID of the GPU>/<GPU instance>/<compute instance>.

    Source: NVIDIA, "Multi-Instance GPU User Guide", section "CUDA Device Enumeration".
    """
    names = [
        {m.uuid, f"MIG-{gpu.uuid}/{m.gpu_instance_id}/{m.compute_instance_id}"}
        for gpu in gpus
        for m in gpu.mig_instances
    ]
    shown = cuda_visible(variable.partition("=")[2], names)
    found, first = [], 0
    for gpu in gpus:
        entries: dict[str, str] = {}
        instances = []
        for number, instance in enumerate(gpu.mig_instances, first):
            if number in shown:
                entries[instance.uuid] = shown[number]
            elif instance.hidden is None:
                instance = replace(instance, hidden=f"is hidden by {variable}")
            instances.append(instance)
        first += len(instances)
        gpu = replace(gpu, mig_instances=tuple(instances))
        best = gpu.best_instance
        found.append(_shown_or_hidden(gpu, None if best is None else entries[best.uuid], variable))
    return found


def _amd(
    gpus: list[DeviceInfo], environment: Mapping[str, str], files: Files, notes: list[Missing]
) -> list[DeviceInfo]:
    """Apply ROCR_VISIBLE_DEVICES to the GPUs in KFD's order, then HIP_VISIBLE_DEVICES to those it shows.

    HIP reads CUDA_VISIBLE_DEVICES if HIP_VISIBLE_DEVICES is not set. Only OpenCL reads GPU_DEVICE_ORDINAL,
    contrary to AMD's "GPU isolation techniques" (source: clr, ``rocclr/device/rocm/rocdevice.cpp``). An empty
    value hides nothing from HIP but everything from PyTorch, which is what counts here.
    """
    order, uuids = _kfd_order(gpus, files)
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"
    entries = {number: str(number) for number in range(len(order))}  # by index in ``order``
    hidden: dict[int, str] = {}
    for name, read in (("ROCR_VISIBLE_DEVICES", rocr_visible), (hip, hip_visible)):
        value = environment.get(name)
        if value is None:
            continue
        variable = f"{name}={value}"
        if "GPU-" in value.upper() and not any(uuids):
            notes.append(_undecided(variable, "AMD", "UUIDs are unknown"))
            return gpus
        left = list(entries)
        shown = read(value, [uuids[number] for number in left])
        hidden |= {number: variable for index, number in enumerate(left) if index not in shown}
        # Launch hints set HIP_VISIBLE_DEVICES, whose indexes count the GPUs that ROCR shows.
        names = shown.values() if name == hip else map(str, range(len(shown)))
        entries = {left[index]: entry for index, entry in zip(shown, names, strict=True)}
    return [
        _shown_or_hidden(gpu, entries.get(number), hidden.get(number, ""))
        for number, gpu in enumerate(order)
        if gpu is not None
    ]


def _kfd_order(gpus: list[DeviceInfo], files: Files) -> tuple[list[DeviceInfo | None], list[str | None]]:
    """The GPUs in ROCR's order (None for one that is not among ``gpus``), and their UUIDs in ROCR.

    ROCR's order is that of the nodes in KFD's topology. If those do not include each of ``gpus``, AMD SMI's
    order is used, without UUIDs.
    """
    folder = "sys/class/kfd/kfd/topology/nodes"
    own = {gpu.pci_slot: gpu for gpu in gpus}
    order: list[DeviceInfo | None] = []
    uuids: list[str | None] = []
    for node in files.numbered(folder, ""):
        numbers = {
            name: int(text)
            for name, text in _fields(files, f"{folder}/{node}/properties").items()
            if text.isdecimal()
        }
        minor, location = numbers.get("drm_render_minor"), numbers.get("location_id", 0)
        if not numbers.get("simd_count") or (minor and _closed(files, iter([f"dev/dri/renderD{minor}"]))):
            continue  # a CPU, or closed to this process
        address = f"{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
        order.append(own.get(f"{numbers.get('domain', 0):04x}:{address}"))
        uuids.append(f"GPU-{numbers['unique_id']:016x}" if numbers.get("unique_id") else None)
    if sorted(gpu.device_id for gpu in order if gpu) == [gpu.device_id for gpu in gpus]:
        return order, uuids
    return list(gpus), [None] * len(gpus)


def _intel(
    gpus: list[DeviceInfo], environment: Mapping[str, str], files: Files, notes: list[Missing]
) -> list[DeviceInfo]:
    """Set the entries of ZE_AFFINITY_MASK. No GPU is marked hidden: torch.xpu lists visible GPUs only."""
    selector, mask = environment.get("ONEAPI_DEVICE_SELECTOR", ""), environment.get("ZE_AFFINITY_MASK", "")
    if re.search("[0-9]", selector):
        why = "its numbers count what ZE_AFFINITY_MASK shows, and are not read here"
        variable = f"ONEAPI_DEVICE_SELECTOR={selector}"
        notes.append(_undecided(variable, "Intel", why, "choose them with ZE_AFFINITY_MASK"))
    if mask in ("", "default"):
        return gpus
    flat = environment.get("ZE_FLAT_DEVICE_HIERARCHY") != "COMPOSITE"
    entries = level_zero_entries(mask, flat=flat)
    if len(entries) < len(gpus):
        notes.append(_undecided(f"ZE_AFFINITY_MASK={mask}", "Intel", f"torch sees {len(gpus)}"))
        return gpus
    # Surplus entries are the highest: those of devices that do not exist.
    return [replace(gpu, visible_as=entry) for gpu, entry in zip(gpus, entries, strict=False)]


_MARKS = {HardwareVendor.NVIDIA: _nvidia, HardwareVendor.AMD: _amd, HardwareVendor.INTEL: _intel}


def _device_files(device: DeviceInfo, files: Files) -> Iterator[str]:
    """The files through which a runtime opens the device, as far as sysfs and procfs show them."""
    if device.vendor is HardwareVendor.NVIDIA:
        minor = _nvidia_minor(device, files)
        if minor is not None:
            yield f"dev/nvidia{minor}"
        return
    renders = files.numbered(f"sys/bus/pci/devices/{device.pci_slot}/drm", "renderD")
    if renders and device.vendor is HardwareVendor.AMD:
        yield "dev/kfd"
    yield from (f"dev/dri/renderD{number}" for number in renders)


def _nvidia_minor(device: DeviceInfo, files: Files) -> str | None:
    return _fields(files, f"proc/driver/nvidia/gpus/{device.pci_slot}/information").get("Device Minor")


def _capabilities(gpu: DeviceInfo, instance: MigInstance, files: Files) -> Iterator[str]:
    """The device files that give access to a MIG instance.

    Source: NVIDIA, "Multi-Instance GPU User Guide", section "Device Nodes and Capabilities".
    """
    folder = (
        f"proc/driver/nvidia/capabilities/gpu{_nvidia_minor(gpu, files)}/mig/gi{instance.gpu_instance_id}"
    )
    for name in (f"{folder}/access", f"{folder}/ci{instance.compute_instance_id}/access"):
        minor = _fields(files, name).get("DeviceFileMinor")
        if minor is not None:
            yield f"dev/nvidia-caps/nvidia-cap{minor}"


def _fields(files: Files, name: str) -> dict[str, str]:
    """Parse a file of lines "key: value" or "key value"."""
    lines = (
        re.split(r":\s*|\s+(?=\S+$)", line, maxsplit=1) for line in (files.text(name) or "").splitlines()
    )
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def _closed(files: Files, names: Iterator[str], mode: int = os.R_OK | os.W_OK) -> str | None:
    """Why a device is hidden: one of its files is missing or cannot be opened. None if all can.

    access(2) checks the device cgroup (v1 and v2) as open(2) does (Linux, ``inode_permission``), but does not
    wake the device.
    """
    for name in names:
        if not files.exists(name):
            return f"is hidden: /{name} is not there"
        if not os.access(files.path(name), mode):
            return f"is hidden: /{name} may not be opened (its permissions or a device cgroup)"
    return None
