"""PatchTST: the patches of one series are tokens, every variate is forecast by itself with shared weights.

"A Time Series is Worth 64 Words: Long-term Forecasting with Transformers", Nie et al., arXiv 2211.14730, section 3.1;
sizes from its appendix A.1.

Legend: B windows, D variates, L look-back, H horizon, P patch length, N patches, d channels (``dim``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.blocks.dropout import Dropout
from toolkit.blocks.normalization import instance_normalise
from toolkit.blocks.transformer import SelfAttentionWeights
from toolkit.errors import InputError


class PatchTST(nn.Module):
    """Forecast every variate from attention over its own patches.

    Args:
        lookback: input steps.
        horizon: output steps.
        patch_len: steps of a patch.
        stride: steps from one patch to the next; the series is padded by as many copies of its last value.
        dim: channels of a token; divisible by ``num_heads``. The paper takes 16 (with 4 heads and ``mlp_dim`` 128) for
            the smallest data sets.
        depth: encoder layers.
        num_heads: attention heads.
        mlp_dim: hidden channels of the encoder layers.
        dropout: rate after the embedding, of the hidden channels and of both branches of a layer.
    """

    uses_marks = False
    takes, own_head = "series", "projection"  # as a host of the gate (``gated.py``)

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        patch_len: int = 16,
        stride: int = 8,
        dim: int = 128,
        depth: int = 3,
        num_heads: int = 16,
        mlp_dim: int = 256,
        dropout: float = 0.2,
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
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}", "It must be at least 0 and below 1")
        self.lookback, self.horizon = lookback, horizon
        self.patch_len, self.stride = patch_len, stride
        self.dim, self.depth, self.num_heads, self.mlp_dim = dim, depth, num_heads, mlp_dim
        self.dropout = dropout

        num_patches = (lookback - patch_len) // stride + 2
        self.embedding = nn.Linear(patch_len, dim)
        self.position = nn.Parameter(torch.empty(num_patches, dim).uniform_(-0.02, 0.02))
        self.drop = Dropout(dropout)
        self.layers = nn.ModuleList(BatchNormLayer(dim, num_heads, mlp_dim, dropout) for _ in range(depth))
        self.projection = nn.Linear(num_patches * dim, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised values ``[B, L, D]`` to ``[B, H, D]``."""
        series, mean, scale = instance_normalise(x.transpose(1, 2))  # [B, D, L]
        tokens = self.encode(series.flatten(0, 1))  # [B D, N, d]
        forecast = self.projection(tokens.transpose(1, 2).flatten(1)).view(*series.shape[:2], -1)  # [B, D, H]
        return torch.addcmul(mean, forecast, scale).transpose(1, 2)

    def encode(self, series: Tensor) -> Tensor:
        """Tokens of the patches of each series: ``[B, L]`` to ``[B, N, d]``."""
        padding = series[:, -1:].expand(-1, self.stride)
        patches = torch.cat((series, padding), dim=1).unfold(1, self.patch_len, self.stride)
        tokens = self.drop(self.embedding(patches) + self.position)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class BatchNormLayer(nn.Module):
    """A post-norm encoder layer whose normalisations are over the batch, a channel at a time.

    The paper follows "A Transformer-based Framework for Multivariate Time Series Representation Learning", Zerveas et
    al., arXiv 2010.02803, in that outliers of a series disturb LayerNorm more than BatchNorm.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float):
        super().__init__()
        if dim % num_heads:
            raise InputError(f"dim {dim} is not divisible by num_heads {num_heads}", "Choose another num_heads")
        self.num_heads = num_heads
        self.self_attn = SelfAttentionWeights(dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.norm1 = nn.BatchNorm1d(dim)
        self.norm2 = nn.BatchNorm1d(dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, d]`` to ``[B, N, d]``."""
        num_tokens = x.shape[1]
        x = x.flatten(0, 1)  # the batch of a normalisation is that of all tokens
        x = self.norm1(x + self.drop(self._attention(x.unflatten(0, (-1, num_tokens))).flatten(0, 1)))
        hidden = self.drop(F.gelu(self.linear1(x)))
        return self.norm2(x + self.drop(self.linear2(hidden))).unflatten(0, (-1, num_tokens))

    def _attention(self, x: Tensor) -> Tensor:
        weights = self.self_attn
        packed = F.linear(x, weights.in_proj_weight, weights.in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d / heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return weights.out_proj(mixed.transpose(1, 2).flatten(2))


VARIANTS = {"patchtst": "PatchTST"}
