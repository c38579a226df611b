"""The definition of gated linear attention, a loop over tokens; and a form without loops for exporters.

Legend: B batch, T time, H heads, K key width, V value width, S packed sequences (S = B without packing); in the form
without loops, N chunks of C tokens.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16  # of the form without loops: it keeps C K values per token, and T / C^2 K for the pairs of chunks


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


def without_loops(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """``gla`` of whole sequences as a graph whose size does not depend on T: for exporters.

    Within a chunk every pair of tokens has its own decay, and so has every pair of chunks among their states. Nothing
    is factorised or subtracted, so it is exact for every decay, even -inf.
    """
    B, T, H, K = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    chunks = [B, T // CHUNK + 2, CHUNK, H]  # exporters take a number for a constant where it can be 1
    padded = (F.pad(x.to(dtype), (0, 0, 0, 0, 0, chunks[1] * CHUNK - T)) for x in (q, k, v, g))
    q, k, values, g = (x.reshape([*chunks, x.shape[-1]]).permute(0, 3, 1, 2, 4) for x in padded)  # [B, H, N, C, D]

    within = decays(g)
    scores = torch.matmul(within * k.unsqueeze(-3), q.unsqueeze(-1)).squeeze(-1)  # [B, H, N, C, C]
    updates = torch.matmul((k * within[..., -1, :, :]).mT, values)  # [B, H, N, K, V]

    # The first state is the update of a chunk before the first, so that the states after chunks -1 .. N-1 are all sums.
    first = q.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    updates = torch.cat([first.unsqueeze(2), updates], 2)
    between = decays(F.pad(g.sum(-2), (0, 0, 1, 0)))  # [B, H, N + 1, N + 1, K]
    states = torch.matmul(between.permute(0, 1, 4, 2, 3), updates.transpose(2, 3))  # [B, H, K, N + 1, V]
    entering = states[..., :-1, :].transpose(2, 3)

    o = torch.matmul(scores, values) + torch.matmul(q * g.cumsum(-2).exp(), entering)
    o = o.permute(0, 2, 3, 1, 4).reshape(B, chunks[1] * CHUNK, H, v.shape[-1])[:, :T]
    return (scale * o).to(v.dtype), states[..., -1, :]


def decays(g: Tensor) -> Tensor:
    """``[..., T, K]`` to ``[..., T, T, K]``: ``e^(g_(j+1) + .. + g_i)`` in row i and column j, 0 above the diagonal."""
    place = torch.arange(g.shape[-2], device=g.device)
    row, column = place.view(-1, 1, 1), place.view(-1, 1)
    sums = torch.where(row > column, g.unsqueeze(-2), 0.0).cumsum(-3)
    return torch.where(row >= column, sums.exp(), 0.0)
