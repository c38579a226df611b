"""The definition of gated fusion and of the GLU family."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.kernels._common.numerics import working_dtype

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "gated_fusion": torch.sigmoid,
    "glu": torch.sigmoid,
    "swiglu": F.silu,
    "geglu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "geglu_erf": F.gelu,
}


def gated(x: Tensor, a: Tensor, b: Tensor | None, kind: str) -> Tensor:
    """``h a`` with the gate ``h`` of x that ``GATES`` names, and for gated fusion ``h a + (1 - h) b``."""
    dtype = working_dtype(x.dtype)
    h = GATES[kind](x.to(dtype))
    y = h * a.to(dtype)
    if b is not None:
        y = y + (1 - h) * b.to(dtype)
    return y.to(x.dtype)
