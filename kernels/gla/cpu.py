"""Gated linear attention in chunks, in plain PyTorch, registered as ``gated::gla_fwd`` and ``gated::gla_bwd``.

Time is walked in tiles that stay in the cache; the backward computes each tile again from the state that entered it.
Legend: B batch, T time, H heads, K key width, V value width, S sequences (B, or the number of packed ones).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.kernels._common import gated_scan
from toolkit.kernels._common.chunks import groups, num_tiles


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.gla``."""
    o, final_state, _ = gla_fwd(q, k, v, g, initial_state, cu_seqlens, scale)
    return o, final_state


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, final states, and the states that enter each tile of time."""
    o, last, entering = empty_outputs(q, v, cu_seqlens)
    last.zero_() if initial_state is None else last.copy_(initial_state)  # what a sequence of no tokens ends with
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            first = by_sequence(initial_state, batch, cu_seqlens)
            gated_scan.forward(
                chunks,
                q[batch],
                k[batch],
                v[batch],
                gates=[g[batch]],
                scale=scale,
                first=None if first is None else first.float(),
                last=by_sequence(last, batch, cu_seqlens),
                entering=entering[None, :, batch],
                o=o[batch],
            )
    return o, last, entering


def backward(
    do: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    entering: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g and of the initial states."""
    dq, dk, dv, dg, dfirst = empty_gradients(q, k, v, g, entering, cu_seqlens)
    dfirst.zero_() if dlast is None else dfirst.copy_(dlast)  # that of a sequence of no tokens
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            first = by_sequence(initial_state, batch, cu_seqlens)
            gated_scan.backward(
                chunks,
                do[batch],
                q[batch],
                k[batch],
                v[batch],
                gates=[g[batch]],
                scale=scale,
                first=None if first is None else first.float(),
                dlast=by_sequence(dlast, batch, cu_seqlens),
                entering=entering[None, :, batch],
                dq=dq[batch],
                dk=dk[batch],
                dv=dv[batch],
                dgates=[dg[batch]],
                dfirst=by_sequence(dfirst, batch, cu_seqlens),
            )
    return dq, dk, dv, dg, dfirst


def empty_outputs(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, K = q.shape
    V = v.shape[-1]
    S = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    last = torch.empty(B if S is None else S, H, K, V, dtype=torch.float32, device=v.device)
    return o, last, last.new_empty(num_tiles(T, S), B, H, K, V)


def empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, entering: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dg = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, g))
    S = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return dq, dk, dv, dg, entering.new_empty(S, *entering.shape[2:])


def by_sequence(states: Tensor | None, batch: slice, cu_seqlens: Tensor | None) -> Tensor | None:
    """``[S, H, K, V]`` as sequences that the scan meets one after the other, times those that it walks in step."""
    if states is None:
        return None
    return states[None, batch] if cu_seqlens is None else states.unsqueeze(1)


gla_fwd = torch.library.custom_op("gated::gla_fwd", forward, mutates_args=())
gla_bwd = torch.library.custom_op("gated::gla_bwd", backward, mutates_args=())


@gla_fwd.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_outputs(q, v, cu_seqlens)


@gla_bwd.register_fake
def _(
    do: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    entering: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(q, k, v, g, entering, cu_seqlens)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, do: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, g, initial_state, cu_seqlens, entering = ctx.saved_tensors
    *gradients, dfirst = gla_bwd(do, dlast, q, k, v, g, initial_state, cu_seqlens, entering, ctx.scale)
    return *gradients, None if initial_state is None else dfirst.to(initial_state.dtype), None, None


gla_fwd.register_autograd(_backward, setup_context=_setup)
