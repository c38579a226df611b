"""Which form of an operator runs: the fast one, or its definition in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def runs_fast_on_cpu(*tensors: Tensor) -> bool:
    """Whether the hand-written CPU form applies: eager float32 on the CPU.

    Autocast, other types and devices, ``torch.compile``, export and tracing take the definition: compilers fuse plain
    PyTorch themselves, and a custom function is a barrier to them.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and all(tensor.is_cpu and tensor.dtype is torch.float32 for tensor in tensors)
    )
