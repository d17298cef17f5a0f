"""Checks of a specification's values: TypeError for a wrong type, ValueError for a wrong value."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


def check_whole(name: str, value: object, least: int | None = None) -> int:
    """An integer, not below ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {_shown(value)}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_amount(name: str, value: object) -> None:
    """A finite number that is not negative."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def check_duration(name: str, value: object, most: float) -> None:
    """A number above 0 and at most ``most``."""
    check_amount(name, value)
    if not 0 < value <= most:  # type: ignore[operator]
        raise ValueError(f"{name} must be positive and at most {most:g}, got {value}")


def check_text(name: str, value: object, *, show: bool = True, empty: bool = False) -> str:
    """A string that a process can be given: no NUL; bytes that are not UTF-8 by ``surrogateescape``.

    Args:
        name: of the argument.
        value: the string.
        show: whether the message may have it.
        empty: whether it may be empty or blank.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {_shown(value) if show else type(value).__name__}")
    got = f", got {value!r}" if show else ""
    if "\0" in value:
        raise ValueError(f"{name} must not contain NUL{got}")
    if not empty and not value.strip():
        raise ValueError(f"{name} must not be empty{got}")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{name} has a surrogate that stands for no byte{got}") from None
    return value


def check_texts(name: str, values: object, *, empty: bool = False) -> list[str]:
    """A list of strings, copied. ``empty``: as in :func:`check_text`."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a list of strings, got {_shown(values)}")
    return [check_text(f"{name}[{number}]", value, empty=empty) for number, value in enumerate(values)]


def check_mapping(name: str, values: object) -> Mapping[str, Any]:
    """A mapping with strings as keys."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping, got {_shown(values)}")
    for key in values:
        check_text(f"a key of {name}", key, empty=True)
    return values


def check_choice(name: str, value: object, valid: Collection[str]) -> None:
    """One of a few words."""
    if value not in valid:
        raise ValueError(f"{name} must be {' or '.join(valid)}, got {value!r}")


def plain_copy(name: str, value: object) -> Any:
    """A copy of what JSON can hold: strings, finite numbers, booleans, None, lists and mappings."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return check_text(name, value, empty=True)
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return value
    if isinstance(value, Mapping):
        return {key: plain_copy(f"{name}.{key}", item) for key, item in check_mapping(name, value).items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain_copy(f"{name}[{number}]", item) for number, item in enumerate(value)]
    raise TypeError(f"{name} must be a string, number, boolean, list or mapping, got {type(value).__name__}")


def refuse_unknown(keys: Iterable[object], valid: Collection[str], where: str = "") -> None:
    """ValueError for the first key that is not valid; names the nearest one that is, or all.

    Args:
        keys: what was given.
        valid: what may be given.
        where: what the keys are in, such as ``resources``.
    """
    for key in keys:
        if key not in valid:
            near = get_close_matches(str(key), valid, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(sorted(valid))}"
            raise ValueError(f"unknown key {key!r}{f' in {where}' if where else ''}: {fix}")


def _shown(value: object) -> str:
    return f"{type(value).__name__} ({value!r:.80})"
