"""Transformer encoders, pre-norm or post-norm, with ReLU or GELU.

Source: "Attention Is All You Need", Vaswani et al., section 3; pre-norm from "On Layer Normalization in the Transformer
Architecture", Xiong et al., arXiv 2002.04745.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.kernels.encoder_layer import Weights, encoder_layer


class SelfAttentionWeights(nn.Module):
    """The parameters of ``nn.MultiheadAttention``: same names, shapes and initial values."""

    def __init__(self, dim: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)


class EncoderLayer(nn.Module):
    """``nn.TransformerEncoderLayer`` without masks: same parameters, same numbers, one operator.

    Args:
        dim: channels of a token.
        num_heads: attention heads; must divide ``dim``.
        mlp_dim: hidden channels of the perceptron.
        dropout: rate of the attention weights, of the hidden channels and of both branches.
        norm_first: LayerNorm before each branch; otherwise after each sum.
        activation: ``relu`` or ``gelu``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float = 0.1,
        *,
        norm_first: bool = True,
        activation: str = "relu",
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"dim {dim} is not divisible by num_heads {num_heads}", "Choose another num_heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm_first = norm_first
        self.activation = activation
        self.self_attn = SelfAttentionWeights(dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, dim]`` to ``[B, N, dim]``."""
        attention = self.self_attn
        weights = Weights(
            self.norm1.weight,
            self.norm1.bias,
            attention.in_proj_weight,
            attention.in_proj_bias,
            attention.out_proj.weight,
            attention.out_proj.bias,
            self.norm2.weight,
            self.norm2.bias,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
        )
        return encoder_layer(
            x,
            weights,
            num_heads=self.num_heads,
            norm_first=self.norm_first,
            activation=self.activation,
            dropout=self.dropout if self.training else 0.0,
            eps=self.norm1.eps,
        )


class TransformerEncoder(nn.Module):
    """A stack of ``depth`` layers that start from identical weights, as ``nn.TransformerEncoder`` copies its layer."""

    def __init__(self, layer: EncoderLayer, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, dim]`` to ``[B, N, dim]``."""
        for layer in self.layers:
            x = layer(x)
        return x
