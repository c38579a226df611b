"""The gated delta rule: ``gated_delta_rule(q, k, v, g, beta)``, and ``gated_delta_rule_step`` for one token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.chunks import num_tiles
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels._common.sequences import check_packed, check_sequences
from toolkit.kernels.gated_delta_rule import reference

__all__ = ["gated_delta_rule", "gated_delta_rule_step"]

OPERATOR = Operator("gated_delta_rule")


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_l2norm: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Causal linear attention that overwrites what a key held before, with a decay per token and head.

    ``S_t = e^g_t S_(t-1) + k_t beta_t (v_t - e^g_t S_(t-1)^T k_t)^T``, ``o_t = scale * S_t^T q_t`` (Yang, Kautz and
    Hatamizadeh, *Gated Delta Networks*, section 3).

    Args:
        q: ``[B, T, H, K]``, as k.
        v: ``[B, T, H, V]``.
        g: log decays ``[B, T, H]``, at most 0; -inf erases. A padded token needs k = 0 and g = 0.
        beta: how much of the old value is replaced, ``[B, T, H]``; stable where ``0 <= beta |k|^2 <= 2``.
        scale: of q; K^-1/2 by default.
        qk_l2norm: divide q and k by ``sqrt(sum x^2 + 1e-6)`` first.
        initial_state: ``[S, H, K, V]``, S = B or the number of packed sequences; zeros by default.
        cu_seqlens: integers ``[S + 1]``, the first token of each sequence packed into B = 1, then T.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        o ``[B, T, H, V]`` in v's type, and the final states ``[S, H, K, V]``, float32 (float64 for float64 inputs).

    Raises:
        InputError: shapes, types or devices that do not fit, or a forced form that cannot run.
    """
    check_sequences(q, k, v)
    _check_scalars(q, "[B, T, H]", g=g, beta=beta)
    S = len(q) if cu_seqlens is None else check_packed(q, cu_seqlens)
    states = (S, *q.shape[2:], v.shape[-1])
    if initial_state is not None and initial_state.shape != states:
        raise InputError(f"initial_state has shape {list(initial_state.shape)}, not {list(states)} ([S, H, K, V])")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tensors = (q, k, v, g, beta, initial_state)
    small, plain = _why_small(q, fewer_than=64), _why_small(q, fewer_than=3)
    form = OPERATOR.choose(*tensors, backend=backend, no_triton=_why_no_triton(q, k, v), small=small, plain=plain)
    if form == "reference":
        return reference.gated_delta_rule(q, k, v, g, beta, initial_state, cu_seqlens, scale, qk_l2norm)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    o, final_state, *_ = _forward(*tensors, cu_seqlens, scale, qk_l2norm, keep, form)
    return o, final_state


def gated_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    scale: float | None = None,
    qk_l2norm: bool = False,
) -> Tensor:
    """One token of ``gated_delta_rule``, for streaming: updates ``state`` in place and has no gradients.

    Args:
        q: ``[B, H, K]``, as k.
        v: ``[B, H, V]``.
        g: ``[B, H]``, as beta.
        state: ``[B, H, K, V]``, float32 or float64.
        scale: of q; K^-1/2 by default.
        qk_l2norm: as of ``gated_delta_rule``.

    Returns:
        o ``[B, H, V]`` in v's type.

    Raises:
        InputError: shapes or types that do not fit.
    """
    check_sequences(*(x.unsqueeze(1) for x in (q, k, v)))
    _check_scalars(q, "[B, H]", g=g, beta=beta)
    states = (*q.shape, v.shape[-1])
    if state.shape != states or state.dtype not in (torch.float32, torch.float64):
        raise InputError(f"state is {state.dtype} {list(state.shape)}, not float32 {list(states)} ([B, H, K, V])")
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        query, key, value, decay, write = (x.to(state.dtype) for x in (q, k, v, g, beta))
        if qk_l2norm:
            query, key = reference.normalise(query), reference.normalise(key)
        state.mul_(decay.exp()[..., None, None])
        written = write.unsqueeze(-1) * (value - (key.unsqueeze(-2) @ state).squeeze(-2))
        state.addcmul_(key.unsqueeze(-1), written.unsqueeze(-2))
        o = (query.unsqueeze(-2) @ state).squeeze(-2)
        return o.mul_(q.shape[-1] ** -0.5 if scale is None else scale).to(v.dtype)


def _check_scalars(q: Tensor, layout: str, **scalars: Tensor) -> None:
    for name, x in scalars.items():
        if x.shape != q.shape[:-1]:
            raise InputError(f"{name} has shape {list(x.shape)}, but q {list(q.shape)} wants {layout}")


def _why_no_triton(q: Tensor, k: Tensor, v: Tensor) -> str:
    width = q.shape[-1]
    widest = 64 if torch.promote_types(q.dtype, torch.promote_types(k.dtype, v.dtype)) is torch.float32 else 128
    fits = width <= widest and v.shape[-1] <= 512
    return "" if fits else f"K = {width} and V = {v.shape[-1]} exceed {widest} and 512"


def _why_small(q: Tensor, fewer_than: int) -> str:
    if torch.compiler.is_compiling():  # T may be a symbol
        return ""
    return f"{q.shape[1]} tokens are fewer than {fewer_than}" if q.shape[1] < fewer_than else ""


@torch.library.custom_op("gated::gated_delta_rule_fwd", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last outputs are what the form's backward needs of the forward; ``keep`` says that there will be one.

    Without, a backward takes longer.
    """
    return OPERATOR.form(backend).forward(q, k, v, g, beta, initial_state, cu_seqlens, scale, qk_l2norm, keep)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, H, K = q.shape
    S = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final_state = q.new_empty(B if S is None else S, H, K, v.shape[-1], dtype=torch.float32)
    chunked = backend != "triton"
    entering = final_state.new_empty((num_tiles(T, S), B, *final_state.shape[1:]) if chunked else (0,))
    return _like(v), final_state, entering, final_state.new_empty(v.shape if chunked and keep else (0,))


@torch.library.custom_op("gated::gated_delta_rule_bwd", mutates_args=())
def _backward(
    do: Tensor | None,
    dfinal_state: Tensor | None,
    entering: Tensor,
    written: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
    keep: bool,
    backend: str,
) -> list[Tensor]:
    saved, inputs = (entering, written), (q, k, v, g, beta, initial_state, cu_seqlens, scale, qk_l2norm, keep)
    return OPERATOR.form(backend).backward(do, dfinal_state, *saved, *inputs)


@_backward.register_fake
def _(
    do: Tensor | None,
    dfinal_state: Tensor | None,
    entering: Tensor,
    written: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    qk_l2norm: bool,
    keep: bool,
    backend: str,
) -> list[Tensor]:
    return [_like(x) for x in (q, k, v, g, beta, initial_state) if x is not None]


def _definition(*inputs: Any) -> tuple[Tensor, Tensor]:
    return reference.gated_delta_rule(*inputs[:-1])  # keeps what autograd keeps


register_gradient(_forward, _backward, _definition, differentiable_outputs=2, saved_outputs=(2, 3))


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
