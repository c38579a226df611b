"""Memory of large results, and of tiles that are computed one after the other, on a CPU."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        if number == len(self.blocks) or self.views[number].shape != shape:
            with torch.inference_mode(False):  # what is made now may outlive the mode, and serve gradients then
                self._fit(number, shape)
        return self.views[number]

    def _fit(self, number: int, shape: tuple[int, ...]) -> None:
        size = math.prod(shape)
        if number == len(self.blocks):
            self.blocks.append(torch.empty(0, dtype=torch.float32, device=self.device))
            self.views.append(self.blocks[number])
        if self.blocks[number].numel() < size:
            self.blocks[number] = torch.empty(size, dtype=torch.float32, device=self.device)
        self.views[number] = self.blocks[number][:size].view(shape)


_of_thread = threading.local()


@contextmanager
def workspace(device: torch.device) -> Iterator[Workspace]:
    """A workspace; on a CPU the thread's own, whose memory is kept for the next call unless it is large.

    Elsewhere a new one: calls on other streams may run at the same time.
    """
    if device.type != "cpu":
        yield Workspace(device)
        return
    own = _of_thread.__dict__.pop("workspace", None) or Workspace(device)  # a call inside the block gets another
    own.restart()
    yield own
    if sum(block.numel() for block in own.blocks) * 4 <= LARGE:
        _of_thread.workspace = own


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
