"""Gated linear attention over both directions of time: ``bidirectional_gla(q, k, v, g_forward, g_backward)``."""

from __future__ import annotations

from torch import Tensor

from toolkit.kernels._common.sequences import check_packed, check_sequences, takes_reference
from toolkit.kernels.bidirectional_gla import cpu, reference

__all__ = ["bidirectional_gla"]


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
        backend: ``auto``, ``torch`` (chunks) or ``reference`` (loops over tokens, which can be differentiated twice).

    Returns:
        o ``[B, T, H, V]`` in v's type.

    Raises:
        InputError: shapes or types that do not fit.
    """
    check_sequences(q, k, v, g_forward=g_forward, g_backward=g_backward)
    if cu_seqlens is not None:
        check_packed(q, cu_seqlens)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    form = reference if takes_reference(backend, q, k, v, g_forward, g_backward) else cpu
    return form.bidirectional_gla(q, k, v, g_forward, g_backward, scale, cu_seqlens)
