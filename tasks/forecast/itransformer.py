"""iTransformer: every variate is one token, attention mixes the variates.

"iTransformer: Inverted Transformers Are Effective for Time Series Forecasting", Liu et al., arXiv 2310.06625,
section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.blocks.dropout import Dropout
from toolkit.blocks.normalization import instance_normalise
from toolkit.blocks.transformer import EncoderLayer
from toolkit.errors import InputError


class ITransformer(nn.Module):
    """Forecast every variate from tokens that hold the whole look-back of one variate each.

    Args:
        lookback: input steps.
        horizon: output steps.
        dim: channels of a token; divisible by ``num_heads``.
        depth: encoder layers.
        num_heads: attention heads.
        mlp_dim: hidden channels of the encoder layers.
        dropout: rate of every dropout.
    """

    uses_marks = True
    takes, own_head = "variates", "projection"  # as a host of the gate (``gated.py``)

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        dim: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        sizes = {"lookback": lookback, "horizon": horizon, "dim": dim, "depth": depth, "mlp_dim": mlp_dim}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} is {size}", "It must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}", "It must be at least 0 and below 1")
        self.lookback, self.horizon = lookback, horizon
        self.dim, self.depth, self.num_heads, self.mlp_dim = dim, depth, num_heads, mlp_dim
        self.dropout = dropout

        self.embedding = nn.Linear(lookback, dim)
        self.drop = Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, mlp_dim, dropout, norm_first=False, activation="gelu") for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, horizon)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """Map standardised values ``[B, L, D]`` and calendar marks ``[B, L, F]`` to ``[B, H, D]``."""
        series, mean, scale = instance_normalise(x.transpose(1, 2))
        variates = series if marks is None else torch.cat((series, marks.transpose(1, 2)), dim=1)
        tokens = self.encode(self.embed(variates))[:, : x.shape[2]]
        return torch.addcmul(mean, self.projection(tokens), scale).transpose(1, 2)

    def embed(self, series: Tensor) -> Tensor:
        """One token of each series: ``[B, D, L]`` to ``[B, D, dim]``."""
        return self.drop(self.embedding(series))

    def encode(self, tokens: Tensor) -> Tensor:
        """Attention over the variates: ``[B, D, dim]`` to ``[B, D, dim]``."""
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


VARIANTS = {"itransformer": "ITransformer"}
