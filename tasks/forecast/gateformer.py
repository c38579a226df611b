"""Gateformer: attention over patches, then over variates, with two gates that fuse what they see.

"Gateformer: Advancing Multivariate Time Series Forecasting via Temporal and Variate-Wise Attention with Gated
Representations", Lan and Oermann, arXiv 2505.00307, section 3. Sub-modules are named after what they compute.

Legend: B windows, D variates, L look-back, H horizon, N patches, d channels (``dim``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from toolkit.blocks.dropout import Dropout
from toolkit.blocks.fusion import GatedFusion
from toolkit.blocks.normalization import instance_normalise
from toolkit.blocks.transformer import EncoderLayer, TransformerEncoder
from toolkit.errors import InputError


class Gateformer(nn.Module):
    """Forecast every variate of a multivariate series from the last ``lookback`` steps of all of them.

    The weights do not depend on the number of variates, so one model serves tables of any width.

    Args:
        lookback: input steps.
        horizon: output steps.
        patch_len: steps of a patch.
        stride: steps from one patch to the next; the series is padded by as many copies of its last value.
        dim: channels of a token; even, and divisible by ``num_heads``.
        depth: layers of each of the two encoders.
        num_heads: attention heads.
        mlp_dim: hidden channels of the encoder layers.
        dropout: rate of every dropout.
    """

    uses_marks = False

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        patch_len: int = 8,
        stride: int = 8,
        dim: int = 512,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        dropout: float = 0.1,
    ):
        super().__init__()
        sizes = {
            "lookback": lookback,
            "horizon": horizon,
            "patch_len": patch_len,
            "stride": stride,
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} is {size}", "It must be at least 1")
        if lookback < patch_len:
            raise InputError(f"lookback {lookback} is shorter than patch_len {patch_len}", "Lower patch_len")
        if dim % 2:
            raise InputError(f"dim {dim} is odd", "Positions need pairs of channels: choose an even dim")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}", "It must be at least 0 and below 1")
        self.lookback, self.horizon = lookback, horizon
        self.patch_len, self.stride = patch_len, stride
        self.dim, self.depth, self.num_heads, self.mlp_dim = dim, depth, num_heads, mlp_dim
        self.dropout = dropout

        # The order is that of the official code: one seed gives both the same initial weights.
        num_patches = (lookback - patch_len) // stride + 2
        self.patch_embedding = PatchEmbedding(num_patches, patch_len, stride, dim, dropout)
        self.temporal_embedding = FlattenHead(num_patches, dim)
        self.global_embedding = nn.Linear(lookback, dim)
        self.variate_embedding = GatedFusion(dim)
        self.gated_output = GatedFusion(dim)
        self.temporal_encoder = TransformerEncoder(EncoderLayer(dim, num_heads, mlp_dim, dropout), depth)
        self.variate_encoder = TransformerEncoder(EncoderLayer(dim, num_heads, mlp_dim, dropout), depth)
        self.normalised_forecast = nn.Linear(dim, horizon)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised values ``[B, L, D]`` to ``[B, H, D]``."""
        series, mean, scale = instance_normalise(x.transpose(1, 2))  # [B, D, L]

        whole = self.drop(self.global_embedding(series))  # [B, D, d]
        patches = self.patch_embedding(series.flatten(0, 1))  # [B D, N, d]
        parts = self.temporal_embedding(self.temporal_encoder(patches))  # [B D, d]
        parts = self.drop(parts.view(whole.shape))

        variates = self.variate_embedding(whole, parts)
        mixed = self.variate_encoder(variates)  # attention over the D variates
        output = self.gated_output(variates, mixed)

        forecast = self.normalised_forecast(output)  # [B, D, H]
        return torch.addcmul(mean, forecast, scale).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """Cut a series into patches, map each to a token and add its position."""

    position: Tensor

    def __init__(self, num_patches: int, patch_len: int, stride: int, dim: int, dropout: float):
        super().__init__()
        self.patch_len, self.stride = patch_len, stride
        self.linear = nn.Linear(patch_len, dim, bias=False)
        self.drop = Dropout(dropout)
        self.register_buffer("position", sinusoids(num_patches, dim), persistent=False)

    def forward(self, series: Tensor) -> Tensor:
        """``[B, L]`` to ``[B, N, d]``."""
        padding = series[:, -1:].expand(-1, self.stride)
        patches = torch.cat((series, padding), dim=1).unfold(1, self.patch_len, self.stride)
        # As ``self.linear``; the copy lets autograd choose the better of two products for the gradient of the weight.
        tokens = patches @ self.linear.weight.t().contiguous()
        return self.drop(tokens + self.position)


class FlattenHead(nn.Module):
    """One vector from all tokens of a series, by one linear map of their channels (channel-major)."""

    def __init__(self, num_patches: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(num_patches * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, d]`` to ``[B, d]``."""
        return self.linear(tokens.transpose(1, 2).flatten(1))


def sinusoids(length: int, dim: int) -> Tensor:
    """Fixed positions ``[length, dim]``: ``sin(t w_i)`` and ``cos(t w_i)`` in turn, ``w_i = 10000^(-2i/dim)``."""
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


VARIANTS = {"gateformer": "Gateformer"}
