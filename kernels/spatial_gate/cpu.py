"""The spatial gating unit in plain PyTorch, tile by tile.

A tile holds whole mixing groups, so that normalising, mixing and gating it happen in the cache; no axis is ever moved.
Legend: B batch, G grid cells, P positions in a cell, C channels; n tokens of the mixed axis, G or P.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1 << 17  # values of v that one tile holds, where whole groups allow it


def tiles(x: Tensor, axis: int, *others: Tensor) -> Iterator[list[Tensor]]:
    """Views of whole mixing groups ``[b, n, p, ...]`` of x and of tensors that share its first three axes."""
    C = x.shape[-1] // 2
    if axis == 2:  # groups are cells: [B G, P, 1, ...]
        per_tile, length = max(1, TILE // (x.shape[2] * C)), x.shape[0] * x.shape[1]
        views = [t.flatten(0, 1).unsqueeze(2) for t in (x, *others)]
        for i in range(0, length, per_tile):
            yield [t[i : i + per_tile] for t in views]
    else:  # groups are positions of all cells: [1, G, p, ...]
        per_tile = max(1, TILE // (x.shape[1] * C))
        for b in range(x.shape[0]):
            for i in range(0, x.shape[2], per_tile):
                yield [t[b : b + 1, :, i : i + per_tile] for t in (x, *others)]


def normalise(v: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A contiguous copy of v in float32, its LayerNorm over channels, means and inverse deviations."""
    v = v.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return v, *torch.native_layer_norm(v, v.shape[-1:], weight, bias, eps)


def forward(
    x: Tensor, kernel: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, axis: int, eps: float
) -> tuple[Tensor, Tensor]:
    """y, and the factor of u (mixed + 1) in float32 for the backward."""
    y = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    factor = torch.empty(y.shape, dtype=torch.float32, device=x.device)
    weights, offsets = kernel.float().t(), bias.float().add(1)[None, :, None]
    norm_weight, norm_bias = norm_weight.float(), norm_bias.float()
    with torch.autocast(x.device.type, enabled=False):
        for x_tile, y_tile, f_tile in tiles(x, axis, y, factor) if x.numel() else ():
            u, v = x_tile.chunk(2, -1)
            _, v, *_ = normalise(v, norm_weight, norm_bias, eps)
            rows = v.flatten(2)
            mixed = torch.baddbmm(offsets.expand(len(rows), -1, 1), weights.expand(len(rows), -1, -1), rows)
            f_tile.copy_(mixed.view(v.shape))
            torch.mul(u, mixed.view(v.shape), out=y_tile)
    return y, factor


def backward(
    dy: Tensor,
    factor: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of x, and of the parameters in float32."""
    dx = torch.empty_like(x)
    sums = [torch.zeros(w.shape, device=x.device) for w in (kernel, bias, norm_weight, norm_bias)]
    dkernel, dbias, dnorm_weight, dnorm_bias = sums
    weights, norm_weight, norm_bias = kernel.float(), norm_weight.float(), norm_bias.float()
    with torch.autocast(x.device.type, enabled=False):
        for x_tile, dy_tile, f_tile, dx_tile in tiles(x, axis, dy, factor, dx) if x.numel() else ():
            (u, v), (du, dv) = x_tile.chunk(2, -1), dx_tile.chunk(2, -1)
            torch.mul(dy_tile, f_tile, out=du)
            dmixed = torch.mul(dy_tile, u.float()).contiguous().flatten(2)
            v, normed, mean, rstd = normalise(v, norm_weight, norm_bias, eps)
            dkernel.addbmm_(normed.flatten(2), dmixed.mT)
            dbias += dmixed.sum((0, 2))
            dnormed = torch.bmm(weights.expand(len(dmixed), -1, -1), dmixed).view(v.shape)
            dv_tile, dweight, dshift = torch.ops.aten.native_layer_norm_backward(
                dnormed, v, v.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
            )
            dv.copy_(dv_tile)
            dnorm_weight += dweight
            dnorm_bias += dshift
    return [dx, *sums]
