"""A Transformer encoder layer as one operator: ``encoder_layer(x, weights, num_heads=...)``."""

from __future__ import annotations

from torch import Tensor

from toolkit.kernels._common.dispatch import runs_fast_on_cpu
from toolkit.kernels.dropout import dropout_masks
from toolkit.kernels.encoder_layer import cpu, reference
from toolkit.kernels.encoder_layer.reference import Masks, Weights

__all__ = ["Masks", "Weights", "encoder_layer"]


def encoder_layer(
    x: Tensor,
    weights: Weights,
    *,
    num_heads: int,
    norm_first: bool = True,
    activation: str = "relu",
    dropout: float = 0.0,
    eps: float = 1e-5,
) -> Tensor:
    """Self-attention and a two-layer perceptron, each with a residual path, a LayerNorm and dropout.

    Args:
        x: ``[B, N, d]``; no token is masked.
        weights: the parameters; their order in ``in_weight`` and the heads are those of ``nn.MultiheadAttention``.
        num_heads: must divide d.
        norm_first: LayerNorm before each branch; otherwise after each sum.
        activation: ``relu`` or ``gelu`` (the exact one).
        dropout: rate of the attention weights, of the hidden channels and of both branches.
        eps: of the LayerNorms.
    """
    B, N, d = x.shape
    masks = Masks()
    if dropout > 0:
        shapes = (num_heads * B, N, N), (B * N, d), (B * N, len(weights.mlp1_bias)), (B * N, d)
        masks = Masks(*dropout_masks(shapes, dropout, x))
    # Without dropout the library's attention keeps no N x N weights, so it is better for long sequences.
    fast = (dropout > 0 or N <= cpu.SHORT) and runs_fast_on_cpu(x, weights.in_weight)
    form = cpu if fast else reference
    return form.encoder_layer(x, weights, masks, num_heads, norm_first, activation, eps)
