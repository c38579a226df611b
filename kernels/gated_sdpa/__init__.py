"""Attention with a sigmoid gate on its output: ``gated_sdpa(q, k, v, gate)``.

On a CPU one operator holds attention and gate. Elsewhere the library's attention is the core, with the gate as an
operator of its own behind it (Triton) or as plain PyTorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from toolkit.errors import InputError
from toolkit.kernels._common.backends import Operator
from toolkit.kernels._common.registration import register_gradient
from toolkit.kernels._common.sequences import check_float32
from toolkit.kernels.gated_sdpa import reference

__all__ = ["gated_sdpa"]

OPERATOR = Operator("gated_sdpa")


def gated_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scaled dot-product attention whose output a sigmoid gate multiplies.

    ``y = softmax(scale q k^T + mask) v * sigmoid(gate)`` (Qiu et al., *Gated Attention for Large Language Models*,
    section 2.2). A query that sees no key gives 0.

    Args:
        q: ``[B, T, H, K]``.
        k: ``[B, S, Hk, K]``; head h of q uses head h // (H / Hk).
        v: ``[B, S, Hk, V]``.
        gate: before the sigmoid, ``[B, T, H, 1]`` per head or ``[B, T, H, V]`` per element.
        scale: K^-1/2 by default.
        causal: query t sees keys 0 .. t + S - T: the last ones of both are aligned.
        mask: booleans that broadcast to ``[B, H, T, S]``, true where a key may be seen.
        backend: ``auto``, ``triton``, ``torch`` or ``reference`` (``toolkit.kernels._common.backends``).

    Returns:
        y ``[B, T, H, V]`` in v's type.

    Raises:
        InputError: shapes, types or devices that do not fit or are not served, a forced form that cannot run.
    """
    _check(q, k, v, gate, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    form = OPERATOR.choose(q, k, v, gate, backend=backend)
    if form == "reference":
        return reference.gated_sdpa(q, k, v, gate, scale, causal, mask)
    check_float32("gated_sdpa", form, q, k, v, gate)
    compiled = backend == "auto" and torch.compiler.is_compiling()  # which fuses the gate with its surroundings
    if form == "torch" and q.is_cpu and not compiled:
        return _forward(q, k, v, gate, scale, causal, mask, form)[0]
    o = _library_attention(q, k, v, scale, causal, mask)
    return _gate_forward(o, gate, form) if form == "triton" and not compiled else reference.gated(o, gate)


def _library_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, mask: Tensor | None) -> Tensor:
    """``[B, T, H, V]`` before the gate."""
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    # A symbolic T that only may equal S takes the mask, which is right for both.
    square = causal and mask is None and statically_known_true(q.shape[1] == k.shape[1])
    if not square:
        mask = reference.visible_keys(queries.new_empty(0, q.shape[1], k.shape[1]), causal, mask)
    o = F.scaled_dot_product_attention(
        queries, keys, values, mask, is_causal=square, scale=scale, enable_gqa=q.shape[2] != k.shape[2]
    )
    return o.transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor | None) -> None:
    if q.dim() != 4 or 0 in q.shape[2:]:
        raise InputError(f"q has shape {list(q.shape)}, not [B, T, H, K]")
    B, T, H, K = q.shape
    if k.dim() != 4 or k.shape[0] != B or k.shape[3] != K or not k.shape[2] or H % k.shape[2]:
        raise InputError(f"k has shape {list(k.shape)}, not [{B}, S, Hk, {K}] with Hk a divisor of {H}")
    if v.dim() != 4 or v.shape[:3] != k.shape[:3] or not v.shape[3]:
        raise InputError(f"v has shape {list(v.shape)}, not {[*k.shape[:3], 'V']} as k {list(k.shape)} wants")
    if gate.shape not in ((B, T, H, 1), (B, T, H, v.shape[3])):
        raise InputError(f"gate has shape {list(gate.shape)}, not {[B, T, H, 1]} or {[B, T, H, v.shape[3]]}")
    tensors = {"q": q, "k": k, "v": v, "gate": gate}
    for name, x in tensors.items():
        if name != "gate" and x.dtype != q.dtype:
            raise InputError(f"{name} is {x.dtype}, but q {q.dtype}; q, k and v are of one type")
    if mask is not None:
        tensors["mask"] = mask
        wanted = (B, H, T, k.shape[1])
        fits = mask.dim() <= 4 and all(m in (1, n) for m, n in zip(mask.shape[::-1], wanted[::-1], strict=False))
        if mask.dtype != torch.bool or not fits:
            raise InputError(f"mask is {mask.dtype} {list(mask.shape)}, not booleans that broadcast to {list(wanted)}")
    if mask is not None and mask.device != q.device:
        raise InputError(f"mask is on {mask.device}, but q on {q.device}")


@torch.library.custom_op("gated::gated_sdpa_fwd", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y; o before the gate and the log-sum-exps ``[B, H, T]`` for the backward."""
    return OPERATOR.form(backend).forward(q, k, v, gate, scale, causal, mask)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, V = *q.shape[:3], v.shape[-1]
    return v.new_empty(B, T, H, V), v.new_empty(B, T, H, V), v.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("gated::gated_sdpa_bwd", mutates_args=(), device_types="cpu")
def _backward(
    dy: Tensor,
    o: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    backend: str,
) -> list[Tensor]:
    return OPERATOR.form(backend).backward(dy, o, lse, q, k, v, gate, scale, causal, mask)


@_backward.register_fake
def _(
    dy: Tensor,
    o: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    backend: str,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v, gate)]


register_gradient(_forward, _backward, reference.gated_sdpa, saved_outputs=[1, 2])


@torch.library.custom_op("gated::gated_sdpa_gate_fwd", mutates_args=())
def _gate_forward(o: Tensor, gate: Tensor, backend: str) -> Tensor:
    return OPERATOR.form(backend).forward(o.contiguous(), gate.contiguous())


@_gate_forward.register_fake
def _(o: Tensor, gate: Tensor, backend: str) -> Tensor:
    return o.new_empty(o.shape)


@torch.library.custom_op("gated::gated_sdpa_gate_bwd", mutates_args=())
def _gate_backward(dy: Tensor, o: Tensor, gate: Tensor, backend: str) -> list[Tensor]:
    return OPERATOR.form(backend).backward(dy.contiguous(), o.contiguous(), gate.contiguous())


@_gate_backward.register_fake
def _(dy: Tensor, o: Tensor, gate: Tensor, backend: str) -> list[Tensor]:
    return [o.new_empty(o.shape), gate.new_empty(gate.shape)]


register_gradient(_gate_forward, _gate_backward, reference.gated)
