"""NVML, NVIDIA's management library, through nvidia-ml-py (source: NVIDIA, "NVML API Reference Guide")."""

from __future__ import annotations

from typing import Any

from ..facts import Missing
from .driver import DriverUnavailableError


class Nvml:
    """NVML, initialised, with the handles of all GPUs that it opens.

    Raises:
        DriverUnavailableError: no nvidia-ml-py, no driver, or no permission.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise DriverUnavailableError(
                "nvidia-ml-py is not installed", "pip install 'dilated-attention-pytorch[nvidia]'"
            ) from error
        self.api: Any = pynvml
        self.missing: list[Missing] = []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise DriverUnavailableError(
                f"NVML: {error}", "install NVIDIA's driver; start a container with its GPUs (--gpus all)"
            ) from error
        count = self.ask("count", "nvmlDeviceGetCount") or 0
        found = ((index, self.ask(f"{index}", "nvmlDeviceGetHandleByIndex", index)) for index in range(count))
        self.handles: dict[int, Any] = {index: handle for index, handle in found if handle is not None}
        """By NVML's number, which counts a GPU that cannot be opened too."""

    def close(self) -> None:
        self.api.nvmlShutdown()

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
