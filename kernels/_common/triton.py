"""Pieces that Triton kernels share."""

from __future__ import annotations

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
