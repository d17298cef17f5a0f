"""NVML, NVIDIA's management library, through nvidia-ml-py (source: NVIDIA, "NVML API Reference Guide")."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from ..facts import Missing
from .driver import DriverAbsentError, DriverUnavailableError, note

# nvmlReturn_t and nvmlValueType_t
_NOT_SUPPORTED, _LIBRARY_NOT_FOUND, _FUNCTION_NOT_FOUND = 3, 12, 13
_VALUE_MEMBERS = {1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
_OLD_BINDING = "nvidia-ml-py does not have it", "pip install -U nvidia-ml-py"
_OLD_DRIVER = "the driver does not have it", "update NVIDIA's driver"
_NO_MEMORY = SimpleNamespace(total=0, used=None)
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
            raise DriverAbsentError("nvidia-ml-py is not installed", "pip install nvidia-ml-py") from error
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
        """The answer of an NVML function; None, and a note in ``missing``, if there is none."""
        return self._answer((function,), arguments, what)

    def maybe(self, function: str, *arguments: Any) -> Any:
        """As :meth:`ask`, without a note if NVML refuses: for what many GPUs do not have."""
        return self._answer((function,), arguments, None)

    def renamed(self, new: str, old: str, *arguments: Any) -> Any:
        """As :meth:`maybe`, for a function that drivers and bindings have under either name."""
        return self._answer((new, old), arguments, None)

    def _answer(
        self,
        functions: tuple[str, ...],
        arguments: tuple[Any, ...],
        what: str | None,
        unsupported: Any = None,
    ) -> Any:
        """The answer of the first function that there is; ``unsupported`` if NVML says that of it."""
        absent = None
        for function in () if None in arguments else functions:  # None: a constant that the binding lacks
            if not hasattr(self.api, function):
                absent = _OLD_BINDING
                continue
            try:
                answer = getattr(self.api, function)(*arguments)
                return answer.decode() if isinstance(answer, bytes) else answer  # bytes before version 11.5
            except self.api.NVMLError as error:
                code = getattr(error, "value", None)
                if code == _FUNCTION_NOT_FOUND:
                    absent = _OLD_DRIVER
                    continue
                if code == _NOT_SUPPORTED and unsupported is not None:
                    return unsupported
                if what is not None:
                    permission = isinstance(error, self.api.NVMLError_NoPermission)
                    self._note(what, f"NVML: {error}", "run as root" if permission else None)
            except Exception as error:  # of the binding: text that is no text, a changed structure
                self._note(what or function, f"nvidia-ml-py raised {type(error).__name__}: {error}")
            return None
        if absent is not None:
            self._note(what or functions[0], *absent)
        return None

    def _note(self, what: str, why: str, fix: str | None = None) -> None:
        note(self.missing, f"NVIDIA GPU: {what}", why, fix)

    def constant(self, name: str) -> Any:
        """A constant of the binding; None, and a note, if it is too old to have it."""
        if not hasattr(self.api, name):
            self._note(name, *_OLD_BINDING)
        return getattr(self.api, name, None)

    def memory(self, handle: Any) -> Any:
        """``total`` and ``used`` memory in bytes, as nvidia-smi shows them; None, and a note, if unknown.

        ``used`` leaves out what the driver keeps for itself, if driver (510) and binding tell them apart.
        A GPU without memory of its own (GB10), which does not support the question, has a total of 0.
        """
        with suppress(Exception):  # what is wrong but the version, the older question meets too
            return self.api.nvmlDeviceGetMemoryInfo(handle, self.api.nvmlMemory_v2)
        return self._answer(("nvmlDeviceGetMemoryInfo",), (handle,), "memory", unsupported=_NO_MEMORY)

    def field(self, handle: Any, name: str) -> Any:
        """The integer of the field that the binding calls ``name`` (``NVML_FI_...``)."""
        field = self.constant(name)
        values = None if field is None else self.maybe("nvmlDeviceGetFieldValues", handle, [field])
        if not isinstance(values, ctypes.Array) or values[0].nvmlReturn != 0:
            return None
        return getattr(values[0].value, _VALUE_MEMBERS.get(values[0].valueType, ""), None)
