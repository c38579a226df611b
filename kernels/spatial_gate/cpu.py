"""The spatial gating unit tile by tile, registered as ``gated::spatial_gate_fwd`` and ``gated::spatial_gate_bwd``.

A tile holds whole mixing groups, so that normalising, mixing and gating it happen in the cache; no axis is ever moved.
Legend: B batch, G grid cells, P positions in a cell, C channels; n tokens of the mixed axis, G or P.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE = 1 << 17  # values of v that one tile holds, where whole groups allow it


def spatial_gate(
    x: Tensor, kernel: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, axis: int, eps: float
) -> Tensor:
    """See ``reference.spatial_gate``."""
    return spatial_gate_fwd(x, kernel, bias, norm_weight, norm_bias, axis, eps)[0]


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
    y, factor = empty_outputs(x)
    x = x.contiguous()
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
    x: Tensor,
    factor: Tensor,
    kernel: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the mixing kernel and bias, and the norm's weight and bias."""
    gradients = empty_gradients(x, kernel, norm_weight)
    dx, dkernel, dbias, dnorm_weight, dnorm_bias = gradients
    for total in gradients[1:]:
        total.zero_()
    x, dy = x.contiguous(), dy.contiguous()
    weights, norm_weight, norm_bias = kernel.float(), norm_weight.float(), norm_bias.float()
    with torch.autocast(x.device.type, enabled=False):
        for x_tile, dy_tile, f_tile, dx_tile in tiles(x, axis, dy, factor, dx) if x.numel() else ():
            (u, v), (du, dv) = x_tile.chunk(2, -1), dx_tile.chunk(2, -1)
            torch.mul(dy_tile, f_tile, out=du)
            dmixed = torch.mul(dy_tile, u).float().contiguous().flatten(2)
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
    return gradients


def empty_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    shape = *x.shape[:-1], x.shape[-1] // 2
    return (
        torch.empty(shape, dtype=x.dtype, device=x.device),
        torch.empty(shape, dtype=torch.float32, device=x.device),
    )


def empty_gradients(x: Tensor, kernel: Tensor, norm_weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of the parameters are float32 sums."""
    n, C = kernel.shape[0], norm_weight.shape[0]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = (torch.empty(s, dtype=torch.float32, device=x.device) for s in ((n, n), (n,), (C,), (C,)))
    return dx, *sums  # type: ignore[return-value]


spatial_gate_fwd = torch.library.custom_op("gated::spatial_gate_fwd", forward, mutates_args=())
spatial_gate_bwd = torch.library.custom_op("gated::spatial_gate_bwd", backward, mutates_args=())


@spatial_gate_fwd.register_fake
def _(
    x: Tensor, kernel: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, axis: int, eps: float
) -> tuple[Tensor, Tensor]:
    return empty_outputs(x)


@spatial_gate_bwd.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    factor: Tensor,
    kernel: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    axis: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(x, kernel, norm_weight)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, kernel, bias, norm_weight, norm_bias, ctx.axis, ctx.eps = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, output[1], kernel, norm_weight, norm_bias)


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, factor, kernel, norm_weight, norm_bias = ctx.saved_tensors
    dx, *sums = spatial_gate_bwd(dy, x, factor, kernel, norm_weight, norm_bias, ctx.axis, ctx.eps)
    dtypes = kernel.dtype, ctx.bias_dtype, norm_weight.dtype, norm_bias.dtype
    return dx, *(total.to(dtype) for total, dtype in zip(sums, dtypes, strict=True)), None, None


spatial_gate_fwd.register_autograd(_backward, setup_context=_setup)
