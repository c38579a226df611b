"""The definition of bidirectional gated linear attention: a run in time's order, one against it, and their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.kernels.gla.reference import gla


def bidirectional_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
) -> Tensor:
    """Shapes as of the public function."""
    values = v.to(torch.promote_types(v.dtype, torch.float32))
    o_forward, _ = gla(q, k, values, g_forward, None, cu_seqlens, scale)
    flipped = None if cu_seqlens is None else q.shape[1] - cu_seqlens.flip(0)
    o_backward, _ = gla(q.flip(1), k.flip(1), values.flip(1), g_backward.flip(1), None, flipped, scale)
    return ((o_forward + o_backward.flip(1)) / 2).to(v.dtype)
