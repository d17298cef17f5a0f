"""All facts of a model and its call. Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from ..facts import Fact, ModelFacts, Roofline, TensorInfo, unknown
from ..sample import Sample
from . import costs, granted, others
from .attempt import Attempt
from .calls import Calls, synchronizer, time_calls
from .flops import FlopCount, flops_of
from .parameters import dtype_name, parameters
from .places import place_of_class
from .profile import RUNS, Profile, profile
from .roofline import bound, roofline
from .runs import survey
from .survey import Survey
from .traffic import traffic_of

if TYPE_CHECKING:
    from ..prove.task import Task

SLOW_S = 0.5
"""A call that takes longer is profiled once."""


def analyse(
    task: Task, *, deadline: float = math.inf, clock: Callable[[], float] = time.monotonic
) -> ModelFacts:
    """Everything that can be said of a task; what cannot is None, with the reason.

    The task's model, its inputs and torch's generators stay as they are: a copy runs. See :class:`.Attempt`
    for models that cannot be copied.

    Args:
        deadline: by ``clock``, after which no further costly part begins.
    """
    with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
        return _facts(task, Attempt(task, deadline=deadline, clock=clock))


def _facts(task: Task, attempt: Attempt) -> ModelFacts:
    held = parameters(task.model)
    synchronize = synchronizer(task.device)
    calls = attempt.part(
        "timing",
        lambda: time_calls(
            lambda inputs: attempt.step(attempt.model, inputs), task.sample, synchronize=synchronize
        ),
    )
    call, noise = (calls.call, calls.noise) if isinstance(calls, Calls) else (unknown(calls),) * 2
    found = attempt.part("counting", lambda: _survey(attempt), runs=not attempt.is_meta)
    flops, moved = (flops_of(found), traffic_of(found)) if isinstance(found, Survey) else (None, None)
    dtypes = list(flops.by_dtype) if flops else []
    peaks = attempt.part("measuring the device", lambda: roofline(task.device, dtypes))
    least = _bound(attempt, peaks, found, flops)
    if least.value is not None and call.value is not None and call.value < least.value:  # it was disturbed
        peaks = attempt.part("measuring the device", lambda: roofline(task.device, dtypes, again=True))
        least = _bound(attempt, peaks, found, flops)
    limit = task.options.memory_bytes or granted.granted_memory(task.device)
    asked = others.lengths(attempt, limit) if task.options.lengths else None  # before what nobody asked for
    spent = attempt.part(
        "the profile",
        lambda: profile(
            attempt.model,
            task.sample,
            step=attempt.step,
            device=task.device,
            runs=RUNS if (call.value or 0.0) < SLOW_S else 1,
        ),
        costly=True,
    )
    structure, without_structure = others.structure_of(attempt)
    lengths, greatest = asked or others.lengths(attempt, limit)
    missing = [f"no profile: {spent}"] if isinstance(spent, str) and not attempt.cannot else []
    return ModelFacts(
        model=type(task.model).__name__,
        place=place_of_class(type(task.model)),
        device=str(task.device),
        training=task.options.training,
        loss=_loss(task, attempt),
        inputs=tensor_infos(task.sample),
        parameters=held.parameters,
        trainable=held.trainable,
        buffers=held.buffers,
        bytes_by_dtype=held.bytes_by_dtype,
        tied=held.tied,
        threads=torch.get_num_threads(),
        granted_cpus=granted.granted_cpus(),
        memory_limit=limit,
        call=call,
        noise=noise,
        flops=_counted(found, flops.total if flops else None, at_least=bool(flops and flops.remarks)),
        traffic=_counted(found, None if moved is None else sum(moved.values()), at_least=True),
        bound=least,
        attained=_attained(least, call),
        roofline=peaks if isinstance(peaks, Roofline) else Roofline(flops={}, memory_gb_s=None),
        peak=others.peak(attempt),
        predicted_peak=others.predicted_peak(attempt),
        modules=costs.module_costs(task.model, spent if isinstance(spent, Profile) else None, flops),
        operators=costs.operator_costs(
            spent if isinstance(spent, Profile) else None,
            found if isinstance(found, Survey) else None,
            flops,
            moved,
        ),
        attention_share=_counted(found, flops.attention_share if flops else None),
        lengths=lengths,
        greatest_length=greatest,
        structure=structure,
        remarks=tuple(
            dict.fromkeys(
                (
                    *attempt.remarks,
                    *(f"{name} has no shape yet" for name in held.unknown),
                    *(flops.remarks if flops else ()),
                    *(["packed weights are not counted"] if "quantised" in structure.unusual else ()),
                    *without_structure,
                    *missing,
                )
            )
        ),
        failed=attempt.failed,
    )


def tensor_infos(sample: Sample) -> tuple[TensorInfo, ...]:
    """The tensors of a call, nested ones by their path: "0", "mask", "batch.ids"."""
    found = []
    for path, leaf in pytree.tree_leaves_with_path((list(sample.args), dict(sample.kwargs))):
        if isinstance(leaf, torch.Tensor):
            name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path[1:])
            found.append(TensorInfo(name=name, shape=tuple(leaf.shape), dtype=dtype_name(leaf.dtype)))
    return tuple(found)


def _survey(attempt: Attempt) -> Survey:
    sample = attempt.task.sample
    if attempt.is_meta:
        sample = sample.map(lambda tensor: tensor.to("meta"))
    return survey(attempt.model, sample, attempt.step, real=attempt.model)


def _counted(found: Survey | str, value: float | None, *, at_least: bool = False) -> Fact:
    if isinstance(found, str):
        return unknown(found)
    return Fact(value=value, basis="counted", at_least=at_least)


def _bound(attempt: Attempt, peaks: Roofline | str, found: Survey | str, flops: FlopCount | None) -> Fact:
    if isinstance(peaks, str):
        return unknown(peaks)
    if isinstance(found, str) or flops is None:
        return unknown(str(found))
    needed = dict(flops.by_dtype)
    for dtype, hidden in flops.hidden.items():
        needed[dtype] -= hidden
    held = sum(found.parameter_bytes.values()) + sum(
        tensor.numel() * tensor.element_size()
        for tensor in (*attempt.task.sample.tensors(), *pytree.tree_leaves(attempt.outputs))
        if isinstance(tensor, torch.Tensor)
    )
    return bound(peaks, needed, held, granted.cache_bytes(attempt.task.device))


def _attained(least: Fact, call: Fact) -> Fact:
    if least.value is None or call.value is None:
        return unknown(call.why if call.value is None else least.why)
    if call.value < least.value:
        return unknown("a call takes less time than by the measured peak: others disturbed the measurement")
    return Fact(value=least.value / call.value, basis="measured", why=least.why)


def _loss(task: Task, attempt: Attempt) -> str:
    if not task.options.training:
        return ""
    text = attempt.part("the loss", lambda: task.loss_text(attempt.outputs))
    return "" if attempt.cannot else text
