"""GDKVM's memory: ``gdkvm_memory(key, value, ...)`` for a clip, and ``gdkvm_memory_step`` for one frame at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError, nearest
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels.gdkvm_memory import reference

__all__ = ["gdkvm_memory", "gdkvm_memory_step"]

OPERATOR = Operator("gdkvm_memory")
NO_TRITON = "its gates need whole rows of the state before, frame by frame: a kernel has nothing to gain"


def gdkvm_memory(
    key: Tensor,
    value: Tensor,
    a_proj: Tensor,
    b_proj: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    *,
    decay: str = "exp",
    alpha_expand: str = "interleave",
    key_scale: str = "none",
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A key-value memory of a video, whose gates come from what it holds.

    With ``K_t [K, P]`` the key's softmax over K and ``V_t [V, P]``: the first frame writes ``S_0 = K_0 V_0^T``,
    later ones ``S_t = A * (S_(t-1) - B * K_t K_t^T S_(t-1)) + B * K_t V_t^T``; each reads ``K_t^T S_t``. Per key
    row and head, ``beta = sigmoid(S_(t-1) b_proj^T)`` and ``y = S_(t-1) a_proj^T + dt_bias`` (Wang et al.,
    *GDKVM*, arXiv 2512.10252, and its published code). Raw decays are negative and may grow without
    bound: so the published model.

    Args:
        key: ``[B, T, K, P]``, before the softmax; only B may be 0.
        value: ``[B, T, N, V, P]`` of N objects.
        a_proj: ``[heads, V]``, as b_proj; ``heads`` divides V.
        A_log: ``[heads]``, as dt_bias.
        decay: alpha is ``exp(-e^A_log softplus(y))`` (``exp``) or ``-e^A_log softplus(y)`` (``raw``).
        alpha_expand: a head's alpha covers V / heads neighbouring columns (``interleave``) or every heads-th column
            (``tile``). Its beta covers neighbouring ones.
        key_scale: ``spectral`` divides what a frame erases and writes by ``max(1, lambda_max(K_t K_t^T))``, so that no
            frame erases more than there is and long clips stay bounded; ``none`` is the published model.
        initial_state: ``[B, N, K, V]``; the first frame is then like the others.
        backend: ``auto``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        Readouts ``[B, T, N, V, P]`` in value's type, and the state after each frame ``[B, T, N, K, V]``, float32
        (float64 for float64 inputs).

    Raises:
        InputError: shapes, types or options that do not fit, or a forced form that cannot run.
    """
    _check(key, value, a_proj, b_proj, A_log, dt_bias, initial_state, decay, alpha_expand, key_scale)
    tensors = (key, value, a_proj, b_proj, A_log, dt_bias, initial_state)
    form = OPERATOR.choose(*tensors, backend=backend, no_triton=NO_TRITON)
    if form == "reference":
        return reference.gdkvm_memory(*tensors, decay, alpha_expand, key_scale)
    return _forward(*tensors, decay, alpha_expand, key_scale, form)


def gdkvm_memory_step(
    key: Tensor,
    value: Tensor,
    state: Tensor | None,
    a_proj: Tensor,
    b_proj: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    *,
    decay: str = "exp",
    alpha_expand: str = "interleave",
    key_scale: str = "none",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One frame of ``gdkvm_memory``, with gradients.

    Args:
        key: ``[B, K, P]``.
        value: ``[B, N, V, P]``.
        state: ``[B, N, K, V]``, None before the first frame.

    Returns:
        The readout ``[B, N, V, P]`` and the state after the frame.

    Raises:
        InputError: as of ``gdkvm_memory``; the other arguments are those of it too.
    """
    readout, states = gdkvm_memory(
        key.unsqueeze(1),
        value.unsqueeze(1),
        a_proj,
        b_proj,
        A_log,
        dt_bias,
        decay=decay,
        alpha_expand=alpha_expand,
        key_scale=key_scale,
        initial_state=state,
        backend=backend,
    )
    return readout.squeeze(1), states.squeeze(1)


def _check(
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
) -> None:
    for name, option, known in (
        ("decay", decay, ("exp", "raw")),
        ("alpha_expand", alpha_expand, ("interleave", "tile")),
        ("key_scale", key_scale, ("none", "spectral")),
    ):
        if option not in known:
            raise InputError(f"{name} is {option!r}", nearest(option, known) or f"One of: {', '.join(known)}")
    if key.dim() != 4 or 0 in key.shape[1:]:
        raise InputError(f"key has shape {list(key.shape)}, not [B, T, K, P] with T, K, P >= 1")
    B, T, K, P = key.shape
    if value.dim() != 5 or (value.shape[:2], value.shape[4]) != ((B, T), P) or 0 in value.shape[1:]:
        raise InputError(f"value has shape {list(value.shape)}, but key {list(key.shape)} wants [{B}, {T}, N, V, {P}]")
    N, V = value.shape[2:4]
    heads = A_log.shape[0] if A_log.dim() == 1 else 0
    if not heads or V % heads:
        raise InputError(f"A_log has shape {list(A_log.shape)}, not [heads] with heads a divisor of V = {V}")
    for name, x, shape in (
        ("a_proj", a_proj, (heads, V)),
        ("b_proj", b_proj, (heads, V)),
        ("dt_bias", dt_bias, (heads,)),
        ("initial_state", initial_state, (B, N, K, V)),
    ):
        if x is not None and x.shape != shape:
            raise InputError(f"{name} has shape {list(x.shape)}, not {list(shape)}")


@torch.library.custom_op("gated::gdkvm_memory_fwd", mutates_args=())
def _forward(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    form = OPERATOR.form(backend)
    return form.forward(key, value, a_proj, b_proj, A_log, dt_bias, initial_state, decay, alpha_expand, key_scale)


@_forward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    B, T, N, V, _ = value.shape
    return value.new_empty(value.shape), value.new_empty(B, T, N, key.shape[2], V, dtype=torch.float32)


@torch.library.custom_op("gated::gdkvm_memory_bwd", mutates_args=())
def _backward(
    dreadout: Tensor | None,
    dstates: Tensor | None,
    states: Tensor,
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
    backend: str,
) -> list[Tensor]:
    inputs = (key, value, a_proj, b_proj, A_log, dt_bias, initial_state)
    return OPERATOR.form(backend).backward(dreadout, dstates, states, *inputs, decay, alpha_expand, key_scale)


@_backward.register_fake
def _(
    dreadout: Tensor | None,
    dstates: Tensor | None,
    states: Tensor,
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
    backend: str,
) -> list[Tensor]:
    inputs = (key, value, a_proj, b_proj, A_log, dt_bias, initial_state)
    return [x.new_empty(x.shape) for x in inputs if x is not None]


register_gradient(_forward, _backward, reference.gdkvm_memory, differentiable_outputs=2, saved_outputs=(1,))
