"""AMD GPUs through AMD SMI (source: AMD, "AMD SMI Python API reference")."""

from __future__ import annotations

from typing import Any

from ..facts import DeviceInfo, DeviceLink, HardwareVendor, LinkKind, Missing, PciLink
from ..files import Files
from ..host.pci import numa_node_of
from ..readings import DeviceReading
from .driver import DriverAbsentError, DriverUnavailableError

_GENERATIONS = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}
"""PCIe generation by transfers a second (MT/s)."""


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
            raise DriverAbsentError(
                "amdsmi is not installed", "pip install 'dilated-attention-pytorch[amd]'"
            ) from error
        except (OSError, KeyError, AttributeError) as error:
            # A library that lacks a function is there, and of another version.
            kind = DriverUnavailableError if isinstance(error, AttributeError) else DriverAbsentError
            raise kind(
                f"amdsmi: libamd_smi.so: {error}", "install ROCm's amd-smi-lib of amdsmi's version"
            ) from error
        self._api: Any = amdsmi
        try:
            amdsmi.amdsmi_init()
            self._handles = amdsmi.amdsmi_get_processor_handles()
        except amdsmi.AmdSmiException as error:
            raise DriverUnavailableError(
                f"AMD SMI: {error}", "load the amdgpu driver; be in the groups video and render"
            ) from error

    @property
    def missing(self) -> list[Missing]:
        return self._missing

    def close(self) -> None:
        self._ask("shut_down")

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._api, f"amdsmi_{function}")(*arguments)
        except self._api.AmdSmiException:
            return None

    def _number(self, function: str, *arguments: Any, key: str, scale: float = 1) -> float | None:
        """A number of a dictionary that AMD SMI gives; "N/A" is None."""
        value = (self._ask(function, *arguments) or {}).get(key)
        return value * scale if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def indices(self) -> list[int]:
        return list(range(len(self._handles)))

    def devices(self) -> list[DeviceInfo]:
        return [self._device(index, handle) for index, handle in enumerate(self._handles)]

    def _device(self, index: int, handle: Any) -> DeviceInfo:
        asic = self._ask("get_gpu_asic_info", handle) or {}
        undescribed = Missing(what=f"AMD GPU {index}", why="AMD SMI does not describe it")
        if not asic and undescribed not in self._missing:
            self._missing.append(undescribed)
        address = self._ask("get_gpu_device_bdf", handle)
        clocks = self._api.AmdSmiClkType
        return DeviceInfo(
            device_id=index,
            kind="gpu",
            index=index,
            vendor=HardwareVendor.AMD,
            name=_text(asic.get("market_name")) or "AMD GPU",
            uuid=self._ask("get_gpu_device_uuid", handle),
            architecture=_text(asic.get("target_graphics_version")),
            memory_bytes=self._ask("get_gpu_memory_total", handle, self._api.AmdSmiMemoryType.VRAM),
            compute_units=_integer(asic.get("num_compute_units")),
            boost_clock_mhz=_integer(self._number("get_clock_info", handle, clocks.GFX, key="max_clk")),
            memory_clock_mhz=_integer(self._number("get_clock_info", handle, clocks.MEM, key="max_clk")),
            power_limit_w=self._cap(handle, "power_cap"),
            power_limit_min_w=self._cap(handle, "min_power_cap"),
            power_limit_max_w=self._cap(handle, "max_power_cap"),
            pci=None if address is None else self._pci(handle, address.lower()),
            numa_node=numa_node_of(self._files, address.lower() if address else None),
        )

    def _cap(self, handle: Any, key: str) -> float | None:
        return self._number("get_power_cap_info", handle, key=key, scale=1e-6)  # microwatts

    def _pci(self, handle: Any, address: str) -> PciLink:
        info = self._ask("get_pcie_info", handle) or {}
        now, most = info.get("pcie_metric", {}), info.get("pcie_static", {})
        return PciLink(
            address=address,
            generation=_GENERATIONS.get(now.get("pcie_speed")),
            generation_max=_GENERATIONS.get(most.get("max_pcie_speed")),
            width=_integer(now.get("pcie_width")),
            width_max=_integer(most.get("max_pcie_width")),
        )

    def links(self) -> list[DeviceLink]:
        """xGMI where there is some, else the PCI bus, by NUMA node."""
        xgmi = int(self._api.AmdSmiLinkType.AMDSMI_LINK_TYPE_XGMI)
        addresses = [self._ask("get_gpu_device_bdf", handle) for handle in self._handles]
        numas = [numa_node_of(self._files, address.lower() if address else None) for address in addresses]
        found = []
        for b, theirs in enumerate(self._handles):
            for a, ours in enumerate(self._handles[:b]):
                link = self._ask("topo_get_link_type", ours, theirs)
                if link is not None and int(link["type"]) == xgmi:
                    found.append(DeviceLink(a=a, b=b, kind=LinkKind.NVLINK))
                elif numas[a] is not None and numas[b] is not None:
                    kind = LinkKind.HOST_BRIDGE if numas[a] == numas[b] else LinkKind.SOCKET
                    found.append(DeviceLink(a=a, b=b, kind=kind))
        return found

    def read(self, index: int) -> DeviceReading:
        handle, types = self._handles[index], self._api.AmdSmiTemperatureType
        clocks, vram = self._api.AmdSmiClkType, self._api.AmdSmiMemoryType.VRAM
        power = self._number("get_power_info", handle, key="current_socket_power")
        if power is None:
            power = self._number("get_power_info", handle, key="average_socket_power")
        energy = self._ask("get_energy_count", handle)
        pcie = (self._ask("get_pcie_info", handle) or {}).get("pcie_metric", {})
        pages = self._ask("get_gpu_bad_page_info", handle)
        return DeviceReading(
            temperature_c=self._temperature(handle, types.HOTSPOT),
            memory_temperature_c=self._temperature(handle, types.VRAM),
            power_w=power,
            power_limit_w=self._cap(handle, "power_cap"),
            utilization=self._number("get_gpu_activity", handle, key="gfx_activity", scale=1e-2),
            memory_used_bytes=self._ask("get_gpu_memory_usage", handle, vram),
            sm_clock_mhz=self._number("get_clock_info", handle, clocks.GFX, key="clk"),
            memory_clock_mhz=self._number("get_clock_info", handle, clocks.MEM, key="clk"),
            energy_j=None
            if energy is None
            else energy["energy_accumulator"] * energy["counter_resolution"] * 1e-6,
            ecc_corrected=_integer(self._number("get_gpu_total_ecc_count", handle, key="correctable_count")),
            ecc_uncorrected=_integer(
                self._number("get_gpu_total_ecc_count", handle, key="uncorrectable_count")
            ),
            retired_pages=len(pages) if isinstance(pages, list) else None,
            pcie_replays=_integer(pcie.get("pcie_replay_count")),
        )

    def _temperature(self, handle: Any, sensor: Any) -> float | None:
        value = self._ask("get_temp_metric", handle, sensor, self._api.AmdSmiTemperatureMetric.CURRENT)
        return float(value) if isinstance(value, (int, float)) else None


def _text(value: Any) -> str | None:
    return None if value == "N/A" else value


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
