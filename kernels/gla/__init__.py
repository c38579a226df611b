"""Gated linear attention: ``gla(q, k, v, g)``, and ``gla_step`` for one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator, only_standard
from toolkit.kernels._common.chunks import num_tiles
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels._common.sequences import check_float32, check_packed, check_sequences, why_too_wide
from toolkit.kernels.gla import reference

__all__ = ["gla", "gla_step"]

OPERATOR = Operator("gla")


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
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        o ``[B, T, H, V]`` in v's type, and the final states ``[S, H, K, V]``, float32 (float64 for float64 inputs).

    Raises:
        InputError: shapes, types or devices that do not fit, or a forced form that cannot run.
    """
    check_sequences(q, k, v, g=g)
    S = len(q) if cu_seqlens is None else check_packed(q, cu_seqlens)
    states = (S, *q.shape[2:], v.shape[-1])
    if initial_state is not None and initial_state.shape != states:
        raise InputError(f"initial_state has shape {list(initial_state.shape)}, not {list(states)} ([S, H, K, V])")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    form = OPERATOR.choose(q, k, v, g, initial_state, backend=backend, no_triton=why_too_wide(q, v))
    if form == "reference" and cu_seqlens is None and only_standard():
        return reference.without_loops(q, k, v, g, initial_state, scale)
    if form == "reference":
        return reference.gla(q, k, v, g, initial_state, cu_seqlens, scale)
    check_float32(OPERATOR.name, form, q, k, v, g, initial_state)
    o, final_state, _ = _forward(q, k, v, g, initial_state, cu_seqlens, scale, form)
    return o, final_state


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


@torch.library.custom_op("gated::gla_fwd", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The third output is what the form's backward needs of the forward."""
    return OPERATOR.form(backend).forward(q, k, v, g, initial_state, cu_seqlens, scale)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, K = q.shape
    S = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = q.new_empty(B if S is None else S, H, K, v.shape[-1], dtype=torch.float32)
    if backend == "triton":
        return _like(v), states, states.new_empty(0)
    return _like(v), states, states.new_empty(num_tiles(T, S), B, H, K, v.shape[-1])


@torch.library.custom_op("gated::gla_bwd", mutates_args=())
def _backward(
    do: Tensor | None,
    dfinal_state: Tensor | None,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> list[Tensor]:
    form = OPERATOR.form(backend)
    return form.backward(do, dfinal_state, saved, q, k, v, g, initial_state, cu_seqlens, scale)


@_backward.register_fake
def _(
    do: Tensor | None,
    dfinal_state: Tensor | None,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> list[Tensor]:
    return [_like(x) for x in (q, k, v, g, initial_state) if x is not None]


register_gradient(_forward, _backward, reference.gla, differentiable_outputs=2, saved_outputs=[2])


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
