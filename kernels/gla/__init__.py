"""Gated linear attention: ``gla(q, k, v, g)``, and ``gla_step`` for one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.sequences import check_packed, check_sequences, takes_reference
from toolkit.kernels.gla import cpu, reference

__all__ = ["gla", "gla_step"]


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Causal linear attention with a decay per key channel.

    ``S_t = diag(e^g_t) S_(t-1) + k_t v_t^T``, ``o_t = scale * S_t^T q_t`` (Yang et al., *Gated Linear Attention
    Transformers with Hardware-Efficient Training*, section 4).

    Args:
        q: ``[B, T, H, K]``, as k and g.
        v: ``[B, T, H, V]``.
        g: log decays, at most 0; -inf erases. A padded token needs k = 0 and g = 0.
        scale: of q; K^-1/2 by default.
        initial_state: ``[S, H, K, V]``, S = B or the number of packed sequences; zeros by default.
        cu_seqlens: integers ``[S + 1]``, the first token of each sequence packed into B = 1, then T.
        backend: ``auto``, ``torch`` (chunks) or ``reference`` (the loop over tokens; differentiable twice).

    Returns:
        o ``[B, T, H, V]`` in v's type, and the final states ``[S, H, K, V]``, float32 (float64 for float64 inputs).

    Raises:
        InputError: shapes or types that do not fit.
    """
    check_sequences(q, k, v, g=g)
    S = len(q) if cu_seqlens is None else check_packed(q, cu_seqlens)
    states = (S, *q.shape[2:], v.shape[-1])
    if initial_state is not None and initial_state.shape != states:
        raise InputError(f"initial_state has shape {list(initial_state.shape)}, not {list(states)} ([S, H, K, V])")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    form = reference if takes_reference(backend, q, k, v, g) else cpu
    return form.gla(q, k, v, g, scale, initial_state, cu_seqlens)


def gla_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, *, scale: float | None = None) -> Tensor:
    """One token of ``gla``, for streaming: updates ``state`` in place and has no gradients.

    Args:
        q: ``[B, H, K]``, as k and g.
        v: ``[B, H, V]``.
        state: ``[B, H, K, V]``, float32 or float64.

    Returns:
        o ``[B, H, V]`` in v's type.

    Raises:
        InputError: shapes or types that do not fit.
    """
    check_sequences(*(x.unsqueeze(1) for x in (q, k, v)), g=g.unsqueeze(1))
    states = (*q.shape, v.shape[-1])
    if state.shape != states or state.dtype not in (torch.float32, torch.float64):
        raise InputError(f"state is {state.dtype} {list(state.shape)}, not float32 {list(states)} ([B, H, K, V])")
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        query, key, value, decay = (x.to(state.dtype) for x in (q, k, v, g))
        state.mul_(decay.exp().unsqueeze(-1)).addcmul_(key.unsqueeze(-1), value.unsqueeze(-2))
        o = torch.matmul(query.unsqueeze(-2), state).squeeze(-2)
        return o.mul_(q.shape[-1] ** -0.5 if scale is None else scale).to(v.dtype)
