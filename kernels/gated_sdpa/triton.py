"""The gate on a GPU, around the library's attention: one kernel multiplies, one gives both gradients.

Legend: R rows, one per batch, query and head, of V channels; a gate per head has one value for a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.triton import load_float32, store_rounded

# Rows BR and channels BV of a tile, by the greatest V.
CONFIGS = (
    (32, {"BR": 32, "BV": 32, "num_warps": 4}),
    (64, {"BR": 16, "BV": 64, "num_warps": 8}),
    (None, {"BR": 8, "BV": 128, "num_warps": 4}),
)


@triton.jit
def _gated_sdpa_fwd_kernel(o, gate, y, R, V, HEADWISE: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR))[:, None]
    column = tl.program_id(1) * BV + tl.arange(0, BV)[None, :]
    inside = (row < R) & (column < V)
    if HEADWISE:
        opened = tl.sigmoid(load_float32(gate, row, row < R))
    else:
        opened = tl.sigmoid(load_float32(gate, row * V + column, inside))
    store_rounded(y, row * V + column, load_float32(o, row * V + column, inside) * opened, inside)


@triton.jit
def _gated_sdpa_bwd_kernel(
    dy, o, gate, do, dgate, R, V, HEADWISE: tl.constexpr, BR: tl.constexpr, BV: tl.constexpr
):  # fmt: skip
    """A row belongs to one program, which sums its channels for a gate per head."""
    row = (tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR))[:, None]
    delta = tl.zeros([BR, BV], tl.float32)
    if HEADWISE:
        opened = tl.sigmoid(load_float32(gate, row, row < R))
    for first in range(0, V, BV):
        column = first + tl.arange(0, BV)[None, :]
        inside = (row < R) & (column < V)
        b_dy = load_float32(dy, row * V + column, inside)
        product = b_dy * load_float32(o, row * V + column, inside)
        if HEADWISE:
            delta += product
        else:
            opened = tl.sigmoid(load_float32(gate, row * V + column, inside))
            store_rounded(dgate, row * V + column, product * opened * (1 - opened), inside)
        store_rounded(do, row * V + column, b_dy * opened, inside)
    if HEADWISE:
        total = tl.sum(delta, 1)[:, None]
        store_rounded(dgate, row, total * opened * (1 - opened), row < R)


def forward(o: Tensor, gate: Tensor) -> Tensor:
    """``o [.., V]`` times the sigmoid of a gate ``[.., V]`` or ``[.., 1]``."""
    y, V = torch.empty_like(o), o.shape[-1]
    if R := o.numel() // V:
        config = _config(V)
        grid = triton.cdiv(R, config["BR"]), triton.cdiv(V, config["BV"])
        _gated_sdpa_fwd_kernel[grid](o, gate, y, R, V, HEADWISE=gate.shape[-1] != V, **config)
    return y


def backward(dy: Tensor, o: Tensor, gate: Tensor) -> list[Tensor]:
    """Gradients of o and of the gate."""
    do, dgate, V = torch.empty_like(o), torch.empty_like(gate), o.shape[-1]
    if R := o.numel() // V:
        config = _config(V)
        grid = (triton.cdiv(R, config["BR"]),)
        _gated_sdpa_bwd_kernel[grid](dy, o, gate, do, dgate, R, V, HEADWISE=gate.shape[-1] != V, **config)
    return [do, dgate]


def _config(V: int) -> dict[str, int]:
    return next(config for most, config in CONFIGS if most is None or most >= V)


def aot_cases() -> Iterator[dict[str, Any]]:
    """Every specialisation that ``forward`` and ``backward`` launch, in bf16 and float32."""
    for fn in (_gated_sdpa_fwd_kernel, _gated_sdpa_bwd_kernel):
        for headwise in (True, False):
            for most, config in CONFIGS:
                for dtype in ("bf16", "fp32"):
                    tensors = [name for name in fn.arg_names if name not in ("R", "V", "HEADWISE", "BR", "BV")]
                    gate = "headwise" if headwise else "elementwise"
                    yield {
                        "name": f"{fn.__name__[12:15]} {gate} V {most or 'any'} {dtype}",
                        "fn": fn,
                        "signature": {**dict.fromkeys(tensors, f"*{dtype}"), "R": "i32", "V": "i32"},
                        "constexprs": {"HEADWISE": headwise, "BR": config["BR"], "BV": config["BV"]},
                        "options": {"num_warps": config["num_warps"]},
                    }
