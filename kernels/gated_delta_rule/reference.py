"""The definition of the gated delta rule: a loop over tokens.

Legend: B batch, T time, H heads, K key width, V value width, S packed sequences (S = B without packing).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from toolkit.kernels._common.numerics import working_dtype

NORM_EPS = 1e-6


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
) -> tuple[Tensor, Tensor]:
    """``S_t = e^g_t S_(t-1) + k_t beta_t (v_t - e^g_t S_(t-1)^T k_t)^T`` and ``o_t = scale * S_t^T q_t``.

    Shapes as of the public function.
    """
    if cu_seqlens is not None:
        runs = []
        for n, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
            state = None if initial_state is None else initial_state[n : n + 1]
            n_q, n_k, n_v, n_g, n_beta = (x[:, begin:end] for x in (q, k, v, g, beta))
            runs.append(gated_delta_rule(n_q, n_k, n_v, n_g, n_beta, state, None, scale, qk_l2norm))
        return torch.cat([o for o, _ in runs], 1), torch.cat([state for _, state in runs])

    B, _, H, K = q.shape
    dtype = working_dtype(q.dtype)
    zeros = q.new_zeros(B, H, K, v.shape[-1], dtype=dtype)
    state = zeros if initial_state is None else initial_state.to(dtype)
    q, k, values, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    if qk_l2norm:
        q, k = normalise(q), normalise(k)
    outputs = []
    for q_t, k_t, v_t, g_t, beta_t in zip(*(x.unbind(1) for x in (q, k, values, g, beta)), strict=True):
        state, o_t = step(q_t, k_t, v_t, g_t, beta_t, state)
        outputs.append(scale * o_t)
    o = torch.stack(outputs, 1).to(v.dtype) if outputs else torch.empty_like(v)
    return o, state.clone()


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token ``[B, H, D]``: the state after it ``[B, H, K, V]``, and what q reads of that ``[B, H, V]``."""
    state = g.exp()[..., None, None] * state
    written = beta.unsqueeze(-1) * (v - torch.einsum("bhk,bhkv->bhv", k, state))
    state = state + k.unsqueeze(-1) * written.unsqueeze(-2)
    return state, torch.einsum("bhk,bhkv->bhv", q, state)


def normalise(x: Tensor) -> Tensor:
    """``x / sqrt(sum x^2 + 1e-6)`` over the last axis."""
    return x * (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()
