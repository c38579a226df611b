"""Memory of large results, and of tiles that are computed one after the other, on a CPU."""

from __future__ import annotations

import ctypes
import functools
import math
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


class Workspace:
    """Uninitialised float32 tensors for one tile after the other: the n-th request of each tile gets the same memory.

    What the allocator hands out is often new to the cache, or pages that the system has yet to map, which costs more
    than an elementwise operation. Tensors of a tile must not be used after the next ``restart``.
    """

    def __init__(self, device: torch.device):
        _keep_freed_pages()
        self.device = device
        self.blocks: list[Tensor] = []
        self.views: list[Tensor] = []  # of the blocks, as they were last asked for
        self.restart()

    def restart(self) -> None:
        """Begin a tile."""
        self.used = 0

    def __call__(self, *shape: int) -> Tensor:
        number = self.used
        self.used += 1
        if number == len(self.blocks):
            self.blocks.append(torch.empty(math.prod(shape), dtype=torch.float32, device=self.device))
            self.views.append(self.blocks[number].view(shape))
        if self.views[number].shape != shape:
            if self.blocks[number].numel() < math.prod(shape):
                self.blocks[number] = torch.empty(math.prod(shape), dtype=torch.float32, device=self.device)
            self.views[number] = self.blocks[number][: math.prod(shape)].view(shape)
        return self.views[number]


@functools.cache
def _keep_freed_pages() -> None:
    """Let the allocator keep what is freed instead of returning it to the system, to be mapped again by the next call.

    glibc keeps up to twice the size of the largest block below ``LARGE`` that was ever freed: this frees one. Its pages
    are never touched, so it costs nothing; other allocators do not mind.
    """
    torch.empty(LARGE - PAGE, dtype=torch.uint8)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
