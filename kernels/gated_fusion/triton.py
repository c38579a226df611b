"""Gated fusion on a GPU: one elementwise kernel forward and one backward, which computes the gate again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.triton import load_float32, store_rounded

CONFIG = {"BT": 1024, "num_warps": 4}  # 8 elements per thread: one 16-byte access for bf16, two for float32


@triton.jit
def _gate_and_slope(x, KIND: tl.constexpr):
    """The gate h and dh/dx; a kernel that uses one of them compiles to that one."""
    if KIND == "geglu_erf":
        phi = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        h = x * phi
        slope = phi + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif KIND == "geglu_tanh":  # 0.5 (1 + tanh(z / 2)) is sigmoid(z)
        c = tl.minimum(tl.maximum(x, -30.0), 30.0)  # the sigmoid is exactly 0 or 1 beyond; keeps the powers finite
        s = tl.sigmoid(1.5957691216057308 * (c + 0.044715 * c * c * c))
        h = x * s
        slope = s + h * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * c * c)
    elif KIND == "swiglu":
        s = tl.sigmoid(x)
        h = x * s
        slope = s * (1 + x * (1 - s))
    else:
        h = tl.sigmoid(x)
        slope = h * (1 - h)
    return h, slope


@triton.jit
def _gated_fusion_fwd_kernel(x, a, b, y, n, KIND: tl.constexpr, BT: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    mask = i < n
    b_a = load_float32(a, i, mask)
    h, _ = _gate_and_slope(load_float32(x, i, mask), KIND)
    if KIND == "gated_fusion":
        b_b = load_float32(b, i, mask)
        b_y = b_b + h * (b_a - b_b)
    else:
        b_y = h * b_a
    store_rounded(y, i, b_y, mask)


@triton.jit
def _gated_fusion_bwd_kernel(dy, x, a, b, dx, da, db, n, KIND: tl.constexpr, BT: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    mask = i < n
    b_dy = load_float32(dy, i, mask)
    b_a = load_float32(a, i, mask)
    h, slope = _gate_and_slope(load_float32(x, i, mask), KIND)
    store_rounded(da, i, b_dy * h, mask)
    if KIND == "gated_fusion":
        b_a -= load_float32(b, i, mask)
        store_rounded(db, i, b_dy * (1 - h), mask)
    store_rounded(dx, i, b_dy * b_a * slope, mask)


def forward(x: Tensor, a: Tensor, b: Tensor | None, kind: str) -> Tensor:
    y = torch.empty_like(x)
    if n := x.numel():
        _gated_fusion_fwd_kernel[(triton.cdiv(n, CONFIG["BT"]),)](x, a, b, y, n, KIND=kind, **CONFIG)
    return y


def backward(dy: Tensor, x: Tensor, a: Tensor, b: Tensor | None, kind: str) -> list[Tensor]:
    dx, da, db = torch.empty_like(x), torch.empty_like(a), None if b is None else torch.empty_like(b)
    if n := x.numel():
        _gated_fusion_bwd_kernel[(triton.cdiv(n, CONFIG["BT"]),)](dy, x, a, b, dx, da, db, n, KIND=kind, **CONFIG)
    return [dx, da] if db is None else [dx, da, db]


def aot_cases() -> Iterator[dict[str, Any]]:
    """Every specialisation that ``forward`` and ``backward`` launch, in bf16 and float32."""
    for kind in ("gated_fusion", "glu", "swiglu", "geglu_tanh", "geglu_erf"):
        for dtype in ("bf16", "fp32"):
            for fn in (_gated_fusion_fwd_kernel, _gated_fusion_bwd_kernel):
                absent = [] if kind == "gated_fusion" else ["b", "db"]
                pointers = [name for name in fn.arg_names if name not in (*absent, "n", "KIND", "BT")]
                yield {
                    "name": f"{kind} {'fwd' if fn is _gated_fusion_fwd_kernel else 'bwd'} {dtype}",
                    "fn": fn,
                    "signature": {**dict.fromkeys(pointers, f"*{dtype}"), "n": "i32"},
                    "constexprs": {"KIND": kind, "BT": CONFIG["BT"], **{k: None for k in absent if k in fn.arg_names}},
                    "options": {"num_warps": CONFIG["num_warps"]},
                }
