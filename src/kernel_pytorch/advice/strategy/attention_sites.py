"""Where a model computes attention, by hand or by the fused call. Imports torch."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..facts import AttentionSite
from ..prove.copies import copy_of
from ..sample import Sample
from . import attention_rewrite as rewrite

TORCH = str(Path(torch.__file__).parent) + os.sep
FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)')


def find_attention(model: nn.Module, sample: Sample, *, training: bool | None = None) -> list[AttentionSite]:
    """Run a copy of a model once under Dynamo, without a compiler, and list where it computes attention.

    Equal calls of one place in several submodules are one site. Resets Dynamo's caches.

    training: whether gradients are computed; None: if the model is in training mode, which decides about
        dropout anyway.

    Raises:
        Exception: what copying or running the model raises.
    """
    import torch._dynamo

    found: list[AttentionSite] = []

    def record(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        unchanged = graph_module.forward
        found.extend(sites_of(graph_module, inputs))
        return unchanged

    grad = model.training if training is None else training
    copied = copy_of(model)
    devices = list({t.device for t in sample.tensors() if t.device.type == "cuda"})
    torch._dynamo.reset()
    try:
        copied.compile(backend=record)
        with torch.random.fork_rng(devices), torch.set_grad_enabled(grad):
            sample.clone().call(copied)
    finally:
        torch._dynamo.reset()
    return [replace(site, paths=all_paths(site, model)) for site in merged(found)]


def sites_of(graph_module: fx.GraphModule, inputs: Sequence[Any] = ()) -> Iterator[AttentionSite]:
    """Of one graph of Dynamo's, the bodies of checkpoints included."""
    for child in graph_module.children():
        if isinstance(child, fx.GraphModule):
            yield from sites_of(child)
    for node in graph_module.graph.nodes:
        if node.target is F.scaled_dot_product_attention:
            yield fused_site(node)
    for softmax, found in rewrite.sites(graph_module, inputs):
        scores = softmax.args[0]
        nodes = [scores, softmax] if isinstance(found, str) else found.nodes
        yield AttentionSite(
            place=place_of(nodes),
            paths=(path_of(softmax),),
            fused=False,
            scores_bytes=bytes_of(rewrite.example(scores)),
            call="" if isinstance(found, str) else call_of(found),
            why=found if isinstance(found, str) else "",
        )


def call_of(found: rewrite.Attention) -> str:
    """The equal call of the fused function, as text."""
    mask = ", is_causal=True" if found.causal else ", attn_mask=mask" if found.masks else ""
    return f"F.scaled_dot_product_attention(q, k, v{mask}, scale={found.scale:.6g})"


def fused_site(node: fx.Node) -> AttentionSite:
    """Of a call of the fused function."""
    query, key, value, mask = (
        rewrite.argument(node, i, name) for i, name in enumerate(("query", "key", "value", "attn_mask"))
    )
    why = why_unfused(node, query, key, value, mask)
    q, k = rewrite.shape(query), rewrite.shape(key)
    item = rewrite.example(query).element_size()
    size = item * product([*q[:-1], k[-2]]) if why else 0
    arguments = [", is_causal=True"] if rewrite.argument(node, 5, "is_causal") else []
    arguments += [", attn_mask=mask"] if mask is not None else []
    return AttentionSite(
        place=place_of([node]),
        paths=(path_of(node),),
        fused=True,
        scores_bytes=size,
        call=f"F.scaled_dot_product_attention(q, k, v{''.join(arguments)})",
        why=why,
    )


def why_unfused(node: fx.Node, query: Any, key: Any, value: Any, mask: Any) -> str:
    """Why a call of the fused function runs as separate operators on a CPU; "": it is fused, or on a GPU."""
    q, k, v = map(rewrite.example, (query, key, value))
    if q.device.type != "cpu":
        return ""
    dropout = rewrite.argument(node, 4, "dropout_p", default=0.0)
    if q.dim() != 4:
        return f"its inputs have {q.dim()} dimensions instead of 4"
    if mask is not None and rewrite.example(mask).requires_grad:
        return "its mask needs a gradient"
    if not isinstance(dropout, (int, float)) or dropout > 0:
        return f"dropout {dropout} in training"
    if not rewrite.same(q.shape[-1], v.shape[-1]):
        return "keys and values have different widths"
    if not all(rewrite.same(t.stride(-1), 1) for t in (q, k, v)):
        return "the last dimension of its inputs is not contiguous"
    return ""


def merged(found: Sequence[AttentionSite]) -> list[AttentionSite]:
    """Sites that differ in the submodules alone as one, in the order found."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for site in found:
        paths = groups.setdefault((site.place, site.fused, site.scores_bytes, site.call, site.why), [])
        paths.extend(path for path in site.paths if path not in paths)
    return [
        AttentionSite(place=place, paths=tuple(paths), fused=fused, scores_bytes=size, call=call, why=why)
        for (place, fused, size, call, why), paths in groups.items()
    ]


def all_paths(site: AttentionSite, model: nn.Module) -> tuple[str, ...]:
    """The submodules whose own ``forward`` has the site's lines: equal blocks share one graph of Dynamo's."""
    file, _, lines = site.place.rpartition(":")
    if not file:
        return site.paths
    first, _, last = lines.partition("-")

    def has_them(module: nn.Module) -> bool:
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is None or os.path.realpath(code.co_filename) != os.path.realpath(file):
            return False
        ends = [line for *_, line in code.co_lines() if line]
        return bool(min(ends) <= int(first) and int(last or first) <= max(ends))

    # Paths of a shared graph are those within its own root.
    return tuple(path for path, module in model.named_modules() if has_them(module)) or site.paths


def place_of(nodes: Sequence[fx.Node]) -> str:
    """FILE:FIRST-LAST of the function in the user's code in which the last of these nodes is computed."""
    frames = []
    for node in nodes:
        found = [m.groups() for m in FRAME.finditer(node.meta.get("stack_trace") or "")]
        frames += [frame for frame in found if not frame[0].startswith(TORCH)][-1:]
    if not frames:
        return ""
    file, _, function = frames[-1]
    lines = [int(line) for other, line, name in frames if (other, name) == (file, function)]
    path = os.path.relpath(file)
    path = file if path.startswith("..") else path
    return f"{path}:{min(lines)}" + (f"-{max(lines)}" if max(lines) > min(lines) else "")


def path_of(node: fx.Node) -> str:
    """The submodule's name; "": the model itself.

    Dynamo notes the stack of modules as "L['self'].layers.0.attention", or with ``_modules['layers']``.
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    text = re.sub(r"^L\['\w+'\]\.?", "", stack[-1][0]) if stack else ""
    return re.sub(r"\._modules\['([^']+)'\]|\['?([^'\]]+)'?\]", r".\1\2", text).strip(".")


def bytes_of(tensor: Any) -> int:
    """Of a tensor's elements, symbols at their present values."""
    return int(tensor.element_size() * product(tensor.shape))


def product(sizes: Sequence[Any]) -> int:
    """Of sizes, symbols at their present values."""
    total = 1
    for size in sizes:
        total *= size.node.hint if isinstance(size, torch.SymInt) else size
    return int(total)
