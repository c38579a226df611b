"""Attention with a sigmoid gate on its output: ``gated_sdpa(q, k, v, gate)``."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.kernels._common.sequences import FLOATS, takes_reference
from toolkit.kernels.gated_sdpa import cpu, reference

__all__ = ["gated_sdpa"]


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
        backend: ``auto``, ``torch`` (flash attention) or ``reference`` (all weights; differentiable twice).

    Returns:
        y ``[B, T, H, V]`` in v's type.

    Raises:
        InputError: shapes, types or devices that do not fit.
    """
    _check(q, k, v, gate, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if takes_reference(backend, q, k, v, gate):
        return reference.gated_sdpa(q, k, v, gate, scale, causal, mask)
    compiled = backend == "auto" and torch.compiler.is_compiling()  # which fuses plain PyTorch
    form = cpu.plain if compiled or not q.is_cpu else cpu.gated_sdpa
    return form(q, k, v, gate, scale, causal, mask)


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
        if x.dtype not in FLOATS or (name != "gate" and x.dtype != q.dtype):
            raise InputError(f"{name} is {x.dtype}; q, k and v are one of float32, bfloat16, float16, float64, alike")
    if mask is not None:
        tensors["mask"] = mask
        wanted = (B, H, T, k.shape[1])
        fits = mask.dim() <= 4 and all(m in (1, n) for m, n in zip(mask.shape[::-1], wanted[::-1], strict=False))
        if mask.dtype != torch.bool or not fits:
            raise InputError(f"mask is {mask.dtype} {list(mask.shape)}, not booleans that broadcast to {list(wanted)}")
    for name, x in tensors.items():
        if x.device != q.device:
            raise InputError(f"{name} is on {x.device}, but q on {q.device}")
