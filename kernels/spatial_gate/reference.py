"""The definition of MAXIM's spatial gating unit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spatial_gate(
    x: Tensor, kernel: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, axis: int, eps: float
) -> Tensor:
    """``u * (mix(LayerNorm(v)) + 1)``, ``x [B, G, P, 2C]`` being u, then v; mixes axis 1 (G) or 2 (P)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    u, v = x.to(wide).chunk(2, -1)
    v = F.layer_norm(v, v.shape[-1:], norm_weight.to(wide), norm_bias.to(wide), eps)
    mixed = F.linear(v.transpose(axis, -1), kernel.to(wide).t(), bias.to(wide)).transpose(axis, -1)
    return (u * (mixed + 1)).to(x.dtype)
