"""Checks of arguments that several modules share: a message names the argument and its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_branches(
    segment_lengths: Sequence[int], dilation_rates: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return both as tuples of int, or raise.

    Raises:
        TypeError: if either is not a sequence of integers.
        ValueError: if they are empty, differ in length, or hold a value below 1 or from 2^63.
    """
    checked = []
    for name, values in (("segment_lengths", segment_lengths), ("dilation_rates", dilation_rates)):
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a sequence of int, got {values!r}")
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise TypeError(f"{name} must hold int only, got {list(values)!r}")
        if any(value < 1 for value in values):
            raise ValueError(f"{name} must all be at least 1, got {list(values)}")
        if any(value >= 2**63 for value in values):
            raise ValueError(f"{name} must all be below 2**63, got {list(values)}")
        checked.append(tuple(values))
    segments, rates = checked
    if not segments or len(segments) != len(rates):
        raise ValueError(
            "segment_lengths and dilation_rates must be of equal length, at least 1, "
            f"got segment_lengths={list(segments)}, dilation_rates={list(rates)}"
        )
    return segments, rates


def check_bool(name: str, value: bool) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be bool, got {value!r}")


def check_int(name: str, value: int) -> None:
    """Raise TypeError unless ``value`` is an int, and not a bool."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be int, got {value!r}")


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raise unless both are positive int and ``num_kv_heads`` divides ``num_heads``."""
    for name, value in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
        if value is None or isinstance(value, (bool, float, str, list, tuple)):
            raise TypeError(f"{name} must be int, got {value!r}")
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads must be a positive multiple of num_kv_heads, got {num_heads=}, {num_kv_heads=}"
        )


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a tensor, and not a nested one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one: pad it (torch.nested.to_padded_tensor) "
            "and mark the padding in key_padding_mask"
        )


def check_qkv(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless ``query [b, n, h, d]`` and ``key``, ``value [b, n, h_kv, d]`` agree in everything.

    Raises:
        TypeError: if one is not a tensor, not floating point, or their dtypes differ.
        ValueError: if shapes or devices do not fit.
    """
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        check_dense(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be [batch, seq, heads, head_dim], got shape {tuple(tensor.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"query, key and value must share a dtype, got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value must be on one device, got {query.device}, {key.device}, {value.device}"
        )
    if key.shape != value.shape:
        raise ValueError(
            f"key and value must have one shape, got key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    if query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        raise ValueError(
            "query and key must have the same batch, seq and head_dim, "
            f"got query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
    if query.shape[3] < 1:
        raise ValueError(f"head_dim must be at least 1, got query {tuple(query.shape)}")
    check_heads(query.shape[2], key.shape[2])


def check_positions(positions: Tensor, query: Tensor) -> None:
    """Raise unless ``positions`` is int64 ``[n]`` or ``[b, n]`` on the device of ``query [b, n, h, d]``.

    That its values are distinct and not negative is checked by :func:`check_position_values`, where the
    values are at hand (a traced graph has none).
    """
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64:
        got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"positions must be an int64 tensor, got {got}")
    check_dense("positions", positions)
    batch, seq = query.shape[:2]
    # Shapes of one length are compared: in an exported graph "batch is not seq" would become a constraint.
    if positions.dim() not in (1, 2) or positions.shape != (batch, seq)[2 - positions.dim() :]:
        raise ValueError(
            f"positions must be [{seq}] (seq) or [{batch}, {seq}] (batch, seq), got {list(positions.shape)}"
        )
    if positions.device != query.device:
        raise ValueError(f"positions must be on {query.device} like query, got {positions.device}")


def check_position_values(positions: Tensor) -> None:
    """Raise ValueError unless each row of ``positions [..., n]`` is distinct and not negative."""
    if positions.numel() == 0:
        return
    ordered = positions.sort(dim=-1).values
    if bool((ordered[..., 0] < 0).any()):
        raise ValueError(f"positions must not be negative, got {int(ordered.min())}")
    repeated = ordered[..., 1:] == ordered[..., :-1]
    if bool(repeated.any()):
        raise ValueError(f"positions must be distinct, got {int(ordered[..., 1:][repeated][0])} twice")


@torch.library.custom_op("dilated_attention_pytorch::checked_positions", mutates_args=())
def checked_positions(positions: Tensor) -> Tensor:
    """``positions [..., n]``, copied, after :func:`check_position_values`.

    An operator, because vmap, graphs and fake tensors let an operator see values where there are any.
    """
    check_position_values(positions)
    return positions.clone()


@checked_positions.register_fake
def _(positions: Tensor) -> Tensor:
    return torch.empty_like(positions)


@checked_positions.register_vmap
def _(info: Any, in_dims: tuple[int], positions: Tensor) -> tuple[Tensor, int]:
    return checked_positions(positions.movedim(in_dims[0], 0)), 0


def check_softmax_scale(softmax_scale: float | None) -> None:
    """Raise unless ``softmax_scale`` is None or a positive finite number."""
    if softmax_scale is None:
        return
    if isinstance(softmax_scale, bool) or not isinstance(softmax_scale, (int, float)):
        raise TypeError(f"softmax_scale must be a number or None, got {softmax_scale!r}")
    if not 0 < softmax_scale < float("inf"):
        raise ValueError(f"softmax_scale must be positive and finite, got {softmax_scale}")


def check_no_dropout(name: str, dropout: float) -> None:
    """Raise ValueError unless ``dropout`` is 0: the fused kernels compute exact attention only."""
    if dropout != 0:
        raise ValueError(f"{name} must be 0.0, got {dropout}: dropout on attention weights is not supported")
