"""Specifications in files, and times, sizes and numbers of nodes as users write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from .checks import check_choice, check_mapping, refuse_unknown
from .formats import read_json, read_yaml
from .spec import TARGETS, ResourceRequirement, TrainingJobSpec

_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
_UNITS = re.compile("".join(f"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _SECONDS))
_CLOCK = re.compile(r"(?:(?P<d>[0-9]{1,6})-)?(?P<h>[0-9]{1,6})(?::(?P<m>[0-9]{2}))?(?::(?P<s>[0-9]{2}))?")
_SIZE = re.compile(rf"({_NUMBER}) ?([KMGTP])(i?)B?", re.IGNORECASE)
_TIMES = "such as 4h, 90m, 1h30m, 2:30:00 or 1-12:00:00"


def parse_time(text: str) -> float:
    """Seconds of a duration: ``4h``, ``90m``, ``1h30m``, or Slurm's ``2:30:00``, ``1-12``, ``1-12:00:00``.

    Raises:
        ValueError: anything else, also a number without a unit and ``2:30``, which is read in two ways.
    """
    text = text.strip()
    if re.fullmatch("[0-9]+:[0-9]{2}", text):
        first, second = text.split(":")
        raise ValueError(
            f"time {text!r} could be hours or minutes: write {first}h{second}m or {first}m{second}s"
        )
    found = _UNITS.fullmatch(text.lower()) or _CLOCK.fullmatch(text)
    clock = found is not None and found.re is _CLOCK
    parts = {unit: Fraction(value) for unit, value in found.groupdict().items() if value} if found else {}
    if not parts or (clock and "d" not in parts and "s" not in parts):
        fix = f"; give it a unit, as in {text}m" if text.isdecimal() else ""
        raise ValueError(f"time must be {_TIMES}, got {text!r}{fix}")
    if clock and (
        parts.get("m", 0) > 59 or parts.get("s", 0) > 59 or (parts.get("h", 0) > 23 and "d" in parts)
    ):
        raise ValueError(f"time {text!r} has more than 23 hours in a day, or 59 minutes or seconds")
    seconds = sum(value * _SECONDS[unit] for unit, value in parts.items())
    if not seconds:
        raise ValueError(f"time must be positive, got {text!r}")
    return float(seconds)


def parse_size(text: str) -> int:
    """Bytes: ``64G`` is 64e9, ``64Gi`` is 64 * 2**30; K, M, G, T and P, with or without a B.

    Raises:
        ValueError: anything else, also a number without a unit.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"size must be a number and a unit, such as 64G (64e9 bytes) or 64Gi, got {text!r}")
    number, unit, binary = found.groups()
    power = "KMGTP".index(unit.upper()) + 1
    unit_bytes: int = (1024 if binary else 1000) ** power
    return round(Fraction(number) * unit_bytes)


def parse_nodes(text: str) -> tuple[int, int]:
    """Fewest and most nodes: ``2`` or ``2:4``.

    Raises:
        ValueError: anything else, 0, or more at least than at most.
    """
    found = re.fullmatch("([0-9]{1,9})(?::([0-9]{1,9}))?", text.strip())
    if found is None:
        raise ValueError(f"nodes must be a number or min:max, such as 2 or 2:4, got {text!r}")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most:
        raise ValueError(f"nodes must be at least 1, and min not more than max, got {text!r}")
    return least, most


_ALIASES = {"time": "max_runtime_hours", "checkpoint_every": "checkpoint_interval_minutes"}
_AS_TEXT: dict[str, Callable[[str], object]] = {
    "max_runtime_hours": lambda text: parse_time(text) / 3600,
    "checkpoint_interval_minutes": lambda text: parse_time(text) / 60,
    "nodes": parse_nodes,
    **dict.fromkeys(("gpu_memory_gb", "memory_gb", "storage_gb"), lambda text: parse_size(text) / 1e9),
}
"""Fields that may be written with a unit, or as ``min:max``."""
OF_SUBMISSION = ("to", "inherit_env")
"""What else a file may say: where the job runs, and whether it gets the environment of ``submit``."""


def load_spec(path: str | Path) -> TrainingJobSpec:
    """The specification in a YAML (``.yaml``, ``.yml``) or JSON (``.json``) file: see :func:`spec_of`.

    ``to`` and ``inherit_env`` are checked and left out: they are arguments of :meth:`.Jobs.submit`.

    Raises:
        Unavailable: it is YAML and PyYAML is not installed.
        OSError: it cannot be read.
        ValueError: its content is not a valid specification. The message begins with the path.
    """
    values = read_file(path)
    try:
        return spec_of({name: value for name, value in values.items() if name not in OF_SUBMISSION})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_file(path: str | Path) -> dict[str, Any]:
    """The values in a file, checked one by one but not whether they fit together, nor whether all are there.

    The names are those of TrainingJobSpec, and ``to`` and ``inherit_env``; ``time`` and ``checkpoint_every``
    have become fields too.

    Raises:
        Unavailable, OSError, ValueError: as of :func:`load_spec`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"{path} must end in .yaml, .yml or .json")
    try:
        content = (read_json if suffix == ".json" else read_yaml)(path.read_bytes(), path.name)
        if not isinstance(content, dict):
            raise ValueError(f"must be a mapping of names to values, got {type(content).__name__}")
        how = {name: content.pop(name) for name in OF_SUBMISSION if name in content}
        if "to" in how:
            check_choice("to", how["to"], TARGETS)
        if "inherit_env" in how:
            how["inherit_env"] = _typed(how["inherit_env"], bool, "inherit_env")
        return {**_fields_of(TrainingJobSpec, content, ""), **how}
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def override(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A file's values with others over them, such as a command line's. Mappings are merged key by key.

    Where ``options`` change nodes, their ranks or their GPUs, the sizes that follow from these are dropped.

    Args:
        values: as :func:`read_file` returns them.
        options: likewise.
    """
    stale = set()
    if options.keys() & {"nodes", "ranks_per_node", "gpus_per_node"}:
        stale = {"world_size", "data_parallel_size"}
    result = {key: value for key, value in values.items() if key not in stale}
    for key, value in options.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = override(below, value) if both else value  # type: ignore[arg-type]
    return result


def spec_of(values: Mapping[str, Any]) -> TrainingJobSpec:
    """A specification from plain values, such as those of :func:`override`.

    What is not given has the default of TrainingJobSpec, but ``job_id``, ``image`` and all resources are
    None, and ``world_size`` is the most nodes times the ranks of each, of which there are as many as GPUs,
    else 1.

    Raises:
        TypeError, ValueError: as of TrainingJobSpec, or a key is unknown or missing.
    """
    given = _fields_of(TrainingJobSpec, values, "")
    if missing := [name for name in ("name", "command") if name not in given]:
        raise ValueError(f"{missing[0]} is missing")
    nothing = dict.fromkeys(item.name for item in fields(ResourceRequirement))
    resources = ResourceRequirement(**{**nothing, **given.get("resources", {})})
    if "world_size" not in given:
        most = max(1, (given.get("nodes") or (1, 1))[1])
        gpus = given.get("gpus_per_node")
        if gpus is None:
            gpus = (resources.gpu_count or 0) // most
        given["world_size"] = most * (given.get("ranks_per_node") or gpus or 1)
    return TrainingJobSpec(**{"job_id": None, "image": None, **given, "resources": resources})


def _fields_of(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a dataclass's fields, each of its type."""
    aliases = _ALIASES if kind is TrainingJobSpec else {}
    hints = {item.name: get_type_hints(kind)[item.name] for item in fields(kind)}
    refuse_unknown(values, [*hints, *aliases], where)
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = aliases.get(key, key)
        if name in found or (name != key and name in values):
            raise ValueError(f"{key} and {name} are the same: give one of them")
        path = f"{where}.{key}" if where else key
        if name == "nodes" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if name != key and not isinstance(value, str):
            raise ValueError(f"{path} must be a text with its unit, {_TIMES}, got {value!r:.80}")
        if isinstance(value, str) and name in _AS_TEXT:
            try:
                value = _AS_TEXT[name](value)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        found[name] = _typed(value, hints[name], path)
    return found


def _typed(value: Any, hint: Any, path: str) -> Any:
    """A value, checked against a type hint; the message has the path down to the key."""
    if get_origin(hint) in (UnionType, Union):
        if value is None:
            return None
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if isinstance(value, Mapping):
        if hint is ResourceRequirement:
            return _fields_of(hint, value, path)
        if get_origin(hint) is Mapping:
            below = get_args(hint)[1]
            return {
                key: _typed(item, below, f"{path}.{key}") for key, item in check_mapping(path, value).items()
            }
    if hint is Any:
        return value
    try:
        return msgspec.convert(value, dict if hint is ResourceRequirement else hint)
    except msgspec.ValidationError as error:
        raise TypeError(_reworded(str(error), path)) from None


_KINDS = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"}
_KINDS |= {"array": "a list", "object": "a mapping", "null": "null"}


def _reworded(message: str, path: str) -> str:
    """msgspec's message, with the whole path first. Without the value, which may be secret."""
    message, _, inner = message.partition(" - at `$")
    path += inner.removesuffix("`")
    found = re.fullmatch("Expected `(.+)`, got `(.+)`", message)
    if found is None:
        return f"{path}: {message[0].lower()}{message[1:]}"
    expected, got = (_KINDS.get(kind, kind) for kind in found.groups())
    fix = "; quote it" if found[1] == "str" and found[2] in ("int", "float", "bool") else ""
    return f"{path} must be {expected}, got {got}{fix}"
