"""Both directions, one after the other, each in one walk over the chunks, in plain PyTorch.

Legend as in ``gla/cpu.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.kernels._common import gated_scan
from toolkit.kernels._common.chunks import groups, num_tiles
from toolkit.kernels._common.memory import empty_like


def forward(
    q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs, and the states of both directions that enter each tile of time."""
    B, T, H, K = q.shape
    tiles = num_tiles(T, None if cu_seqlens is None else cu_seqlens.shape[0] - 1)
    o = empty_like(v, torch.float32)
    entering = torch.empty(2, tiles, B, H, K, v.shape[-1], dtype=torch.float32, device=v.device)
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            for side, g in enumerate((g_forward, g_backward)):
                gated_scan.forward(
                    chunks,
                    q[batch],
                    k[batch],
                    v[batch],
                    g[batch],
                    scale=scale / 2,  # the mean of the directions
                    first=None,
                    last=None,
                    entering=entering[side, :, batch],
                    o=o[batch],
                    to_left=bool(side),
                    add=bool(side),
                )
    return o.to(v.dtype), entering


def backward(
    do: Tensor,
    entering: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k, v and of both gates."""
    dq, dk, dv = (empty_like(x, torch.float32) for x in (q, k, v))
    dgates = [empty_like(g) for g in (g_forward, g_backward)]
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            for side, g in enumerate((g_forward, g_backward)):
                gated_scan.backward(
                    chunks,
                    do[batch],
                    q[batch],
                    k[batch],
                    v[batch],
                    g[batch],
                    scale=scale / 2,
                    first=None,
                    dlast=None,
                    entering=entering[side, :, batch],
                    dq=dq[batch],
                    dk=dk[batch],
                    dv=dv[batch],
                    dg=dgates[side][batch],
                    dfirst=None,
                    to_left=bool(side),
                    add=bool(side),
                )
    return [dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *dgates]
