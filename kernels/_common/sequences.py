"""Checks that the operators over gated sequences share."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import InputError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_sequences(q: Tensor, k: Tensor, v: Tensor, **gates: Tensor) -> None:
    """Raise unless q, k and the gates are ``[B, T, H, K]``, v is ``[B, T, H, V]``, and all are floats on one device."""
    if q.dim() != 4 or 0 in q.shape[2:]:
        raise InputError(f"q has shape {list(q.shape)}, not [B, T, H, K]")
    if v.dim() != 4 or v.shape[:3] != q.shape[:3] or not v.shape[3]:
        raise InputError(
            f"v has shape {list(v.shape)}, but q {list(q.shape)} wants [{q.shape[0]}, {q.shape[1]}, {q.shape[2]}, V]"
        )
    for name, x in {"k": k, **gates}.items():
        if x.shape != q.shape:
            raise InputError(f"{name} has shape {list(x.shape)}, but q {list(q.shape)}; both are [B, T, H, K]")
    for name, x in {"q": q, "k": k, "v": v, **gates}.items():
        if x.dtype not in FLOATS:
            raise InputError(f"{name} is {x.dtype}, not one of float32, bfloat16, float16, float64")
        if x.device != q.device:
            raise InputError(f"{name} is on {x.device}, but q on {q.device}")


def check_packed(q: Tensor, cu_seqlens: Tensor) -> int:
    """Raise unless ``cu_seqlens`` cuts one row of T tokens into sequences; returns their number."""
    if q.shape[0] != 1:
        raise InputError(f"cu_seqlens packs sequences into one row, but the batch has {q.shape[0]}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise InputError(f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}, not integers [S + 1] with S >= 1")
    if type(cu_seqlens) is Tensor and not torch.compiler.is_compiling():  # its values are known
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != q.shape[1] or bounds != sorted(bounds):
            raise InputError(f"cu_seqlens is {bounds}; it must rise from 0 to T = {q.shape[1]}")
    return len(cu_seqlens) - 1


def check_float32(op: str, form: str, *tensors: Tensor | None) -> None:
    """Raise for float64, which the forms that work in float32 would round silently."""
    if any(x is not None and x.dtype is torch.float64 for x in tensors):
        raise InputError(f"{op} computes in float32 in the form {form!r}, but got float64", "Use backend='reference'")


def why_too_wide(q: Tensor, v: Tensor) -> str:
    """Why the Triton kernels of gated sequences cannot serve these widths, empty if they can."""
    K, V = q.shape[-1], v.shape[-1]
    return f"K = {K} and V = {V} exceed K <= 256, V <= 512" if K > 256 or V > 512 else ""
