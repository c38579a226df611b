"""The definition of bidirectional gated linear attention: a run in time's order, one against it, and their mean.

And the same without loops, for exporters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.kernels.gla.reference import gla
from toolkit.kernels.gla.reference import without_loops as gla_without_loops


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


def without_loops(q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor, scale: float) -> Tensor:
    """The same for whole sequences (``gla.reference.without_loops``), both directions at once."""
    values = v.to(torch.promote_types(v.dtype, torch.float32))
    queries, keys, values = (torch.cat([x, x.flip(1)]) for x in (q, k, values))
    gates = torch.cat([g_forward, g_backward.flip(1)])
    o, _ = gla_without_loops(queries, keys, values, gates, None, scale)
    return ((o[: q.shape[0]] + o[q.shape[0] :].flip(1)) / 2).to(v.dtype)
