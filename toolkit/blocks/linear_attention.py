"""Gated linear attention over tokens, causal or over both directions.

Sources: "Gated Linear Attention Transformers with Hardware-Efficient Training", Yang et al., arXiv 2312.06635, section
4.4 (the layer), and "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", Liao et al., arXiv
2405.18425, section 3 (both directions, each with its own gate).

Legend: B batch, T tokens, C channels, H heads, K and V key and value width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.kernels.bidirectional_gla import bidirectional_gla
from toolkit.kernels.gla import gla, gla_step

# TorchScript calls registered operators only; this one is the public function, whatever form of it runs below.
torch.library.define(
    "gated::bidirectional_gla",
    "(Tensor q, Tensor k, Tensor v, Tensor g_forward, Tensor g_backward, float scale) -> Tensor",
)


@torch.library.impl("gated::bidirectional_gla", "CompositeImplicitAutograd")
def _(q: Tensor, k: Tensor, v: Tensor, g_forward: Tensor, g_backward: Tensor, scale: float) -> Tensor:
    return bidirectional_gla(q, k, v, g_forward, g_backward, scale=scale)


def log_decays(logits: Tensor, normalizer: float) -> Tensor:
    """``log(sigmoid(logits)) / normalizer``, in float32 at least; shape as ``logits``."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if torch.is_grad_enabled():
        return F.logsigmoid(z) / normalizer
    # A quarter of logsigmoid's time: exp and log run on vector units, log1p does not. 1 + e^-|z| is rounded by 6e-8 at
    # most, which is an absolute error of the sum of log decays, hence a relative one of the decay.
    return z.clamp(max=0).sub_(z.abs().neg_().exp_().add_(1).log_()).div_(normalizer)


@register_notrace_function
def attend_both_ways(
    qkv: Tensor, gate_logits: Tensor, num_heads: int, key_dim: int, gate_normalizer: float, scale: float
) -> Tensor:
    """Split projections into heads and run bidirectional gated linear attention.

    A leaf for tracers, since the operator's chunks depend on the number of tokens.

    Args:
        qkv: queries, keys and values, ``[B, T, 2 key_dim + C]``.
        gate_logits: of the forward, then of the backward direction, ``[B, T, 2 key_dim]``.
        num_heads: H; head h takes the h-th part of each.
        key_dim: K H.
        gate_normalizer: divides the log decays.
        scale: multiplies the queries.

    Returns:
        ``[B, T, H, V]``.
    """
    B, T, width = qkv.shape
    q, k, v = qkv.split([key_dim, key_dim, width - 2 * key_dim], dim=-1)
    forward, backward = log_decays(gate_logits, gate_normalizer).chunk(2, dim=-1)
    heads = [B, T, num_heads, -1]
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    forward, backward = forward.reshape(heads), backward.reshape(heads)
    if torch.jit.is_scripting():
        return torch.ops.gated.bidirectional_gla(q, k, v, forward, backward, scale)
    else:  # noqa: RET505, TorchScript skips exactly this branch
        return bidirectional_gla(q, k, v, forward, backward, scale=scale)


class BidirectionalGatedLinearAttention(nn.Module):
    """ViG's direction-wise gated attention: queries, keys and values are shared, each direction has its own gate.

    Args:
        dim: C, channels of a token and of all values.
        num_heads: H.
        key_dim: K H, channels of all queries.
        gate_rank: rank of the map to the gates' logits.
        gate_normalizer: the log decays are log sigmoids divided by it.
        share: of each direction in the output; 1/2 is their mean.

    Raises:
        InputError: widths that the heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        key_dim: int,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        share: float = 0.5,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_heads(num_heads, dim=dim, key_dim=key_dim)
        dd = {"device": device, "dtype": dtype}
        self.num_heads, self.key_dim, self.gate_normalizer = num_heads, key_dim, float(gate_normalizer)
        self.scale = 2 * share * (key_dim // num_heads) ** -0.5  # the operator takes the mean
        self.qkv_proj = nn.Linear(dim, 2 * key_dim + dim, bias=False, **dd)
        self.gk_proj = low_rank(dim, gate_rank, 2 * key_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, C]`` to ``[B, T, H, V]``, heads not yet normalised nor joined."""
        return attend_both_ways(
            self.qkv_proj(x), self.gk_proj(x), self.num_heads, self.key_dim, self.gate_normalizer, self.scale
        )


class GatedLinearAttention(nn.Module):
    """The causal layer of GLA: a decay per key channel, a norm per head and a gate on the output.

    Args:
        dim: C, channels of a token and of all values.
        num_heads: H.
        key_dim: K H, channels of all queries; half of ``dim`` by default, as in the paper.
        gate_rank: rank of the map to the gates' logits.
        gate_normalizer: the log decays are log sigmoids divided by it.
        norm_eps: of the norm of each head's output.

    Raises:
        InputError: widths that the heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        key_dim: int | None = None,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        norm_eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        key_dim = dim // 2 if key_dim is None else key_dim
        check_heads(num_heads, dim=dim, key_dim=key_dim)
        dd = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.key_dim, self.gate_normalizer = dim, num_heads, key_dim, float(gate_normalizer)
        self.qkv_proj = nn.Linear(dim, 2 * key_dim + dim, bias=False, **dd)
        self.gk_proj = low_rank(dim, gate_rank, key_dim, **dd)
        self.g_proj = nn.Linear(dim, dim, **dd)
        self.g_norm = nn.RMSNorm(dim // num_heads, eps=norm_eps, **dd)
        self.o_proj = nn.Linear(dim, dim, bias=False, **dd)

    def initial_state(self, batch_size: int) -> Tensor:
        """The empty memory, float32 zeros ``[B, H, K, V]``."""
        K, V = self.key_dim // self.num_heads, self.dim // self.num_heads
        return torch.zeros(batch_size, self.num_heads, K, V, device=self.o_proj.weight.device)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A stretch of tokens.

        Args:
            x: ``[B, T, C]``.
            state: what tokens before it have left, ``[B, H, K, V]``; nothing if None.

        Returns:
            ``[B, T, C]``, and the state after the last token.
        """
        q, k, v, g = self._project(x)
        o, state = gla(q, k, v, g, initial_state=state)
        return self._gated_output(o, x), state

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """One token of a stream, ``[B, C]`` to ``[B, C]``: updates ``state`` in place and has no gradients."""
        with torch.no_grad():
            o = gla_step(*self._project(x), state)
            return self._gated_output(o, x)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values and log decays, ``[..., H, K or V]``."""
        q, k, v = self.qkv_proj(x).split([self.key_dim, self.key_dim, self.dim], dim=-1)
        g = log_decays(self.gk_proj(x), self.gate_normalizer)
        q, k, v, g = (part.unflatten(-1, (self.num_heads, -1)) for part in (q, k, v, g))
        return q, k, v, g

    def _gated_output(self, o: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(self.g_norm(o).flatten(-2) * F.silu(self.g_proj(x)))


def low_rank(dim: int, rank: int, out: int, **dd: Any) -> nn.Sequential:
    """A linear map through ``rank`` channels, with a bias at its end."""
    return nn.Sequential(nn.Linear(dim, rank, bias=False, **dd), nn.Linear(rank, out, **dd))


def check_heads(num_heads: int, **widths: int) -> None:
    for name, width in widths.items():
        if num_heads < 1 or width < 1 or width % num_heads:
            raise InputError(f"{name} {width} is not divisible by num_heads {num_heads}", "Choose another num_heads")
