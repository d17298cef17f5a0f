"""Which files of sysfs hold a CPU package's temperature and energy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..files import Files, whole

_HWMON = "sys/class/hwmon"
_THERMAL = "sys/class/thermal"
_POWERCAP = "sys/class/powercap"
# Names of thermal zones, best first: x86; device trees, whose names are not standardised, for the CPUs
# (cpu-thermal, CPU-therm, cpuss0-thermal, cluster1-thermal, bigcore0-thermal), else for the whole chip
# (soc_thermal, package-thermal).
_ZONES = ("x86_pkg_temp", "cpu|cpuss|cluster|cls|big|little|bigcore|littlecore", "soc|package")


def temperature_files(files: Files, package_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Temperature files, in thousandths of a degree Celsius, by package id; packages without any are absent.

    Source: the hwmon drivers coretemp (Intel) and k10temp (AMD), else thermal zones, else the hwmon devices
    that the kernel makes of thermal zones. Unlabelled sensors are assigned to packages in order, if their
    number is a multiple of the packages'.
    """
    labelled: dict[int, tuple[str, ...]] = {}
    unlabelled: list[str] = []
    for number in files.numbered(_HWMON, "hwmon"):
        folder = f"{_HWMON}/hwmon{number}"
        driver = files.text(f"{folder}/name")
        labels = _labels(files, folder)
        if driver == "coretemp":
            for package_id in package_ids:
                if label := labels.get(f"Package id {package_id}"):
                    labelled[package_id] = (label,)
        elif driver in ("k10temp", "zenpower"):
            own = labels.get("Tdie") or labels.get("Tctl")  # on some models Tctl has an offset for the fan
            unlabelled += [own or f"{folder}/temp1_input"]
    if labelled:
        return labelled
    for words in _ZONES if not unlabelled else ():
        for sensors in (_zones(files), _hwmon_inputs(files)):
            unlabelled = unlabelled or [
                name for kind, name in sensors if re.search(f"(?<![a-z])({words})(?![a-z])", kind.lower())
            ]
    each, rest = divmod(len(unlabelled), len(package_ids)) if package_ids else (0, 0)
    if not each or rest:
        return {}
    return {
        package_id: tuple(unlabelled[each * index : each * (index + 1)])
        for index, package_id in enumerate(package_ids)
    }


def why_no_temperature(files: Files) -> str:
    """The reason to give when no package temperature could be read."""
    kinds = sorted({kind for sensors in (_zones(files), _hwmon_inputs(files)) for kind, _ in sensors})
    if not kinds:
        return "no sensor in /sys/class/hwmon or /sys/class/thermal"
    return f"none of the sensors {', '.join(kinds)} could be read as that of a CPU package"


def _zones(files: Files) -> Iterator[tuple[str, str]]:
    """Type and temperature file of each thermal zone."""
    for number in files.numbered(_THERMAL, "thermal_zone"):
        zone = f"{_THERMAL}/thermal_zone{number}"
        yield files.text(f"{zone}/type") or "?", f"{zone}/temp"


def _hwmon_inputs(files: Files) -> Iterator[tuple[str, str]]:
    """Driver and file of each hwmon temperature."""
    for number in files.numbered(_HWMON, "hwmon"):
        folder = f"{_HWMON}/hwmon{number}"
        for name in files.names(folder):
            if re.fullmatch("temp[0-9]+_input", name):
                yield files.text(f"{folder}/name") or "?", f"{folder}/{name}"


def _labels(files: Files, folder: str) -> dict[str, str]:
    """The temperature files of a hwmon device by label."""
    found = {}
    for name in files.names(folder):
        if name.startswith("temp") and name.endswith("_label") and (label := files.text(f"{folder}/{name}")):
            found[label] = f"{folder}/{name.removesuffix('_label')}_input"
    return found


def energy_zones(files: Files, package_ids: Sequence[int]) -> dict[int, str]:
    """RAPL folders (running average power limit) by package id (Linux: power/powercap/powercap.rst)."""
    found = {}
    for name in files.names(_POWERCAP):
        label = files.text(f"{_POWERCAP}/{name}/name") or ""
        package = label.removeprefix("package-")
        number = whole(package)
        if name.startswith("intel-rapl:") and label != package and number is not None:
            found[number] = f"{_POWERCAP}/{name}"
    return {package_id: found[package_id] for package_id in package_ids if package_id in found}
