"""AMD GPUs through AMD SMI (source: AMD, "AMD SMI Python API reference")."""

from __future__ import annotations

from typing import Any

from ..facts import DeviceInfo, DeviceLink, HardwareVendor, LinkKind, Missing, PciLink
from ..files import Files
from ..host.pci import numa_node_of
from ..readings import DeviceReading
from .driver import DriverAbsentError, DriverUnavailableError, host_memory_bytes, note, scaled, text

_GENERATIONS = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}
"""PCIe generation by transfers a second (MT/s)."""
_MICRO = 1e-6
_UPDATE = "install amdsmi of the version of the ROCm that is installed"


class AmdDriver:
    """The GPUs that AMD SMI shows.

    Raises:
        DriverUnavailableError: no amdsmi, no driver, or no permission.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._missing: list[Missing] = []
        try:
            import amdsmi
        except ImportError as error:
            raise DriverAbsentError("amdsmi is not installed", "pip install amdsmi") from error
        except Exception as error:  # whatever the binding meets in a library of another version
            # A library that lacks a function is there, and of another version.
            kind = DriverAbsentError if isinstance(error, (OSError, KeyError)) else DriverUnavailableError
            raise kind(
                f"amdsmi: libamd_smi.so: {error}", "install ROCm's amd-smi-lib of amdsmi's version"
            ) from error
        self._api: Any = amdsmi
        try:
            amdsmi.amdsmi_init()
            self._handles = amdsmi.amdsmi_get_processor_handles()
        except Exception as error:  # AmdSmiException, or the binding's own
            raise DriverUnavailableError(
                f"AMD SMI: {error}", "load the amdgpu driver; be in the groups video and render"
            ) from error

    @property
    def missing(self) -> list[Missing]:
        return self._missing

    def close(self) -> None:
        self._ask("shut_down")

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer of a function; None for "N/A" and a refusal, with a note if it is absent or raises."""
        call = getattr(self._api, f"amdsmi_{function}", None)
        if call is None:
            note(self._missing, f"AMD GPU: amdsmi_{function}", "amdsmi does not have it", _UPDATE)
        if call is None or None in arguments:
            return None
        try:
            answer = call(*arguments)
        except self._api.AmdSmiException:
            return None
        except Exception as error:  # of the binding: text that is no text, a changed structure or argument
            why = f"amdsmi raised {type(error).__name__}: {error}"
            note(self._missing, f"AMD GPU: amdsmi_{function}", why)
            return None
        return None if answer == "N/A" else answer

    def _fields(self, function: str, *arguments: Any) -> dict[str, Any]:
        """The dictionary that a function gives."""
        return _known(self._ask(function, *arguments))

    def _member(self, enumeration: str, *names: str) -> Any:
        """A member of an enumeration, by any name it has had; None, and a note, if it is absent."""
        members = getattr(self._api, enumeration, None)
        found = [getattr(members, name) for name in names if hasattr(members, name)]
        if not found:
            note(self._missing, f"AMD GPU: {enumeration}.{names[0]}", "amdsmi does not have it", _UPDATE)
        return found[0] if found else None

    @property
    def indices(self) -> list[int]:
        return list(range(len(self._handles)))

    def devices(self) -> list[DeviceInfo]:
        return [self._device(index, handle) for index, handle in enumerate(self._handles)]

    def _device(self, index: int, handle: Any) -> DeviceInfo:
        asic = self._fields("get_gpu_asic_info", handle)
        if not asic:
            note(self._missing, f"AMD GPU {index}", "AMD SMI does not describe it")
        pci = self._pci(handle)
        total = self._memory("get_gpu_memory_total", handle)
        caps = self._fields("get_power_cap_info", handle)
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.AMD,
            name=text(asic.get("market_name")) or "AMD GPU",
            uuid=text(self._ask("get_gpu_device_uuid", handle)),
            architecture=text(asic.get("target_graphics_version")),
            memory_bytes=host_memory_bytes(self._files)[0] if total == 0 else total,
            memory_shared=total == 0,
            compute_units=asic.get("num_compute_units"),
            boost_clock_mhz=self._clock(handle, "GFX").get("max_clk"),
            memory_clock_mhz=self._clock(handle, "MEM").get("max_clk"),
            power_limit_w=scaled(caps.get("power_cap"), _MICRO),
            power_limit_min_w=scaled(caps.get("min_power_cap"), _MICRO),
            power_limit_max_w=scaled(caps.get("max_power_cap"), _MICRO),
            pci=pci,
            numa_node=numa_node_of(self._files, pci.address if pci else None),
        )

    def _memory(self, function: str, handle: Any) -> Any:
        return self._ask(function, handle, self._member("AmdSmiMemoryType", "VRAM"))

    def _clock(self, handle: Any, name: str) -> dict[str, Any]:
        return self._fields("get_clock_info", handle, self._member("AmdSmiClkType", name))

    def _address(self, handle: Any) -> str | None:
        address = text(self._ask("get_gpu_device_bdf", handle))
        return None if address is None else address.lower()

    def _pci(self, handle: Any) -> PciLink | None:
        address, info = self._address(handle), self._fields("get_pcie_info", handle)
        now, most = _known(info.get("pcie_metric")), _known(info.get("pcie_static"))
        if address is None:
            return None
        return PciLink(
            address=address,
            generation=_generation(now.get("pcie_speed")),
            generation_max=_generation(most.get("max_pcie_speed")),
            width=now.get("pcie_width"),
            width_max=most.get("max_pcie_width"),
        )

    def links(self) -> list[DeviceLink]:
        """xGMI where there is some, else the PCI bus, by NUMA node."""
        # Before ROCm 7 the types are AmdSmiIoLinkType's; AmdSmiLinkType has other numbers for them.
        if hasattr(self._api, "AmdSmiIoLinkType"):
            xgmi = self._member("AmdSmiIoLinkType", "XGMI")
        else:
            xgmi = self._member("AmdSmiLinkType", "AMDSMI_LINK_TYPE_XGMI")
        if xgmi is None:
            return []
        numas = [numa_node_of(self._files, self._address(handle)) for handle in self._handles]
        found = []
        for b, theirs in enumerate(self._handles):
            for a, ours in enumerate(self._handles[:b]):
                if self._fields("topo_get_link_type", ours, theirs).get("type") == xgmi:
                    found.append(DeviceLink(a=a, b=b, kind=LinkKind.NVLINK))
                elif numas[a] is not None and numas[b] is not None:
                    kind = LinkKind.HOST_BRIDGE if numas[a] == numas[b] else LinkKind.SOCKET
                    found.append(DeviceLink(a=a, b=b, kind=kind))
        return found

    def read(self, index: int) -> DeviceReading:
        handle = self._handles[index]
        power, energy = self._fields("get_power_info", handle), self._fields("get_energy_count", handle)
        core, memory = self._clock(handle, "GFX"), self._clock(handle, "MEM")
        ecc = self._fields("get_gpu_total_ecc_count", handle)
        retired, pending, failed = self._pages(handle)
        shared = self._memory("get_gpu_memory_total", handle) == 0
        used = self._memory("get_gpu_memory_usage", handle)
        return DeviceReading(
            temperature_c=self._temperature(handle, "HOTSPOT", "JUNCTION"),
            memory_temperature_c=self._temperature(handle, "VRAM"),
            power_w=power.get("current_socket_power", power.get("average_socket_power")),
            power_limit_w=scaled(self._fields("get_power_cap_info", handle).get("power_cap"), _MICRO),
            utilization=scaled(self._fields("get_gpu_activity", handle).get("gfx_activity"), 1e-2),
            memory_used_bytes=host_memory_bytes(self._files)[1] if shared else used,
            sm_clock_mhz=core.get("clk", core.get("cur_clk")),  # ROCm 6.1, and before
            memory_clock_mhz=memory.get("clk", memory.get("cur_clk")),
            energy_j=_energy_j(energy),
            ecc_corrected=ecc.get("correctable_count"),
            ecc_uncorrected=ecc.get("uncorrectable_count"),
            retired_pages=retired,
            remap_failed=failed,
            remap_pending=pending,
            pcie_replays=_known(self._fields("get_pcie_info", handle).get("pcie_metric")).get(
                "pcie_replay_count"
            ),
        )

    def _pages(self, handle: Any) -> tuple[int | None, bool | None, bool | None]:
        """How many are retired; whether some still wait for it; whether it failed for some."""
        pages = self._ask("get_gpu_bad_page_info", handle)
        if not isinstance(pages, list):
            return None, None, None
        status = "AmdSmiMemoryPageStatus"
        states = [_known(page).get("status") for page in pages]
        if None in states:
            return len(pages), None, None
        pending, failed = self._member(status, "PENDING"), self._member(status, "UNRESERVABLE")
        return len(pages), pending in states, failed in states

    def _temperature(self, handle: Any, *sensors: str) -> Any:
        sensor = self._member("AmdSmiTemperatureType", *sensors)
        return self._ask(
            "get_temp_metric", handle, sensor, self._member("AmdSmiTemperatureMetric", "CURRENT")
        )


def _known(value: Any) -> dict[str, Any]:
    """A dictionary of AMD SMI without what it calls "N/A"; empty for anything else."""
    return {key: item for key, item in value.items() if item != "N/A"} if isinstance(value, dict) else {}


def _generation(transfers: Any) -> int | None:
    return _GENERATIONS.get(transfers) if type(transfers) is int else None


def _energy_j(counter: dict[str, Any]) -> Any:
    """The accumulator, called power before ROCm 6.1, times the resolution in microjoules."""
    resolution = scaled(counter.get("counter_resolution"), _MICRO)
    accumulator = counter.get("energy_accumulator", counter.get("power"))
    return scaled(accumulator, resolution) if type(resolution) is float else resolution
