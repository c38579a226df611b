"""Gated linear attention in chunks, in plain PyTorch.

Time is walked in tiles that stay in the cache; the backward computes each tile again from the state that entered it.
Legend: B batch, T time, H heads, K key width, V value width, S sequences (B, or the number of packed ones).
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.kernels._common import gated_scan
from toolkit.kernels._common.chunks import groups, num_tiles
from toolkit.kernels._common.memory import empty_like


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, final states, and the states that enter each tile of time."""
    B, T, H, K = q.shape
    S = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    o = empty_like(v)
    last = torch.empty(B if S is None else S, H, K, v.shape[-1], dtype=torch.float32, device=v.device)
    entering = last.new_empty(num_tiles(T, S), B, H, K, v.shape[-1])
    last.zero_() if initial_state is None else last.copy_(initial_state)  # what a sequence of no tokens ends with
    with torch.autocast(q.device.type, enabled=False):
        for batch, chunks in groups(q, v, cu_seqlens):
            first = by_sequence(initial_state, batch, cu_seqlens)
            gated_scan.forward(
                chunks,
                q[batch],
                k[batch],
                v[batch],
                g[batch],
                scale=scale,
                first=None if first is None else first.float(),
                last=by_sequence(last, batch, cu_seqlens),
                entering=entering[:, batch],
                o=o[batch],
            )
    return o, last, entering


def backward(
    do: Tensor | None,
    dlast: Tensor | None,
    entering: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k, v, g and of the initial states, if there are any."""
    do = torch.zeros_like(v) if do is None else do
    dq, dk, dv, dg = map(empty_like, (q, k, v, g))
    S = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dfirst = entering.new_empty(S, *entering.shape[2:])
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
                g[batch],
                scale=scale,
                first=None if first is None else first.float(),
                dlast=by_sequence(dlast, batch, cu_seqlens),
                entering=entering[:, batch],
                dq=dq[batch],
                dk=dk[batch],
                dv=dv[batch],
                dg=dg[batch],
                dfirst=by_sequence(dfirst, batch, cu_seqlens),
            )
    return [dq, dk, dv, dg] if initial_state is None else [dq, dk, dv, dg, dfirst.to(initial_state.dtype)]


def by_sequence(states: Tensor | None, batch: slice, cu_seqlens: Tensor | None) -> Tensor | None:
    """``[S, H, K, V]`` as sequences that the scan meets one after the other, times those that it walks in step."""
    if states is None:
        return None
    return states[None, batch] if cu_seqlens is None else states.unsqueeze(1)
