"""Both directions in one walk over the chunks, registered as ``gated::bidirectional_gla_fwd`` and ``..._bwd``.

The directions share q, k, v and one score matrix, which multiplies v once. Legend as in ``gla/cpu.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.kernels._common import gated_scan
from toolkit.kernels._common.chunks import groups, num_tiles


def bidirectional_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    scale: float,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """See ``reference.bidirectional_gla``."""
    return bidirectional_gla_fwd(q, k, v, g_forward, g_backward, cu_seqlens, scale)[0]


def forward(
    q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs, and the states of both directions that enter each tile of time."""
    o, entering = empty_outputs(q, v, cu_seqlens)
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            gated_scan.forward(
                chunks,
                q[batch],
                k[batch],
                v[batch],
                gates=[g_forward[batch], g_backward[batch]],
                scale=scale / 2,  # the mean of the directions
                first=None,
                last=None,
                entering=entering[:, :, batch],
                o=o[batch],
            )
    return o, entering


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    entering: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of both gates."""
    dq, dk, dv, dg_forward, dg_backward = empty_gradients(q, k, v, g_forward, g_backward)
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            gated_scan.backward(
                chunks,
                do[batch],
                q[batch],
                k[batch],
                v[batch],
                gates=[g_forward[batch], g_backward[batch]],
                scale=scale / 2,
                first=None,
                dlast=None,
                entering=entering[:, :, batch],
                dq=dq[batch],
                dk=dk[batch],
                dv=dv[batch],
                dgates=[dg_forward[batch], dg_backward[batch]],
                dfirst=None,
            )
    return dq, dk, dv, dg_forward, dg_backward


def empty_outputs(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    B, T, H, K = q.shape
    tiles = num_tiles(T, None if cu_seqlens is None else cu_seqlens.shape[0] - 1)
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    return o, torch.empty(2, tiles, B, H, K, v.shape[-1], dtype=torch.float32, device=v.device)


def empty_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)


bidirectional_gla_fwd = torch.library.custom_op("gated::bidirectional_gla_fwd", forward, mutates_args=())
bidirectional_gla_bwd = torch.library.custom_op("gated::bidirectional_gla_bwd", backward, mutates_args=())


@bidirectional_gla_fwd.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return empty_outputs(q, v, cu_seqlens)


@bidirectional_gla_bwd.register_fake
def _(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    entering: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    return empty_gradients(q, k, v, g_forward, g_backward)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, do: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *bidirectional_gla_bwd(do, *ctx.saved_tensors, ctx.scale), None, None


bidirectional_gla_fwd.register_autograd(_backward, setup_context=_setup)
