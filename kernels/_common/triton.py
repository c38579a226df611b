"""Pieces that Triton kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def load_float32(pointer, offsets, mask):
    """Elements in float32, 0 where masked."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rounded(pointer, offsets, value, mask):
    """Store in the type of the memory."""
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


def dot_options(dtype: torch.dtype) -> dict[str, Any]:
    """``DOT``, the type of the operands of matrix products, and their ``PRECISION``, for inputs of a type.

    Products of float32 are exact to about 1e-6 on tensor cores: three products of tf32 on NVIDIA, where plain float32
    has no tensor cores; AMD's have float32 of their own. Triton's interpreter takes bits of bfloat16 for integers.
    """
    narrow = dtype in (torch.bfloat16, torch.float16) and not triton.knobs.runtime.interpret
    operand = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype] if narrow else tl.float32
    return {"DOT": operand, "PRECISION": "ieee" if narrow or torch.version.hip else "tf32x3"}


def dot_cases() -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """What ``dot_options`` gives for bf16 and float32, as pieces of ``aot_cases``: type, constants, targets."""
    yield "bf16", {"DOT": tl.bfloat16, "PRECISION": "ieee"}, ["sm_80", "sm_90", "gfx942"]
    yield "fp32", {"DOT": tl.float32, "PRECISION": "tf32x3"}, ["sm_80", "sm_90"]
    yield "fp32", {"DOT": tl.float32, "PRECISION": "ieee"}, ["gfx942"]
