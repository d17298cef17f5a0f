"""Which files of sysfs hold a CPU package's temperature and energy."""

from __future__ import annotations

from collections.abc import Sequence

from ..files import Files

_HWMON = "sys/class/hwmon"
_THERMAL = "sys/class/thermal"
_POWERCAP = "sys/class/powercap"


def temperature_files(files: Files, package_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """For each package that has any, its temperature files, in thousandths of a degree Celsius.

    Source: the kernel's hwmon drivers coretemp (Intel) and k10temp (AMD), else thermal zones x86_pkg_temp.
    Sensors that do not name their package count as in the packages' order, if they divide evenly.
    """
    named: dict[int, tuple[str, ...]] = {}
    unnamed: list[str] = []
    for number in files.numbered(_HWMON, "hwmon"):
        folder = f"{_HWMON}/hwmon{number}"
        driver = files.text(f"{folder}/name")
        labels = _labels(files, folder)
        if driver == "coretemp":
            for package_id in package_ids:
                if label := labels.get(f"Package id {package_id}"):
                    named[package_id] = (label,)
        elif driver in ("k10temp", "zenpower"):
            own = labels.get("Tdie") or labels.get("Tctl")  # Tctl is made up for the fan on some models
            unnamed += [own or f"{folder}/temp1_input"]
    if named:
        return named
    if not unnamed:
        zones = (f"{_THERMAL}/thermal_zone{zone}" for zone in files.numbered(_THERMAL, "thermal_zone"))
        unnamed = [f"{zone}/temp" for zone in zones if files.text(f"{zone}/type") == "x86_pkg_temp"]
    each, rest = divmod(len(unnamed), len(package_ids)) if package_ids else (0, 0)
    if not each or rest:
        return {}
    return {
        package_id: tuple(unnamed[each * place : each * (place + 1)])
        for place, package_id in enumerate(package_ids)
    }


def _labels(files: Files, folder: str) -> dict[str, str]:
    """The input file for each label of a hwmon device."""
    found = {}
    for name in files.names(folder):
        if name.startswith("temp") and name.endswith("_label") and (label := files.text(f"{folder}/{name}")):
            found[label] = f"{folder}/{name.removesuffix('_label')}_input"
    return found


def energy_zones(files: Files, package_ids: Sequence[int]) -> dict[int, str]:
    """For each package its folder of running average power limits (Linux: power/powercap/powercap.rst)."""
    found = {}
    for name in files.names(_POWERCAP):
        label = files.text(f"{_POWERCAP}/{name}/name") or ""
        package = label.removeprefix("package-")
        if name.startswith("intel-rapl:") and label != package and package.isdecimal():
            found[int(package)] = f"{_POWERCAP}/{name}"
    return {package_id: found[package_id] for package_id in package_ids if package_id in found}
