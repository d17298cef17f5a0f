"""What only Slurm knows of a job: ``options["slurm"]`` of its specification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..checks import check_text, check_texts, refuse_unknown
from ..spec import TrainingJobSpec

MOST_INDICES = 10_000
_FLAG = re.compile(r"(--?[A-Za-z][A-Za-z0-9-]*)(?:(=| +)(.*))?")
_OURS = {
    "--array": "use the option array",
    "--nodes": "use the job's nodes",
    "--time": "use the job's time",
    "--job-name": "use the job's name",
    "--requeue": "use restart_policy",
    "--no-requeue": "use restart_policy Never",
    "--export": "use inherit_env",
    **dict.fromkeys(
        (
            *("--ntasks", "--ntasks-per-node", "--output", "--open-mode", "--comment", "--chdir", "--signal"),
            *("--wrap", "--export-file", "--parsable", "--test-only", "--wait", "--help", "--usage"),
            "--version",
        ),
        "the job needs its own",
    ),
}
_COMMON = (
    "partition",
    "account",
    "qos",
    "constraint",
    "gres",
    "exclude",
    "dependency",
    "reservation",
    "array",
)
_COMMON_SHORT = {
    "-p": "partition",
    "-A": "account",
    "-q": "qos",
    "-C": "constraint",
    "-x": "exclude",
    "-d": "dependency",
}
_SHORT = {"-a": "--array", "-N": "--nodes", "-t": "--time", "-J": "--job-name", "-n": "--ntasks"}
_SHORT |= {"-o": "--output", "-D": "--chdir", "-W": "--wait", "-h": "--help", "-V": "--version"}


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Options of sbatch, as a user gave them."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    exclude: str | None = None
    dependency: str | None = None
    array: str | None = None
    """Such as ``0-3`` or ``1,4-10:2%2``: a job folder by index."""
    reservation: str | None = None
    sbatch: tuple[str, ...] = ()
    """Any other options, such as ``--exclusive`` or ``--mail-type=END``."""

    def common(self) -> dict[str, str]:
        """Those with names of their own that were given."""
        return {name: value for name in _COMMON if (value := getattr(self, name)) is not None}


def options_of(spec: TrainingJobSpec) -> SlurmOptions:
    """The options, checked. Common ones among ``sbatch`` count as if given by their own names.

    Raises:
        TypeError, ValueError: one is unknown, has the wrong type, or is not the user's to set.
    """
    given: Mapping[str, Any] = spec.options.get("slurm", {})
    refuse_unknown(given, [item.name for item in fields(SlurmOptions)], "options.slurm")
    values = {name: value for name, value in given.items() if value is not None}
    flags = []
    for flag in check_texts("options.slurm.sbatch", values.pop("sbatch", [])):
        name, _, value = flag_of(flag)
        common = _COMMON_SHORT.get(name, name.removeprefix("--"))
        if common in _COMMON:
            values[common] = value or ""
        else:
            flags.append(flag)
    for name, value in values.items():
        if re.search("[\n\r]", check_text(f"options.slurm.{name}", value)):
            raise ValueError(f"options.slurm.{name} must be one line, got {value!r}")
    options = SlurmOptions(**values, sbatch=tuple(flags))
    if options.array is not None:
        indices_of(options.array)
    return options


def flag_of(flag: str) -> tuple[str, str, str | None]:
    """Name, sign between (``=``, a blank or nothing) and value of an option as one would type it.

    Raises:
        ValueError: it is none, has a line break, or is not the user's to set.
    """
    found = _FLAG.fullmatch(flag)
    if found is None or "\n" in flag or "\r" in flag:
        raise ValueError(f"options.slurm.sbatch must be options such as '--exclusive', got {flag!r}")
    name, sign, value = found.groups()
    if name.startswith("--"):
        # sbatch takes the beginning of a name for the name.
        owned = name if name in _OURS else next((ours for ours in _OURS if ours.startswith(name)), None)
    else:
        owned = _SHORT.get(name[:2])
        if len(name) > 2:
            raise ValueError(f"options.slurm.sbatch: write {flag!r} with a blank after {name[:2]}")
    if owned is not None:
        raise ValueError(f"options.slurm.sbatch must not have {flag!r}: {_OURS[owned]}")
    return name, " " if sign and sign != "=" else sign or "", value


def indices_of(array: str) -> tuple[int, ...]:
    """The indices of an array such as ``1,4-10:2%2``.

    Raises:
        ValueError: it is none, an index is there twice, or there are too many.
    """
    found: list[int] = []
    tasks, _, most_at_once = array.partition("%")
    for part in tasks.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", part)
        if match is None or ("%" in array and not re.fullmatch("[1-9][0-9]{0,8}", most_at_once)):
            raise ValueError(f"array must be indices such as 0-3 or 1,4-10:2%2, got {array!r}")
        first, last, step = (int(text) if text else None for text in match.groups())
        assert first is not None
        span = range(first, (first if last is None else last) + 1, step or 1)
        if not span or step == 0:
            raise ValueError(f"array must not have empty ranges, got {array!r}")
        if len(found) + len(span) > MOST_INDICES:
            raise ValueError(f"array must have at most {MOST_INDICES} indices, got {array!r}")
        found += span
    if len(set(found)) < len(found):
        raise ValueError(f"array must not have an index twice, got {array!r}")
    return tuple(found)
