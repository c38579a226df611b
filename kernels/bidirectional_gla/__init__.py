"""Gated linear attention over both directions of time: ``bidirectional_gla(q, k, v, g_forward, g_backward)``."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.kernels._common.backends import Operator, only_standard
from toolkit.kernels._common.chunks import num_tiles
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels._common.sequences import check_float32, check_packed, check_sequences, why_too_wide
from toolkit.kernels.bidirectional_gla import reference

__all__ = ["bidirectional_gla"]

OPERATOR = Operator("bidirectional_gla")


def bidirectional_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The mean of gated linear attention in time's order and against it (*ViG*, section 3); each includes the token.

    ``S^f_t = diag(e^gf_t) S^f_(t-1) + k_t v_t^T``, ``S^b_t = diag(e^gb_t) S^b_(t+1) + k_t v_t^T``,
    ``o_t = scale * (S^f_t + S^b_t)^T q_t / 2``.

    Args:
        q: ``[B, T, H, K]``, as k and both gates.
        v: ``[B, T, H, V]``.
        g_forward: log decays, at most 0; -inf erases.
        g_backward: log decays of the other direction; that of token t multiplies the state that comes from t + 1.
        scale: of q; K^-1/2 by default.
        cu_seqlens: integers ``[S + 1]``, the first token of each sequence packed into B = 1, then T.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        o ``[B, T, H, V]`` in v's type.

    Raises:
        InputError: shapes, types or devices that do not fit, or a forced form that cannot run.
    """
    check_sequences(q, k, v, g_forward=g_forward, g_backward=g_backward)
    if cu_seqlens is not None:
        check_packed(q, cu_seqlens)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tensors = (q, k, v, g_forward, g_backward)
    form = OPERATOR.choose(*tensors, backend=backend, no_triton=why_too_wide(q, v))
    if form == "reference" and cu_seqlens is None and only_standard():
        return reference.without_loops(*tensors, scale)
    if form == "reference":
        return reference.bidirectional_gla(*tensors, cu_seqlens, scale)
    check_float32(OPERATOR.name, form, *tensors)
    return _forward(*tensors, cu_seqlens, scale, form)[0]


@torch.library.custom_op("gated::bidirectional_gla_fwd", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The second output is what the form's backward needs of the forward."""
    return OPERATOR.form(backend).forward(q, k, v, g_forward, g_backward, cu_seqlens, scale)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        return _like(v), v.new_empty(0)
    B, T, H, K = q.shape
    tiles = num_tiles(T, None if cu_seqlens is None else cu_seqlens.shape[0] - 1)
    return _like(v), q.new_empty(2, tiles, B, H, K, v.shape[-1], dtype=torch.float32)


@torch.library.custom_op("gated::bidirectional_gla_bwd", mutates_args=())
def _backward(
    do: Tensor,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> list[Tensor]:
    return OPERATOR.form(backend).backward(do, saved, q, k, v, g_forward, g_backward, cu_seqlens, scale)


@_backward.register_fake
def _(
    do: Tensor,
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_forward: Tensor,
    g_backward: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    backend: str,
) -> list[Tensor]:
    return [_like(x) for x in (q, k, v, g_forward, g_backward)]


register_gradient(_forward, _backward, reference.bidirectional_gla, saved_outputs=[1])


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
