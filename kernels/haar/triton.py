"""The transform on a GPU: one kernel that splits pairs and one that merges them, each the other's adjoint.

Legend: n samples, m = ceil(n / 2) pairs of a row; all rows are one flat index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from toolkit.kernels._common.triton import load_float32, store_rounded

CONFIG = {"BT": 1024, "num_warps": 4}  # 8 elements per thread

SCALE = tl.constexpr(0.7071067811865476)


@triton.jit
def _positions(length, total, BT: tl.constexpr):
    """This program's elements of a tensor with rows of ``length``: index, row, column, and which exist."""
    start = tl.program_id(0).to(tl.int64) * BT
    first_row = start // length
    offset = (start - first_row * length).to(tl.int32) + tl.arange(0, BT)  # in 32 bits, where division is cheap
    index = start + tl.arange(0, BT)
    return index, first_row + offset // length, offset % length, index < total


@triton.jit
def _haar_split_kernel(x, low, high, n, m, total, REPEAT: tl.constexpr, BT: tl.constexpr):
    index, row, pair, inside = _positions(m, total, BT)
    sample, has_partner = row * n + 2 * pair, 2 * pair + 1 < n
    even, odd = load_float32(x, sample, inside), load_float32(x, sample + 1, inside & has_partner)
    if REPEAT:
        odd = tl.where(has_partner, odd, even)
    store_rounded(low, index, (even + odd) * SCALE, inside)
    store_rounded(high, index, (even - odd) * SCALE, inside)


@triton.jit
def _haar_merge_kernel(low, high, x, n, m, total, REPEAT: tl.constexpr, BT: tl.constexpr):
    index, row, sample, inside = _positions(n, total, BT)
    pair = row * m + sample // 2  # neighbours read the same pair, so reads and writes are contiguous
    b_low, b_high = load_float32(low, pair, inside), load_float32(high, pair, inside)
    if REPEAT:  # the gradient of a repeated sample belongs to the sample
        b_high = tl.where((sample % 2 == 0) & (sample + 1 == n), b_low, b_high)
    store_rounded(x, index, tl.where(sample % 2 == 0, b_low + b_high, b_low - b_high) * SCALE, inside)


def split(x: Tensor, repeat: bool) -> tuple[Tensor, Tensor]:
    """See ``cpu.split``."""
    n = x.shape[-1]
    m = (n + 1) // 2
    low, high = (torch.empty(*x.shape[:-1], m, dtype=x.dtype, device=x.device) for _ in range(2))
    if total := low.numel():
        grid = (triton.cdiv(total, CONFIG["BT"]),)
        _haar_split_kernel[grid](x.contiguous(), low, high, n, m, total, REPEAT=repeat, **CONFIG)
    return low, high


def merge(low: Tensor, high: Tensor, n: int, repeat: bool) -> Tensor:
    """See ``cpu.merge``."""
    x = torch.empty(*low.shape[:-1], n, dtype=low.dtype, device=low.device)
    if total := x.numel():
        grid = (triton.cdiv(total, CONFIG["BT"]),)
        low, high = low.contiguous(), high.contiguous()
        _haar_merge_kernel[grid](low, high, x, n, low.shape[-1], total, REPEAT=repeat, **CONFIG)
    return x


def aot_cases() -> Iterator[dict[str, Any]]:
    """Every specialisation that ``split`` and ``merge`` launch, in bf16 and float32."""
    for name, fn in (("split", _haar_split_kernel), ("merge", _haar_merge_kernel)):
        for repeat in (True, False):
            for dtype in ("bf16", "fp32"):
                yield {
                    "name": f"{name}{' repeat' if repeat else ''} {dtype}",
                    "fn": fn,
                    "signature": {
                        **dict.fromkeys(("x", "low", "high"), f"*{dtype}"),
                        **dict.fromkeys(("n", "m", "total"), "i32"),
                    },
                    "constexprs": {"REPEAT": repeat, "BT": CONFIG["BT"]},
                    "options": {"num_warps": CONFIG["num_warps"]},
                }
