"""How large a kernel's blocks are: a default for each architecture, or the fastest on this device.

Every default for 16-bit numbers of head_dim up to 128 compiles without spilling to memory: benchmarks/results
has the table. Larger blocks reuse more of what they load and need more registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton

from .visits import Visits

Blocks = dict[str, Any]
"""BLOCK_ROWS, BLOCK_COLUMNS, ONCE, num_warps, num_stages."""

FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")

# (rows, columns, warps, stages) by the bytes of a number and d, up to that d; for each of FAMILIES.
_DEFAULTS: dict[str, dict[tuple[int, int], tuple[tuple[int, int, int, int], ...]]] = {
    "forward_kernel": {
        (2, 32): ((128, 32, 4, 3), (128, 64, 8, 3), (128, 64, 8, 3), (128, 64, 8, 3)),
        (2, 64): ((128, 64, 8, 3), (128, 64, 8, 3), (64, 32, 4, 3), (128, 64, 8, 3)),
        (2, 128): ((64, 64, 8, 2), (128, 64, 8, 2), (128, 32, 8, 2), (128, 32, 8, 2)),
        (2, 256): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
        (4, 32): ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2)),
        (4, 64): ((64, 16, 8, 2), (64, 16, 8, 2), (64, 16, 8, 2), (64, 32, 4, 2)),
        (4, 128): ((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1), (32, 32, 4, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 4, 1)),
    },
    "query_gradient_kernel": {
        (2, 32): ((64, 64, 4, 3), (128, 64, 8, 2), (64, 64, 4, 3), (128, 64, 8, 2)),
        (2, 64): ((64, 32, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2)),
        (2, 128): ((64, 32, 4, 2), (128, 32, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2)),
        (2, 256): ((64, 32, 8, 1), (64, 32, 8, 1), (64, 32, 8, 1), (32, 16, 4, 1)),
        (4, 32): ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 2)),
        (4, 64): ((64, 16, 8, 2), (64, 16, 8, 2), (64, 16, 8, 2), (64, 32, 4, 2)),
        (4, 128): ((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1), (32, 16, 4, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 4, 1)),
    },
    "key_gradient_kernel": {
        (2, 32): ((64, 32, 4, 3), (64, 64, 8, 2), (64, 32, 4, 2), (64, 32, 4, 2)),
        (2, 64): ((32, 64, 4, 2), (64, 64, 8, 2), (64, 64, 8, 2), (64, 32, 4, 2)),
        (2, 128): ((32, 32, 4, 2), (32, 64, 4, 2), (32, 64, 4, 2), (64, 32, 4, 2)),
        (2, 256): ((16, 32, 4, 1), (16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
        (4, 32): ((32, 16, 4, 2), (32, 16, 4, 2), (32, 16, 4, 2), (64, 32, 4, 2)),
        (4, 64): ((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1), (64, 32, 4, 2)),
        (4, 128): ((32, 16, 4, 1), (32, 16, 4, 1), (32, 16, 4, 1), (32, 16, 4, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 4, 1)),
    },
}

_INTERPRETED = (16, 16, 1, 1)  # what the interpreter takes per operation hardly depends on the size

# Not one more than pays: a pattern's first call compiles and measures all of them, with ONCE and without.
_CANDIDATES = (
    (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 8, 2),
    (64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2),
)  # fmt: skip


def default_blocks(kernel: Any, visits: Visits, item_bytes: int, head_dim: int, family: str | None) -> Blocks:
    """What runs where tuning does not pay.

    Args:
        kernel: of forward.py or backward.py.
        visits: the branches.
        item_bytes: of a number of query, key and value.
        head_dim: d.
        family: one of ``FAMILIES``; None: the interpreter.
    """
    if family is None:
        return _blocks(_INTERPRETED, scores_once(visits, _INTERPRETED[1]))
    limit = next(limit for limit in (32, 64, 128, 256) if head_dim <= limit)
    chosen = _DEFAULTS[kernel.__name__][item_bytes, limit][FAMILIES.index(family)]
    return _blocks(chosen, scores_once(visits, chosen[1]))


def scores_once(visits: Visits, columns: int) -> bool:
    """Whether to score a key once for all branches: where its phases fill blocks of ``columns``."""
    shared = [
        w // (r * phases)
        for w, r, phases in zip(visits.segments, visits.rates, visits.phases, strict=True)
        if phases > 1
    ]
    return bool(shared) and min(shared) >= 2 * columns


def _blocks(sizes: Sequence[int], once: bool) -> Blocks:
    names = ("BLOCK_ROWS", "BLOCK_COLUMNS", "num_warps", "num_stages")
    return {**dict(zip(names, sizes, strict=True)), "ONCE": once}


@cache
def family_of(device: torch.device) -> str:
    """The member of ``FAMILIES`` whose defaults a device gets."""
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    # Others, sm_120 among them, have the shared memory of sm_80's relatives.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def is_worth_tuning(programs: int, device: torch.device) -> bool:
    """Whether a launch fills the device several times, and may take what was fastest when measured.

    Not under ``torch.use_deterministic_algorithms``: other blocks add up in another order.
    """
    if triton.knobs.runtime.interpret or torch.are_deterministic_algorithms_enabled():
        return False
    return programs >= 4 * torch.cuda.get_device_properties(device).multi_processor_count


@cache
def tuned(kernel: Any) -> Any:
    """The kernel with the blocks that are fastest for its pattern, head_dim, dtypes and causality.

    Measured at the first call of its kind and kept on disk, in Triton's cache.
    """

    def worth_measuring(configs: list[Any], named: dict[str, Any], **constants: Any) -> list[Any]:
        """The default, and the candidates that differ in more than a ``ONCE`` without effect."""
        visits, query = constants["VISITS"], named["query"]
        family = None if triton.knobs.runtime.interpret else family_of(query.device)
        head_dim = constants["HEAD_DIM"]
        default = _config(default_blocks(kernel, visits, query.element_size(), head_dim, family))
        some = [config for config in configs if any(visits.absorbed) or not config.kwargs["ONCE"]]
        return [default, *(config for config in some if config != default)]

    return triton.autotune(
        [_config(_blocks(sizes, once)) for sizes in _CANDIDATES for once in (True, False)],
        key=["VISITS", "HEAD_DIM", "CAUSAL", "PRECISION"],
        prune_configs_by={"early_config_prune": worth_measuring},
        cache_results=not triton.knobs.runtime.interpret,
    )(kernel)


def _config(blocks: Blocks) -> Any:
    options = {name: blocks[name] for name in ("num_warps", "num_stages")}
    return triton.Config({name: x for name, x in blocks.items() if name not in options}, **options)
