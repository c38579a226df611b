"""The definition of GDKVM's memory: a loop over frames.

Legend: B clips, T frames, N objects, K key width, V value width, P positions of a frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels._common.numerics import working_dtype


def gdkvm_memory(
    key: Tensor,
    value: Tensor,
    a_proj: Tensor,
    b_proj: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None,
    decay: str,
    alpha_expand: str,
    key_scale: str,
) -> tuple[Tensor, Tensor]:
    """``S_t = A * (S_(t-1) - B * K_t (K_t^T S_(t-1))) + B * K_t V_t^T``, read by ``K_t^T S_t``.

    A and B are elementwise gates that come from ``S_(t-1)``; the first frame is written without them. Shapes as of the
    public function.
    """
    dtype = working_dtype(key.dtype)
    a_proj, b_proj, A_log, dt_bias = (x.to(dtype) for x in (a_proj, b_proj, A_log, dt_bias))
    state = None if initial_state is None else initial_state.to(dtype)
    readouts, states = [], []
    for key_t, value_t in zip(key.to(dtype).unbind(1), value.to(dtype).unbind(1), strict=True):
        keys = key_t.softmax(1)
        scaled = keys / spectral_bound(keys)[:, None, None] if key_scale == "spectral" else keys
        write = torch.einsum("bkp,bnvp->bnkv", scaled, value_t)
        if state is None:
            state = write
        else:
            alpha, beta = gates(state, a_proj, b_proj, A_log, dt_bias, decay)
            alpha = expand(alpha, state.shape[-1], alpha_expand)
            beta = expand(beta, state.shape[-1], "interleave")
            held = torch.einsum("bkp,bnkv->bnpv", keys, state)
            state = alpha * (state - beta * torch.einsum("bkp,bnpv->bnkv", scaled, held)) + beta * write
        readouts.append(torch.einsum("bkp,bnkv->bnvp", keys, state))
        states.append(state)
    return torch.stack(readouts, 1).to(value.dtype), torch.stack(states, 1)


def spectral_bound(keys: Tensor) -> Tensor:
    """``max(1, lambda_max(K K^T))`` of keys ``[B, K, P]`` after their softmax, ``[B]``.

    It is differentiable where it exceeds 1: positive matrices have a simple largest eigenvalue (Perron).
    """
    few_positions = keys.shape[2] < keys.shape[1]
    smaller = keys.mT @ keys if few_positions else keys @ keys.mT  # equal eigenvalues, but for zeros
    return torch.linalg.eigvalsh(smaller)[:, -1].clamp_min(1)


def gates(
    state: Tensor, a_proj: Tensor, b_proj: Tensor, A_log: Tensor, dt_bias: Tensor, decay: str
) -> tuple[Tensor, Tensor]:
    """alpha and beta of the next frame for each key row and head, ``[B, N, K, heads]``."""
    log_alpha = -A_log.exp() * F.softplus(state @ a_proj.mT + dt_bias)
    return log_alpha.exp() if decay == "exp" else log_alpha, torch.sigmoid(state @ b_proj.mT)


def expand(gate: Tensor, V: int, how: str) -> Tensor:
    """A gate of each of V columns: a head's neighbouring ones (``interleave``), or every heads-th one (``tile``)."""
    heads = gate.shape[-1]
    if how == "interleave":
        return gate.repeat_interleave(V // heads, -1)
    return gate.repeat(*[1] * (gate.dim() - 1), V // heads)
