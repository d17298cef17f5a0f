"""FLOPs of a call, by submodule and by operator. Imports torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from ..sample import Sample
from .runs import Step, step_of, survey
from .survey import Survey


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Of one call. A multiplication and an addition are two; what is no product is not counted."""

    total: int
    by_module: dict[str, int]
    """By path, with all that a submodule contains, its backward pass too; "": the model."""
    by_operator: dict[str, int]
    by_dtype: dict[str, int]
    attention: int
    """Of the products before and after a softmax, and of fused attention; a causal mask is not regarded."""
    hidden: dict[str, int]
    """Those of ``by_dtype`` that fused attention leaves out, as a causal mask hides them."""
    remarks: tuple[str, ...] = ()
    """What is not counted; none: the counts are exact."""

    @property
    def attention_share(self) -> float:
        """Of the total; 0 if that is 0."""
        return self.attention / self.total if self.total else 0.0


def count_flops(
    model: nn.Module, sample: Sample, *, training: bool = False, step: Step | None = None
) -> FlopCount:
    """FLOPs of one call.

    The model, its inputs and the generators stay as they are.

    Args:
        step: the call; None: forward without gradients or, if ``training``, forward, the mean square of the
            floating outputs, and backward.

    Raises:
        Exception: of whatever kind, if the model fails on the sample, or cannot be copied.
    """
    return flops_of(survey(model, sample, step or step_of(training)))


def flops_of(found: Survey) -> FlopCount:
    """FLOPs of the operators noted."""
    by_module, by_operator, by_dtype, hidden = (Counter[str]() for _ in range(4))
    for operation in found.operations:
        if operation.flops:
            by_operator[operation.name] += operation.flops
            by_dtype[operation.dtype] += operation.flops
            hidden[operation.dtype] += operation.flops // 2 if operation.causal else 0
            for path in operation.modules:
                by_module[path] += operation.flops
    return FlopCount(
        total=by_operator.total(),
        by_module=dict(by_module),
        by_operator=dict(by_operator.most_common()),
        by_dtype=dict(by_dtype.most_common()),
        attention=sum(each.flops for each in found.operations if each.attention),
        hidden={dtype: count for dtype, count in hidden.items() if count},
        remarks=tuple(f"{name} is not counted" for name in found.uncounted),
    )
