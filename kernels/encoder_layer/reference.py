"""The definition of a Transformer encoder layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(NamedTuple):
    """Parameters of a layer with d channels and f hidden channels."""

    norm1_weight: Tensor  # [d]
    norm1_bias: Tensor  # [d]
    in_weight: Tensor  # [3 d, d]: query, key and value maps
    in_bias: Tensor  # [3 d]
    out_weight: Tensor  # [d, d]
    out_bias: Tensor  # [d]
    norm2_weight: Tensor  # [d]
    norm2_bias: Tensor  # [d]
    mlp1_weight: Tensor  # [f, d]
    mlp1_bias: Tensor  # [f]
    mlp2_weight: Tensor  # [d, f]
    mlp2_bias: Tensor  # [d]


class Masks(NamedTuple):
    """Dropout factors (0 or 1 / (1 - p)) for B sequences of N tokens; None leaves out that dropout."""

    attention: Tensor | None = None  # [h B, N, N], heads first
    attention_out: Tensor | None = None  # [B N, d]
    hidden: Tensor | None = None  # [B N, f]
    mlp_out: Tensor | None = None  # [B N, d]


def encoder_layer(
    x: Tensor, weights: Weights, masks: Masks, num_heads: int, norm_first: bool, activation: str, eps: float
) -> Tensor:
    """One layer of ``x`` ``[B, N, d]``; see the public function."""
    w = weights

    def norm1(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w.norm1_weight, w.norm1_bias, eps)

    def norm2(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w.norm2_weight, w.norm2_bias, eps)

    def attention(x: Tensor) -> Tensor:
        q, k, v = F.linear(x, w.in_weight, w.in_bias).unflatten(-1, (3, num_heads, -1)).permute(2, 3, 0, 1, 4)
        if masks.attention is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            mixed = drop(scores.softmax(-1), masks.attention) @ v
        out = F.linear(mixed.permute(1, 2, 0, 3).flatten(2), w.out_weight, w.out_bias)
        return drop(out, masks.attention_out)

    def mlp(x: Tensor) -> Tensor:
        hidden = ACTIVATIONS[activation](F.linear(x, w.mlp1_weight, w.mlp1_bias))
        return drop(F.linear(drop(hidden, masks.hidden), w.mlp2_weight, w.mlp2_bias), masks.mlp_out)

    if norm_first:
        x = x + attention(norm1(x))
        return x + mlp(norm2(x))
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


def drop(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.view(x.shape)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": F.gelu}
