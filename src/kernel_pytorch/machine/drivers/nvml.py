"""NVML, NVIDIA's management library, through nvidia-ml-py (source: NVIDIA, "NVML API Reference Guide")."""

from __future__ import annotations

from typing import Any

from ..facts import Missing
from .driver import DriverAbsentError, DriverUnavailableError

_LIBRARY_NOT_FOUND = 12
_INSTALL = "install NVIDIA's driver; start a container with its GPUs (--gpus all)"
_INIT_FIXES = {
    4: "run as root, or as one who may read and write /dev/nvidia*",
    9: f"modprobe nvidia, or {_INSTALL}",
    17: "under WSL 2 bring Windows' driver up to date and call wsl --shutdown; " + _INSTALL,
    18: "the driver was updated while it ran: reboot, or unload its modules and load them again (rmmod "
    "nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia); start containers anew",
}
"""By NVML's error code (nvmlReturn_t)."""


class Nvml:
    """NVML, initialised, with the handles of all GPUs that it opens.

    Raises:
        DriverUnavailableError: no nvidia-ml-py, no driver, or no permission.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise DriverAbsentError(
                "nvidia-ml-py is not installed", "pip install 'dilated-attention-pytorch[nvidia]'"
            ) from error
        self.api: Any = pynvml
        self.missing: list[Missing] = []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            code: int = getattr(error, "value", 0)
            kind = DriverAbsentError if code == _LIBRARY_NOT_FOUND else DriverUnavailableError
            raise kind(f"NVML: {error}", _INIT_FIXES.get(code, _INSTALL)) from error
        self.handles: dict[int, Any] = {}
        """By NVML's number, which counts a GPU that cannot be opened too."""
        self.lost: dict[int, str] = {}
        """Why a GPU that NVML counts cannot be opened, by NVML's number."""
        for index in range(self.ask("count", "nvmlDeviceGetCount") or 0):
            try:
                self.handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
            except pynvml.NVMLError_NoPermission as error:  # another's: CUDA does not count it
                fix = "let the container or the job have this GPU"
                self.missing.append(Missing(what=f"NVIDIA GPU {index}", why=f"NVML: {error}", fix=fix))
            except pynvml.NVMLError as error:
                self.lost[index] = f"NVML: {error}"

    def close(self) -> None:
        self.maybe("nvmlShutdown")

    def ask(self, what: str, function: str, *arguments: Any) -> Any:
        """The answer of an NVML function; None, and a note in ``missing``, if it refuses."""
        try:
            return getattr(self.api, function)(*arguments)
        except self.api.NVMLError as error:
            permission = isinstance(error, self.api.NVMLError_NoPermission)
            note = Missing(
                what=f"NVIDIA GPU: {what}",
                why=f"NVML: {error}",
                fix="run as root" if permission else None,
            )
            if note not in self.missing:
                self.missing.append(note)
            return None

    def maybe(self, function: str, *arguments: Any) -> Any:
        """As :meth:`ask`, without a note: for what many GPUs do not have."""
        try:
            return getattr(self.api, function)(*arguments)
        except self.api.NVMLError:
            return None

    def field(self, handle: Any, field: int) -> int | None:
        """An integer field value (``NVML_FI_...``)."""
        values = self.maybe("nvmlDeviceGetFieldValues", handle, [field])
        if not values or values[0].nvmlReturn != self.api.NVML_SUCCESS:
            return None
        members = {
            self.api.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
            self.api.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
            self.api.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
            self.api.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        }
        member = members.get(values[0].valueType)
        return None if member is None else int(getattr(values[0].value, member))


def scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
