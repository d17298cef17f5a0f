"""Numbers as 8-bit integers: a scale for each block of 256, and stochastic rounding: there is no bias.

QSGD (Alistarh et al., arXiv:1610.02132) with the largest magnitude of a block for its norm.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.functional import pad

from .wire import from_bytes, to_bytes

BLOCK = 256
"""Numbers that share a scale."""
_STEPS = 127
_SCALE_BYTES = 4
_FLOAT = torch.finfo(torch.float32)
_LARGEST_SCALE = _FLOAT.max / _STEPS * (1 - _FLOAT.eps)  # times _STEPS it is finite


class Blockwise:
    """A number x is sent as one of the two multiples of its block's scale around it, the nearer one the more
    likely: the expected value is x. Of a block that holds a NaN or an infinity, all are received as NaN.

    The scale is a float32, 1/127 of the block's largest magnitude.
    """

    def __init__(self, seed: int = 0) -> None:
        """``seed``: of the rounding; another one on each rank."""
        self.seed = seed
        self._calls = 0

    def nbytes(self, count: int) -> int:
        """Bytes that are sent for ``count`` numbers."""
        return count + _SCALE_BYTES * -(-count // BLOCK)

    def encode(self, tensor: Tensor, noise: Tensor | None = None) -> Tensor:
        """Flat floats as flat uint8, of :meth:`nbytes` elements: the scales, then the integers.

        Args:
            tensor: as float32 in what follows.
            noise: float32, uniform in [0, 1), of as many elements as whole blocks have; default: drawn.
        """
        count = tensor.numel()
        blocks = _blocks(tensor.to(torch.float32))
        if noise is None:
            noise = draw((self.seed, self._calls), blocks.numel(), tensor.device)
            self._calls += 1
        largest = blocks.abs().amax(1, keepdim=True)
        # Not below the smallest normal number: a quotient by 0 is no number, by one that lost bits is biased.
        scale = (largest / _STEPS).clamp(_FLOAT.tiny, _LARGEST_SCALE)
        scale = scale.where(largest.isfinite(), torch.nan)
        steps = (blocks / scale).add_(noise.view_as(blocks)).floor_().clamp_(-_STEPS, _STEPS)
        whole = steps.nan_to_num_(0.0).to(torch.int8).flatten()[:count]
        return torch.cat([to_bytes(scale), to_bytes(whole)])

    def decode(self, sent: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """``count`` numbers as ``dtype``, from what :meth:`encode` made of them."""
        begin = self.nbytes(count) - count
        scale = from_bytes(sent[:begin], torch.float32)
        steps = _blocks(sent[begin : begin + count].view(torch.int8).to(torch.float32))
        return (steps * scale.unsqueeze(1)).flatten()[:count].to(dtype)


def draw(key: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """``count`` float32, uniform in [0, 1): the same for the same key and device."""
    return torch.rand(count, generator=generator(key, device), device=device, dtype=torch.float32)


def generator(key: tuple[int, ...], device: torch.device) -> torch.Generator:
    """A generator of random numbers that depend on nothing but the key and the device."""
    seed = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1
    return torch.Generator(device).manual_seed(seed)


def _blocks(flat: Tensor) -> Tensor:
    return pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
