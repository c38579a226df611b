"""The definition of gated linear attention: a loop over tokens.

Legend: B batch, T time, H heads, K key width, V value width, S packed sequences (S = B without packing).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``S_t = diag(e^g_t) S_(t-1) + k_t v_t^T`` and ``o_t = scale * S_t^T q_t``; shapes as of the public function."""
    if cu_seqlens is not None:
        runs = []
        for n, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
            part = slice(begin, end)
            state = None if initial_state is None else initial_state[n : n + 1]
            runs.append(gla(q[:, part], k[:, part], v[:, part], g[:, part], state, None, scale))
        return torch.cat([o for o, _ in runs], 1), torch.cat([state for _, state in runs])

    B, _, H, K = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    zeros = q.new_zeros(B, H, K, v.shape[-1], dtype=dtype)
    state = zeros if initial_state is None else initial_state.to(dtype)
    outputs = []
    for q_t, k_t, v_t, g_t in zip(*(x.to(dtype).unbind(1) for x in (q, k, v, g)), strict=True):
        state = g_t.exp().unsqueeze(-1) * state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q_t, state))
    o = torch.stack(outputs, 1).to(v.dtype) if outputs else torch.empty_like(v)
    return o, state.clone()
