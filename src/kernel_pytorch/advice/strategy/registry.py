"""All strategies: those built in, and those that other packages register. Imports torch."""

from __future__ import annotations

from importlib.metadata import entry_points

from .channels_last import ChannelsLast
from .checkpointing import BUDGETS, SHARES, Checkpointing, MemoryBudget
from .compile import Compile, CompileBlocks, CompileDynamic
from .conv_batch_norm import FoldedBatchNorms
from .cuda_graphs import CudaGraphs
from .freezing import Freezing
from .fused_optimizer import FusedOptimizer
from .fused_projections import FusedProjections
from .inference_mode import InferenceMode
from .liger import Liger
from .max_autotune import MaxAutotune
from .precision import Autocast, Bfloat16Weights
from .protocol import Strategy
from .quantize import DynamicInt8, WeightInt8
from .threads import Threads

GROUP = "kernel_pytorch.strategies"
broken: list[str] = []
"""One line for each entry point that the last call of :func:`strategies` could not use."""


def built_in() -> list[Strategy]:
    """Fresh objects of this package's strategies, from equal results to fewer bits."""
    from .attention import AttentionToSDPA

    return [
        AttentionToSDPA(),
        Threads(),
        FusedProjections(),
        ChannelsLast(),
        FoldedBatchNorms(),
        InferenceMode(),
        FusedOptimizer(),
        *map(Checkpointing, SHARES),
        Compile(),
        CompileBlocks(),
        CompileDynamic(),
        Freezing(),
        *map(MemoryBudget, BUDGETS),
        CudaGraphs(),
        Liger(),
        MaxAutotune(),
        Autocast(),
        Bfloat16Weights(),
        DynamicInt8(),
        WeightInt8(),
    ]


def strategies() -> list[Strategy]:
    """Fresh objects of all strategies: built in, then registered, by name. See :data:`broken`."""
    found, broken[:] = built_in(), []
    names = {strategy.name for strategy in found}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            strategy = point.load()()
            if not isinstance(strategy, Strategy):
                raise TypeError("it is no Strategy: name, level, lossless, needs, applies, apply, source")
            if strategy.name in names:
                raise ValueError(f"there is another strategy named {strategy.name!r}")
        except Exception as error:  # whatever another package raises must not end the run
            says = str(error).splitlines() or [""]
            broken.append(f"strategy {point.name} ({point.value}): {type(error).__name__}: {says[0]}")
            continue
        names.add(strategy.name)
        found.append(strategy)
    return found
