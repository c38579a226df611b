"""Memory of large results, and of tiles that are computed one after the other, on a CPU."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LARGE = 4 * 2**20  # bytes; blocks of a few huge pages gain nothing
KEPT = 32 * 2**20  # bytes of a workspace that outlives a call
MOST_VIEWS = 4096
MADV_HUGEPAGE = 14
PAGE = 4096


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised contiguous tensor; on Linux a large one asks for huge pages.

    The first write to each page of a new mapping costs more than an elementwise operation on it, and the allocator of
    glibc gives large blocks back to the system at every turn. Kernels whose huge-page mode is ``madvise``, the usual
    default, hand them out on request. The advice stays with the addresses, which is no more than speed to whoever gets
    them next.
    """
    result = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    size = result.numel() * result.element_size()
    advise = _madvise()
    if size >= LARGE and result.is_cpu and advise is not None:
        start = -(-result.data_ptr() // PAGE) * PAGE
        advise(start, (result.data_ptr() + size - start) // PAGE * PAGE, MADV_HUGEPAGE)  # refused: ordinary pages
    return result


class Workspace:
    """Uninitialised float32 tensors for one tile after the other: the n-th request of each tile gets the same memory.

    What the allocator hands out is often new to the cache, or pages that the system has yet to map, which costs more
    than an elementwise operation. Tensors of a tile must not be used after the next ``restart``. Views are kept as
    well as memory: making one takes as long as a small operation.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.blocks: list[Tensor] = []
        self.loose = torch.empty(0, dtype=torch.float32, device=device)
        self.views: dict[tuple[Any, ...], Any] = {}
        self.restart()

    def restart(self) -> None:
        """Begin a tile."""
        self.used = 0

    def __call__(self, *shape: int) -> Tensor:
        number, self.used = self.used, self.used + 1

        def view() -> Tensor:
            self.blocks += [self.loose[:0]] * (number + 1 - len(self.blocks))
            self.blocks[number] = self._fit(self.blocks[number], shape)
            return self.blocks[number][: math.prod(shape)].view(shape)

        return self._kept((number, shape), view)

    def split(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        """Memory of this workspace, or a view of it, ``[n m, ...]``, as n tensors ``[m, ...]``."""
        return self._kept((x.data_ptr(), x.shape, x.stride(), n), lambda: x.unflatten(0, (n, -1)).unbind())

    def scratch(self, *shape: int) -> Tensor:
        """A tensor in memory that every such request gets, whatever the shape and the tile."""
        with torch.inference_mode(False):
            self.loose = self._fit(self.loose, shape)
            return self.loose[: math.prod(shape)].view(shape)

    def size(self) -> int:
        """Bytes."""
        return 4 * (self.loose.numel() + sum(block.numel() for block in self.blocks))

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        found = self.views.get(key)
        if found is None:
            with torch.inference_mode(False):  # what is made now may outlive the mode, and serve gradients then
                found = make()
            if len(self.views) == MOST_VIEWS:
                self.views.clear()
            self.views[key] = found
        return found

    def _fit(self, block: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        if block.numel() >= size:
            return block
        self.views.clear()  # they would keep the memory of the old block
        return torch.empty(size, dtype=torch.float32, device=self.device)


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
    if own.size() <= KEPT:
        _of_thread.workspace = own


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
