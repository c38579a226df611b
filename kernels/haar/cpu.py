"""The transform in plain PyTorch as a split and a merge of pairs, adjoint to each other.

Scaling first is one vectorised pass; what remains are one sum and one difference of strided halves, so no interleaved
or repeated copy is ever made. Legend: n samples, m = ceil(n / 2) pairs. ``repeat``: what the missing partner of an odd
length's last sample is, the sample itself (the transform) or zero (the adjoint of the inverse, which cuts it off).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toolkit.kernels._common.numerics import working_dtype

SCALE = 1 / math.sqrt(2)


def split(x: Tensor, repeat: bool) -> tuple[Tensor, Tensor]:
    """Sums and differences of pairs, ``[..., m]`` each."""
    n = x.shape[-1]
    dtype = working_dtype(x.dtype)
    scaled = torch.mul(x.contiguous(), SCALE) if x.dtype is dtype else x.to(dtype).mul_(SCALE)
    low, high = (torch.empty(*x.shape[:-1], -(-n // 2), dtype=dtype, device=x.device) for _ in range(2))
    even, odd, pairs = scaled[..., ::2], scaled[..., 1::2], n // 2
    torch.add(even[..., :pairs], odd, out=low[..., :pairs])
    torch.sub(even[..., :pairs], odd, out=high[..., :pairs])
    if n % 2:
        last = scaled[..., -1]
        low[..., -1] = last * 2 if repeat else last
        high[..., -1] = 0 if repeat else last
    return low.to(x.dtype), high.to(x.dtype)


def merge(low: Tensor, high: Tensor, n: int, repeat: bool) -> Tensor:
    """The pairs put back and interleaved, ``[..., n]``; with ``repeat`` a cut-off sample is added to its neighbour."""
    dtype = working_dtype(low.dtype)
    x = torch.empty(*low.shape[:-1], n, dtype=dtype, device=low.device)
    even, odd, pairs = x[..., ::2], x[..., 1::2], n // 2
    wide_low, wide_high = low.to(dtype), high.to(dtype)
    torch.add(wide_low[..., :pairs], wide_high[..., :pairs], out=even[..., :pairs])
    torch.sub(wide_low[..., :pairs], wide_high[..., :pairs], out=odd)
    if n % 2:
        x[..., -1] = wide_low[..., -1] * 2 if repeat else wide_low[..., -1] + wide_high[..., -1]
    return x.mul_(SCALE).to(low.dtype)
