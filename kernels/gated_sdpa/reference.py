"""The definition of attention with a sigmoid gate on its output."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_sdpa(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> Tensor:
    """``softmax(scale q k^T + mask) v * sigmoid(gate)``; a query that sees no key gives 0."""
    wide = torch.promote_types(v.dtype, torch.float32)
    queries, keys, values = q.to(wide), k.to(wide), v.to(wide)
    shared = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(shared, 2) for x in (keys, values))
    scores = torch.einsum("bthk,bshk->bhts", queries, keys) * scale
    visible = visible_keys(scores, causal, mask)
    if visible is None:
        weights = scores.softmax(-1)
    else:
        weights = scores.masked_fill(~visible, torch.finfo(wide).min).softmax(-1) * visible
    o = torch.einsum("bhts,bshv->bthv", weights, values)
    return gated(o, gate).to(v.dtype)


def gated(o: Tensor, gate: Tensor) -> Tensor:
    """``o * sigmoid(gate)`` in o's type."""
    wide = torch.promote_types(o.dtype, torch.float32)
    return (o * gate.to(wide).sigmoid()).to(o.dtype)


def visible_keys(scores: Tensor, causal: bool, mask: Tensor | None) -> Tensor | None:
    """Booleans that broadcast to ``[B, H, T, S]``; causal: the last query sees all keys, the one before all but one."""
    if not causal:
        return mask
    T, S = scores.shape[-2:]
    query, key = torch.arange(T, device=scores.device), torch.arange(S, device=scores.device)
    past = key <= query.unsqueeze(-1) + (S - T)
    return past if mask is None else past & mask
