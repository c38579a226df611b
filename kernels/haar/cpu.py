"""The transform as two registered operators, ``gated::haar_split`` and ``gated::haar_merge``, adjoint to each other.

Scaling first is one vectorised pass; what remains are one sum and one difference of strided halves, so no interleaved
or repeated copy is ever made. Legend: n samples, m = ceil(n / 2) pairs. ``repeat``: what the missing partner of an odd
length's last sample is, the sample itself (the transform) or zero (the adjoint of the inverse, which cuts it off).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SCALE = 1 / math.sqrt(2)


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.haar``."""
    return haar_split(x, True)


def inverse_haar(low: Tensor, high: Tensor, n: int) -> Tensor:
    """See ``reference.inverse_haar``."""
    return haar_merge(low, high, n, False)


def split(x: Tensor, repeat: bool) -> tuple[Tensor, Tensor]:
    """Sums and differences of pairs, ``[..., m]`` each."""
    n = x.shape[-1]
    scaled = torch.mul(x.contiguous(), SCALE) if x.dtype is torch.float32 else x.float().mul_(SCALE)
    low, high = (torch.empty(*x.shape[:-1], -(-n // 2), device=x.device) for _ in range(2))
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
    x = torch.empty(*low.shape[:-1], n, device=low.device)
    even, odd, pairs = x[..., ::2], x[..., 1::2], n // 2
    wide_low, wide_high = low.float(), high.float()
    torch.add(wide_low[..., :pairs], wide_high[..., :pairs], out=even[..., :pairs])
    torch.sub(wide_low[..., :pairs], wide_high[..., :pairs], out=odd)
    if n % 2:
        x[..., -1] = wide_low[..., -1] * 2 if repeat else wide_low[..., -1] + wide_high[..., -1]
    return x.mul_(SCALE).to(low.dtype)


haar_split = torch.library.custom_op("gated::haar_split", split, mutates_args=())
haar_merge = torch.library.custom_op("gated::haar_merge", merge, mutates_args=())


@haar_split.register_fake
def _(x: Tensor, repeat: bool) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:-1], (x.shape[-1] + 1) // 2
    return x.new_empty(shape), x.new_empty(shape)


@haar_merge.register_fake
def _(low: Tensor, high: Tensor, n: int, repeat: bool) -> Tensor:
    return low.new_empty(*low.shape[:-1], n)


def _setup_split(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, ctx.repeat = inputs
    ctx.n = x.shape[-1]


def _setup_merge(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.repeat = inputs[-1]


def _backward_split(ctx: Any, dlow: Tensor, dhigh: Tensor) -> tuple[Tensor, None]:
    return haar_merge(dlow, dhigh, ctx.n, ctx.repeat), None


def _backward_merge(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *haar_split(dx, ctx.repeat), None, None


haar_split.register_autograd(_backward_split, setup_context=_setup_split)
haar_merge.register_autograd(_backward_merge, setup_context=_setup_merge)
