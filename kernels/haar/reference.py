"""The definition of the one-level Haar wavelet transform and of its inverse, along the last axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[..., n] -> low, high [..., ceil(n / 2)]``; an odd length repeats its last sample once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[-1] % 2:
        wide = torch.cat([wide, wide[..., -1:]], -1)
    even, odd = wide[..., ::2], wide[..., 1::2]
    return ((even + odd) / math.sqrt(2)).to(x.dtype), ((even - odd) / math.sqrt(2)).to(x.dtype)


def inverse_haar(low: Tensor, high: Tensor, n: int) -> Tensor:
    """``low, high [..., m] -> [..., n]``, n = 2m or 2m - 1."""
    wide_low, wide_high = (band.to(torch.promote_types(band.dtype, torch.float32)) for band in (low, high))
    pairs = torch.stack([wide_low + wide_high, wide_low - wide_high], -1) / math.sqrt(2)
    return pairs.flatten(-2)[..., :n].to(low.dtype)
