"""Attention with a sigmoid gate on its output.

Source: "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free", Qiu et al., arXiv
2505.06708, section 2.2, gate position G1; parameters and their order are those of the authors' released layer.

Legend: B batch, T tokens, C channels, H query heads, Hk key and value heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import InputError, nearest
from toolkit.kernels.gated_sdpa import gated_sdpa

GATES = ("elementwise", "headwise")


class GatedAttention(nn.Module):
    """Multi-head self-attention; ``o_h = softmax(q_h k^T / sqrt(D)) v * sigmoid(gate_h)``, then a linear map.

    A head's gate depends on the token of the query, through rows of ``q_proj``. The rows stand in groups, one per key
    and value head: the queries of its heads, then their gates.

    Args:
        dim: C.
        num_heads: H.
        num_kv_heads: Hk, a divisor of H; as many as H by default. Query head h uses key head h // (H / Hk).
        head_dim: D; C / H by default.
        gate: ``elementwise``, a gate per channel of a head, or ``headwise``, one per head.
        qk_norm: RMSNorm of queries and keys over D, before the rotation.
        bias: of all four linear maps.
        rope_theta: base of the rotary positions, which turn the two halves of a head against each other; None for none.
        norm_eps: of the RMSNorms.
        causal: token t sees tokens 0 .. t.

    Raises:
        InputError: heads or widths that do not fit, or an unknown gate.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        gate: str = "elementwise",
        qk_norm: bool = False,
        bias: bool = False,
        rope_theta: float | None = None,
        norm_eps: float = 1e-6,
        causal: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
            raise InputError(f"num_heads is {num_heads}, not a multiple of num_kv_heads {num_kv_heads}")
        if head_dim is None and dim % num_heads:
            raise InputError(f"dim {dim} is not divisible by num_heads {num_heads}", "Choose another, or give head_dim")
        head_dim = dim // num_heads if head_dim is None else head_dim
        if head_dim < 1 or (rope_theta is not None and head_dim % 2):
            raise InputError(f"head_dim is {head_dim}", "At least 1, and even with rotary positions")
        if gate not in GATES:
            raise InputError(f"gate is {gate!r}", nearest(gate, GATES) or f"One of: {', '.join(GATES)}")
        self.dim, self.num_heads, self.num_kv_heads, self.head_dim = dim, num_heads, num_kv_heads, head_dim
        self.gate, self.qk_norm, self.rope_theta, self.causal = gate, qk_norm, rope_theta, causal
        dd = {"device": device, "dtype": dtype}
        gates = num_heads * (head_dim if gate == "elementwise" else 1)
        self.q_proj = nn.Linear(dim, num_heads * head_dim + gates, bias=bias, **dd)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias, **dd)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias, **dd)
        self.q_norm = nn.RMSNorm(head_dim, eps=norm_eps, **dd) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=norm_eps, **dd) if qk_norm else nn.Identity()
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=bias, **dd)

    def openness(self, x: Tensor) -> Tensor:
        """The gates after the sigmoid, ``[B, T, C]`` to ``[B, T, H, 1 or D]``."""
        return self._queries_and_gates(x)[1].sigmoid()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention over the tokens.

        Args:
            x: ``[B, T, C]``.
            mask: booleans that broadcast to ``[B, H, T, T]``, true where a token (last axis) may be seen.

        Returns:
            ``[B, T, C]``. A token that sees none gets the bias of the last map, or 0.
        """
        q, gate = self._queries_and_gates(x)
        k, v = (project(x).unflatten(-1, (self.num_kv_heads, self.head_dim)) for project in (self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope_theta is not None:
            q, k = rotate(q, self.rope_theta), rotate(k, self.rope_theta)
        return self.o_proj(gated_sdpa(q, k, v, gate, causal=self.causal, mask=mask).flatten(2))

    def _queries_and_gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, H, D]`` and, before the sigmoid, ``[B, T, H, 1 or D]``."""
        group = self.num_heads // self.num_kv_heads
        rows = self.q_proj(x).unflatten(-1, (self.num_kv_heads, -1))
        queries, gates = rows.tensor_split([group * self.head_dim], dim=-1)
        q, gate = (part.unflatten(-1, (group, -1)).flatten(2, 3) for part in (queries, gates))
        return q, gate


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0 .. T - 1 of ``[B, T, H, D]``: channel i < D/2 turns against i + D/2, by t theta^(-2i/D).

    Source: "RoFormer: Enhanced Transformer with Rotary Position Embedding", Su et al., arXiv 2104.09864, section 3.2,
    with the channels paired by halves.
    """
    T, D = x.shape[1], x.shape[-1]
    frequencies = theta ** (-torch.arange(0, D, 2, device=x.device, dtype=torch.float32) / D)
    angles = torch.arange(T, device=x.device, dtype=torch.float32)[:, None, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
