"""Large results on a CPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

# glibc gives every block of this size its own mapping (the greatest value of its dynamic threshold), so the advice
# ends with the tensor. Smaller blocks are reused by the allocator and have their pages already.
LARGE = 32 * 2**20
MADV_HUGEPAGE = 14
PAGE = 4096


def empty_like(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor; on Linux a large one asks for huge pages.

    The first write to each page of a new mapping costs more than an elementwise operation on it. Kernels whose
    huge-page mode is ``madvise``, the usual default, hand them out on request.
    """
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    size = result.numel() * result.element_size()
    advise = _madvise()
    if size >= LARGE and result.is_cpu and advise is not None:
        start = -(-result.data_ptr() // PAGE) * PAGE
        advise(start, (result.data_ptr() + size - start) // PAGE * PAGE, MADV_HUGEPAGE)  # refused: ordinary pages
    return result


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
