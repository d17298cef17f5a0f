"""Replace a model's ``nn.MultiheadAttention`` modules by dilated attention, and convert its weights back."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from .multihead_dilated_attention import MultiheadDilatedAttention

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def replace_attention(
    model: nn.Module,
    *,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    names: Collection[str] | None = None,
) -> list[str]:
    """Replace the ``nn.MultiheadAttention`` modules of ``model``, in place, and keep their weights.

    Each becomes a :class:`MultiheadDilatedAttention` without LayerNorm, with copies of the weights and the
    same ``batch_first``, device, dtype, mode and ``requires_grad``. With one branch of dilation rate 1 and a
    segment length of at least the sequence's the model computes what it did. Make the optimizer afterwards:
    the parameters are new ones.

    ``multihead_attn`` of ``nn.TransformerDecoderLayer`` is left alone, as it attends to another sequence.
    Where your own modules have such cross-attention, choose by ``names``.

    Dropout of attention weights is not kept, which is warned of; other dropout is.

    Args:
        model: what contains the modules.
        segment_lengths, dilation_rates: the branches, see :class:`DilatedPattern`.
        names: replace these modules only, named as in ``model.named_modules()``. Default: all.

    Returns:
        The names of the replaced modules. One that has several names has one replacement under all of them.

    Raises:
        TypeError, ValueError: nothing was replaced: ``model`` has no such module or is one itself, a name is
            unknown, or a module named in the message has what would be lost (``add_bias_kv``,
            ``add_zero_attn``, hooks, parametrizations, parameters that others share, a subclass).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.MultiheadAttention):
        raise ValueError(
            "model is itself an attention module and cannot be replaced in place: build a "
            "MultiheadDilatedAttention(..., layer_norm=False) and load_state_dict(model.state_dict())"
        )
    chosen = _find(model, names)
    # All are built before the first is replaced, so that an error leaves the model as it was.
    replacements: dict[nn.MultiheadAttention, MultiheadDilatedAttention] = {}
    for module in dict.fromkeys(chosen.values()):
        reason = _reason_against(model, module)
        if reason:
            where = ", ".join(name for name, other in chosen.items() if other is module)
            raise ValueError(
                f"{where} cannot be replaced: {reason}. Nothing was replaced; to leave it as it is, pass the "
                "names of the others"
            )
        replacements[module] = _dilated(module, segment_lengths, dilation_rates)
    for name, module in chosen.items():
        model.set_submodule(name, replacements[module])
    lost = ", ".join(f"{name}: {module.dropout}" for name, module in chosen.items() if module.dropout)
    if lost:
        warnings.warn(
            f"dropout of attention weights is not kept ({lost}), other dropout is; evaluation has none",
            stacklevel=2,
        )
    return list(chosen)


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``model`` with the names that it had before :func:`replace_attention`.

    The way back: ``original.load_state_dict(dense_state_dict(model))``. The other way needs no help, a
    :class:`MultiheadDilatedAttention` loads the state dict of a ``nn.MultiheadAttention``.

    Args:
        model: what contains :class:`MultiheadDilatedAttention` modules, or is one.

    Raises:
        ValueError: one of them, named in the message, has a LayerNorm or fewer key/value than query heads,
            which a ``nn.MultiheadAttention`` has not.
    """
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, MultiheadDilatedAttention):
            continue
        if module.norm is not None or module.num_kv_heads != module.num_heads:
            raise ValueError(
                f"{name or 'model'} has no equal nn.MultiheadAttention: it needs layer_norm=False and "
                f"num_kv_heads = num_heads, got layer_norm={module.norm is not None}, "
                f"num_kv_heads={module.num_kv_heads}, num_heads={module.num_heads}"
            )
        prefix = f"{name}." if name else ""
        weights = [state.pop(f"{prefix}{c}_proj.weight") for c in "qkv"]
        if module.kdim == module.vdim == module.embed_dim:
            state[f"{prefix}in_proj_weight"] = torch.cat(weights)
        else:
            state |= {f"{prefix}{c}_proj_weight": weight for c, weight in zip("qkv", weights, strict=True)}
        if module.q_proj.bias is not None:
            state[f"{prefix}in_proj_bias"] = torch.cat([state.pop(f"{prefix}{c}_proj.bias") for c in "qkv"])
    return state


def _find(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.MultiheadAttention]:
    """The modules to replace by name, in the order of the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {name: module for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    if names is not None:
        if isinstance(names, str):
            raise TypeError(f"names must be a collection of str, got {names!r}")
        unknown = [name for name in names if name not in found]
        if unknown:
            raise ValueError(f"names must be nn.MultiheadAttention modules of model, got {unknown}")
        found = {name: module for name, module in found.items() if name in names}
    else:
        for name in list(found):
            parent, _, child = name.rpartition(".")
            if child == "multihead_attn" and isinstance(modules[parent], nn.TransformerDecoderLayer):
                del found[name]
    if not found:
        raise ValueError("model has no nn.MultiheadAttention to replace")
    return found


def _reason_against(model: nn.Module, module: nn.MultiheadAttention) -> str:
    """Why ``module`` cannot be replaced without loss; empty if it can."""
    linear = module.out_proj
    if type(module) is not nn.MultiheadAttention:
        return f"it is a {type(module).__name__}, not nn.MultiheadAttention itself"
    if type(linear) not in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return f"its out_proj is a {type(linear).__name__}"
    if module.bias_k is not None or module.bias_v is not None:
        return "it has add_bias_kv=True, keys that belong to no position"
    if module.add_zero_attn:
        return "it has add_zero_attn=True, a key that belongs to no position"
    hooks = [hooks for hooks in _HOOKS if getattr(module, hooks) or getattr(linear, hooks)]
    if hooks:
        return f"it has hooks ({', '.join(hooks)})"
    names = [name for name, other in model.named_modules(remove_duplicate=False) if other is module]
    own = {f"{name}.{local}": p for local, p in module.named_parameters() for name in names}
    ids = set(map(id, own.values()))
    all_parameters = model.named_parameters(remove_duplicate=False)
    shared = [name for name, p in all_parameters if id(p) in ids and name not in own]
    if shared:
        return f"it shares parameters with others ({', '.join(shared)})"
    return ""


def _dilated(
    module: nn.MultiheadAttention, segment_lengths: Sequence[int], dilation_rates: Sequence[int]
) -> MultiheadDilatedAttention:
    dilated = MultiheadDilatedAttention(
        module.embed_dim,
        module.num_heads,
        segment_lengths=segment_lengths,
        dilation_rates=dilation_rates,
        bias=module.in_proj_bias is not None,
        kdim=module.kdim,
        vdim=module.vdim,
        batch_first=module.batch_first,
        layer_norm=False,
        device="meta",
    )
    weight, bias = module.in_proj_weight, module.in_proj_bias
    for third, c in enumerate("qkv"):
        projection: nn.Linear = getattr(dilated, f"{c}_proj")
        separate = getattr(module, f"{c}_proj_weight")
        projection.register_parameter("weight", _copy(separate) if weight is None else _copy(weight, third))
        projection.register_parameter("bias", _copy(bias, third))
    dilated.out_proj.register_parameter("weight", _copy(module.out_proj.weight))
    dilated.out_proj.register_parameter("bias", _copy(module.out_proj.bias))
    return dilated.train(module.training)


def _copy(source: Tensor | None, third: int | None = None) -> nn.Parameter | None:
    """A copy of ``source``, or of one third of its rows."""
    if source is None:
        return None
    part = source.detach() if third is None else source.detach().tensor_split(3)[third]
    return nn.Parameter(part.clone(), source.requires_grad)
