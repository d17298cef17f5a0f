"""What runs of a model showed: data, without torch. :mod:`.observe` makes it, :mod:`.findings` reads it.

Places are FILE:LINE of the user's code, see :mod:`.blame`; counts are per call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BreakCause = Literal["item", "print", "branch", "log", "dynamic shape", "disabled", "other"]
RecompileCause = Literal["length", "value"]
CopyCause = Literal["stored", "unneeded", "repeated"]
"""stored: of a parameter or buffer. unneeded: its readers take any strides. repeated: of one tensor again."""


@dataclass(frozen=True, kw_only=True)
class GraphBreak:
    """A line at which torch.compile splits the graph."""

    place: str
    cause: BreakCause
    reason: str
    """Dynamo's, its first line."""
    hint: str = ""
    """Dynamo's first hint; "": it has none."""
    statement: str = ""
    """Source of the line's statement; "": unknown."""


@dataclass(frozen=True, kw_only=True)
class Recompile:
    """Code that torch.compile compiles again for each length, or for each call."""

    place: str
    cause: RecompileCause
    guard: str
    """The condition that failed."""
    statement: str = ""


@dataclass(frozen=True, kw_only=True)
class HostSync:
    """A call for which the host waits for the device."""

    place: str
    call: str
    """As ".item()"."""
    calls: int
    statement: str = ""


@dataclass(frozen=True, kw_only=True)
class Float64Use:
    """Where float64 enters a model of a lower precision."""

    place: str
    operators: int
    """That computed in float64 from there on."""
    bytes: int
    """Of their results."""


@dataclass(frozen=True, kw_only=True)
class RepeatedCopy:
    """A copy that every call makes and need not."""

    place: str
    cause: CopyCause
    calls: int
    bytes: int
    """Of all copies of a call."""
    name: str = ""
    """The parameter or buffer copied; "": it is neither."""
    statement: str = ""


@dataclass(frozen=True, kw_only=True)
class RebuiltConstant:
    """A tensor that every call computes anew from sizes alone, as a causal mask."""

    place: str
    operators: int
    bytes: int
    """Of all their results."""
    shape: tuple[int, ...]
    """Of the largest."""
    statement: str = ""


@dataclass(frozen=True, kw_only=True)
class PythonLoop:
    """Equal small operators of one call site, over parts of a tensor or over experts."""

    place: str
    """Of the loop statement."""
    last_line: int
    """Of its body."""
    operator: str
    """The one called most, as "linear"."""
    calls: int
    """Of that operator."""
    shape: tuple[int, ...]
    """Of its result."""
    over: Literal["slices", "weights"]
    """slices: of one tensor, as its tokens. weights: other ones in each round on inputs that do not depend on
    the round before, as experts."""


@dataclass(frozen=True, kw_only=True)
class ConvolutionLayout:
    """Convolutions that were given another layout than channels_last."""

    place: str
    """Of the first."""
    calls: int
    of: int
    """Two-dimensional convolutions in a call."""
    bytes: int
    """Of their inputs and results, which are reordered."""


@dataclass(frozen=True, kw_only=True)
class Differing:
    """Outputs that differ between two calls with equal inputs in eval mode."""

    place: str
    """Of the first random operator; "": there is none, the model keeps state."""
    operator: str
    """As "dropout"; "": there is none."""
    difference: float
    """RMS of the difference over the RMS of the outputs."""
    submodule: str = ""
    """The submodule in training mode that ran it; ""."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What runs of copies of a model showed."""

    breaks: tuple[GraphBreak, ...] = ()
    recompiles: tuple[Recompile, ...] = ()
    syncs: tuple[HostSync, ...] = ()
    float64: tuple[Float64Use, ...] = ()
    copies: tuple[RepeatedCopy, ...] = ()
    rebuilt: tuple[RebuiltConstant, ...] = ()
    loops: tuple[PythonLoop, ...] = ()
    layout: ConvolutionLayout | None = None
    differing: Differing | None = None
    optimizer_place: str = ""
    """Of the function that makes the optimizer; "": unknown."""
    lengths: tuple[int, ...] = ()
    """At which the model was run compiled, beside its own."""
    unobserved: tuple[str, ...] = ()
    """What could not be looked at, and why."""
